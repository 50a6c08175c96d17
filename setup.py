"""Builds the C++ kernels, into the wheel or, for an editable install, into the source tree. All else: pyproject.toml.

Where they cannot be built (no Linux, no compiler, no torch beside this Python) one line says why, and the wheel is a
pure one. NOVOGRAD_KERNELS=0 leaves them out; NOVOGRAD_KERNELS=require makes it an error that they cannot be built.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.install import install

ROOT = Path(__file__).parent
FOLDER = "lightning_novograd/optim/kernels/cpu"


def compiler_module() -> ModuleType:
    """The module that compiles the kernels; its package imports torch, which an isolated build does not have."""
    sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location("compiler", ROOT / FOLDER / "compiler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _works(compiler: ModuleType, library: Path) -> bool:
    """Whether a library that an earlier build has left is as one that this build would make."""
    content = library.read_bytes() if library.is_file() else b""
    return bool(compiler.is_whole(content) and compiler.is_of_these_sources(content))


class BuildKernels(Command):
    """A step of `build`, as setuptools' own are."""

    description = "compile the C++ kernels"
    user_options = []  # noqa: RUF012

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False
        self.built = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        compiler = compiler_module()
        wish = compiler.wish()
        target = Path(self.get_outputs()[0]).absolute()
        if wish == "0":
            target.unlink(missing_ok=True)  # of an earlier build
            return
        try:
            compiler.compile_kernels(target)
            self.built = True
        except compiler.BuildError as error:
            if wish == "require":
                raise
            self.built = _works(compiler, target)
            if not self.built:
                target.unlink(missing_ok=True)  # what an earlier build has left is of other sources, or damaged
            which = "with the C++ kernels of an earlier build" if self.built else "without its C++ kernels"
            print(f"lightning-novograd is built {which}: {str(error).splitlines()[0]}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [os.path.join(ROOT if self.editable_mode else self.build_lib or "", FOLDER, "lib", "kernels.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []  # they are package data


class Build(build):
    """With one more step."""

    sub_commands = [*build.sub_commands, ("build_kernels", None)]  # noqa: RUF012


class Install(install):
    """With the kernels all goes where a platform's files belong."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.get_finalized_command("build_kernels").built:
            self.install_lib = self.install_platlib


class Wheel(bdist_wheel):
    """With the kernels a wheel is for one platform, and still for every Python: torch's stable ABI is all they use."""

    def run(self) -> None:
        if not self.skip_build:
            self.run_command("build")  # now, because it decides what kind of wheel this is
        self.root_is_pure = not self.get_finalized_command("build_kernels").built
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(cmdclass={"build": Build, "build_kernels": BuildKernels, "install": Install, "bdist_wheel": Wheel})
