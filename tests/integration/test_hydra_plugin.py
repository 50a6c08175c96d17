"""A Hydra app that knows nothing of this package composes its config groups, because the package is installed."""

import json
import re
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
    (tmp_path / "conf" / "bare.yaml").write_text("epochs: 3\n")

    def run(*overrides, config="app"):
        done = start(tmp_path, overrides, config)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def start(folder, overrides, config="app"):
    return subprocess.run(
        [sys.executable, "main.py", "-cn", config, "hydra.run.dir=out", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
    )


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


def test_the_readmes_line_brings_a_preset_into_an_app_without_one(app):
    (line,) = re.findall(r"`(\+optim=[^`]*)`", (ROOT / "README.md").read_text())
    assert app(*line.split(), config="bare")["cfg"] == {"epochs": 3, "optim": ours("optim/novograd")}


@pytest.mark.parametrize("name", ["novograd", "adamw", "sgd", "sgd_larc", "paper/jasper_8k"])
def test_a_preset_brings_its_schedule(name, app):
    assert app(f"+optim={name}", config="bare")["cfg"]["optim"]["sched"]["name"].endswith("Annealing")


def test_a_chosen_schedule_replaces_the_presets(app):
    cosine = ours("sched/cosine")["sched"]
    assert app("optim=paper/jasper_8k", "+sched=cosine")["cfg"]["optim"]["sched"] == cosine
    assert app("+sched=constant")["cfg"]["optim"]["sched"] is None
    assert app("optim=paper/jasper_8k", "+optim/sched=cosine")["cfg"]["optim"]["sched"] == cosine


def test_a_block_goes_where_the_app_wants_it(app):
    placed = app("+optim@model.optim=paper/jasper_8k", "+sched@model.optim=cosine", config="bare")["cfg"]
    block = {**ours("optim/paper/jasper_8k"), "sched": ours("sched/cosine")["sched"]}
    assert placed == {"epochs": 3, "model": {"optim": block}}


def test_only_the_groups_of_the_optim_block_are_lent(app, tmp_path):
    (tmp_path / "conf" / "trainer").mkdir()
    (tmp_path / "conf" / "trainer" / "mine.yaml").write_text("devices: 3\n")
    assert app("+trainer=mine")["cfg"]["trainer"] == {"devices": 3}
    refused = start(tmp_path, ["+trainer=gpu"])
    assert refused.returncode != 0
    assert "Could not find 'trainer/gpu'" in refused.stderr
    assert re.search(r"Available options in 'trainer':\s+mine\s+Config search path", refused.stderr)
    # of a group that is not there Hydra makes a plain value
    plain = {"model": "quartznet_demo", "data": "fsdd"}
    assert app("+model=quartznet_demo", "+data=fsdd")["cfg"].items() >= plain.items()
    assert "Cannot find primary config 'asr'" in start(tmp_path, [], config="asr").stderr


def test_our_groups_and_options_are_listed(app, tmp_path):
    (tmp_path / "conf" / "optim").mkdir()
    (tmp_path / "conf" / "optim" / "mine.yaml").write_text("name: mine\n")
    refused = start(tmp_path, ["optim=novogrid"])
    assert re.search(r"Available options in 'optim':\s+adamw\s+mine\s+novograd\s+sgd\s+sgd_larc\s", refused.stderr)
