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
from conftest import ROOT

COMPOSE = """
import lightning_novograd
from hydra import compose, initialize_config_module
assert {folder!r} in lightning_novograd.__file__, lightning_novograd.__file__
with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
    cfg = compose("asr", overrides=["data=fsdd", "trainer=ddp"])
print(cfg.optim.name, cfg.optim.sched.name, cfg.trainer.strategy)
import lightning_novograd.recipes.asr.train
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    # a copy: setuptools writes into the source tree, where another test process may be building too
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "outputs", "multirun", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored, dirs_exist_ok=True)
    # without isolation: the build backend is a test requirement, so nothing is downloaded
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    return out


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
    patterns = ("lightning_novograd/**/*.py", "lightning_novograd/optim/kernels/cpu/*.[ch]*", "hydra_plugins/**/*.py")
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
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    [site] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    # the dependencies are those of the test environment; a path line does not run that folder's own .pth files, so
    # the editable install of this project stays out of sight
    [dependencies] = {str(Path(p).resolve()) for p in sys.path if p.endswith("site-packages")}
    (site / "dependencies.pth").write_text(dependencies + "\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", COMPOSE.format(folder=str(tmp_path))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["novograd", "CosineAnnealing", "ddp"]
