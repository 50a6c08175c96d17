"""Commands that a page prints: what is quick is run, the rest is asked of the program itself, without being done.

train.py composes its config and plans the run, other programs parse their arguments and go no further, make and pip
have their targets and extras looked up.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from pages import ROOT

# whose config is conf/NAME.yaml
TRAIN = {
    f"{path}": name
    for name in ("asr", "image", "language")
    for path in (f"recipes/{name}/train.py", f"lightning_novograd.recipes.{name}.train")
}
QUICK = ("describe", "plot-schedule", "convert-checkpoint")  # of python -m lightning_novograd
PASSED = (".", "cd", "export", "git", "mkdir", "python3", "source")  # what a reader's shell does, and python3 -m venv
LAUNCHERS = ("torchrun", "srun")
SECONDS = 400  # of one command, on a machine that does much else


class Wrong(Exception):
    """A command that does not work as it is printed."""


class _Parsed(Exception):
    """The arguments are understood; the program is not to go on."""


def split(script: str) -> list[list[str]]:
    """The words of each command of a script: comments, `...` and redirections are left out."""
    script = re.sub(r"\[(-[^\]]*|KEY=VALUE \.\.\.)\]", r"\1", script)  # what may be left out
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        for command in re.split(r" && | \| ", line):
            words = shlex.split(command, comments=True)
            if ">" in words:
                words = words[: words.index(">")]
            words = [word for word in words if word not in ("...", "…")]
            while words and re.fullmatch(r"[A-Z_][A-Z_0-9]*=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def check(words: list[str], folder: Path | None) -> None:
    """Run a command in `folder` if it is quick, else see that it would be understood; None: never run it.

    Raises:
        Wrong: it does not work.
    """
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program in PASSED:
        return
    if program == "make":
        _check_make(rest)
    elif program == "pip":
        _check_pip(rest)
    elif program == "pytest":
        _check_paths(rest)
    elif program == "sbatch":
        _check_paths(rest[:1])
        _check_train("asr", rest[1:])
    elif program in ("cibuildwheel", "pre-commit"):
        return
    elif program in LAUNCHERS:
        _check_launcher(program, rest, folder)
    elif program == "python":
        _check_python(rest, folder)
    else:
        raise Wrong(
            f"{shlex.join(words)}: nothing here can tell whether it works; mark the block: <!-- not run: WHY -->"
        )


def _check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        known = rf"\$\({name}\)|^{name} \?=" if is_variable else rf"^{re.escape(name)}:"
        if not word.startswith("-") and not re.search(known, makefile, re.MULTILINE):
            raise Wrong(f"make {word}: not in the Makefile")


def _check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for index, word in enumerate(words):
        of_ours = re.fullmatch(r"(?:\.|lightning-novograd(?: @ \S+)?)\[([\w,-]+)\].*", word)
        for extra in of_ours[1].split(",") if of_ours else ():
            if extra not in project["optional-dependencies"]:
                raise Wrong(f"pip {word}: pyproject.toml has no extra {extra!r}")
        if words[index - 1] in ("-c", "-r") and not (ROOT / word).is_file():
            raise Wrong(f"pip {words[index - 1]} {word}: there is no such file")


def _check_paths(words: list[str]) -> None:
    for word in words:
        if "/" in word and not word.startswith("-") and not (ROOT / word).exists():
            raise Wrong(f"{word}: there is no such file")


def _check_launcher(program: str, words: list[str], folder: Path | None) -> None:
    inner = next((index for index, word in enumerate(words) if not word.startswith("-")), None)
    if inner is None and folder is None:
        return  # named in the text
    if inner is None:
        raise Wrong(f"{program}: starts nothing")
    if folder is not None and (folder / words[inner]).is_file():
        _run(["-m", "torch.distributed.run", *words], folder)
    else:
        check([*(() if words[inner] == "python" else ("python",)), *words[inner:]], None)


def _check_python(words: list[str], folder: Path | None) -> None:
    if not words or words == ["-m"]:
        return  # named in the text
    is_module = words[0] == "-m"
    name, arguments = (words[1], words[2:]) if is_module else (words[0], words[1:])
    if folder is not None and (folder / name).is_file():
        _run(words, folder)
    elif name in TRAIN:
        _check_train(TRAIN[name], arguments)
    elif name == "lightning_novograd" and folder is not None and arguments[0] in QUICK:
        _run(words, folder)
    elif name in ("pytest", "build", "pip", "pydoc", "auditwheel"):
        _check_paths(arguments)
    elif name == "-c":
        compile(arguments[0], "python -c", "exec")
    elif (source := _source(name, is_module)) is not None:
        if "argparse" in source.read_text("utf-8"):
            try:
                _check_arguments(name, arguments, is_module)
            except Wrong as error:
                if folder is not None or "arguments are required" not in str(error):  # the text may name it alone
                    raise
        elif folder is not None:
            _run(words if is_module else [str(source), *arguments], folder)
    else:
        raise Wrong(f"python {name}: there is no such file")


def _source(name: str, is_module: bool) -> Path | None:
    """The file of a program; None: there is none."""
    if not is_module:
        return ROOT / name if (ROOT / name).is_file() else None
    found = importlib.util.find_spec(name)
    if found is not None and found.submodule_search_locations:
        found = importlib.util.find_spec(f"{name}.__main__")
    return Path(found.origin) if found is not None and found.origin else None


def _run(words: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, timeout=SECONDS)
    if done.returncode:
        output = (done.stdout + done.stderr).decode(errors="replace")[-3000:]
        raise Wrong(f"python {shlex.join(words)}: exit code {done.returncode}\n{output}")


def _check_train(recipe: str, words: list[str]) -> None:
    """The config is composed, and the run planned as by ``--plan``: nothing is read, made or trained."""
    from hydra import compose, initialize_config_module

    unknown = [word for word in words if word.startswith("-") and word not in ("--plan", "-m", "--multirun")]
    if unknown:
        raise Wrong(f"train.py {unknown[0]}: not an option of it")
    overrides = [word for word in words if not word.startswith(("-", "hydra/launcher="))]
    if len(overrides) < len(words) and "--plan" not in words:  # a sweep: its first run
        overrides = [re.sub(r"(?<==)([^\[{,]*),.*", r"\1", word) for word in overrides]
    try:
        with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
            config = compose(recipe, overrides)
        if config.trainer.get("accelerator") == "gpu" and config.trainer.devices in ("auto", -1):
            config.trainer.devices = 8  # there may be none here to count
        _describe(recipe, config)
    except Exception as error:
        raise Wrong(f"train.py {shlex.join(words)}: {error}") from error


def _describe(recipe: str, config: Any) -> str:
    if recipe == "asr":
        from lightning_novograd.recipes.asr.training.plan import describe_run

        return describe_run(config)
    from lightning_novograd.recipes.common.tasks.plan import describe_run as describe_task

    module = importlib.import_module(f"lightning_novograd.recipes.{recipe}.module")
    return describe_task(getattr(module, recipe.upper()), config)


def _check_arguments(name: str, arguments: list[str], is_module: bool) -> None:
    """Start the program, and end it as soon as its argparse has taken the arguments."""
    said = io.StringIO()
    path = str((ROOT / name).parent) if not is_module else str(ROOT)
    try:
        with (
            _parsing_only(),
            mock.patch.object(sys, "argv", [name, *arguments]),
            mock.patch.object(sys, "path", [path, *sys.path]),
            contextlib.redirect_stderr(said),
        ):
            if is_module:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / name), run_name="__main__")
    except _Parsed:
        return
    except SystemExit as end:
        choice = re.search(r"invalid choice: '([A-Z]+)' \(choose from '?(\w+)", said.getvalue())
        if choice and choice[1] in arguments:  # stands for each of them
            _check_arguments(name, [choice[2] if word == choice[1] else word for word in arguments], is_module)
            return
        raise Wrong(f"python {name} {shlex.join(arguments)}: {said.getvalue() or end}") from None
    raise Wrong(f"python {name}: has parsed no arguments")


@contextlib.contextmanager
def _parsing_only() -> Iterator[None]:
    """In here a program ends with `_Parsed` once its parser has taken the arguments."""

    def stopping(parse: Any) -> Any:
        def parse_and_stop(*args: Any, **kwargs: Any) -> None:
            parse(*args, **kwargs)
            raise _Parsed

        return parse_and_stop

    with contextlib.ExitStack() as stack:
        for name in ("parse_args", "parse_intermixed_args"):
            parse = getattr(argparse.ArgumentParser, name)
            stack.enter_context(mock.patch.object(argparse.ArgumentParser, name, stopping(parse)))
        yield
