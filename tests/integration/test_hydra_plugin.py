"""A Hydra app that knows nothing of this package composes its config groups, because the package is installed."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

APP = """
import json, sys
import hydra
from omegaconf import OmegaConf

@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(cfg):
    heavy = sorted({"torch", "lightning"} & set(sys.modules))
    print(json.dumps({"cfg": OmegaConf.to_container(cfg), "imported": heavy}))

main()
"""


@pytest.fixture
def app(tmp_path):
    """`app(*overrides)` runs the app in `tmp_path`, whose own configs are in `conf/`."""
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text("defaults:\n  - optim: novograd\n  - _self_\nepochs: 3\n")

    def run(*overrides):
        done = subprocess.run(
            [sys.executable, "main.py", "hydra.run.dir=out", *overrides], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def ours(name):
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / f"{name}.yaml"))


def test_a_group_option_of_this_package_is_found_without_importing_torch(app):
    result = app("optim.lr=0.1")
    assert result["cfg"] == {"optim": {**ours("optim/novograd"), "lr": 0.1}, "epochs": 3}
    assert result["imported"] == []


def test_presets_bring_their_own_schedule_and_groups_combine(app):
    assert app("optim=paper/jasper_8k")["cfg"]["optim"] == ours("optim/paper/jasper_8k")
    combined = app("optim=sgd_larc", "+sched=cosine")["cfg"]["optim"]
    assert (combined["name"], combined["larc"]["target"], combined["sched"]["name"]) == (
        "sgd",
        "gradient",
        "CosineAnnealing",
    )


def test_the_apps_own_file_wins(app, tmp_path):
    (tmp_path / "conf" / "optim").mkdir()
    (tmp_path / "conf" / "optim" / "novograd.yaml").write_text("name: mine\n")
    assert app()["cfg"]["optim"] == {"name": "mine"}
    assert app("optim=adamw")["cfg"]["optim"] == ours("optim/adamw")
