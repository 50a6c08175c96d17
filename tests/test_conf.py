"""Every YAML in conf/ composes, and says nothing that the code it configures does not know."""

import dataclasses

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_module
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from lightning_novograd.config import parse_optim
from lightning_novograd.recipes.asr.data.config import DataConfig, LoadingConfig
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.common.tasks.settings import TaskSettings
from lightning_novograd.recipes.image.module import IMAGE
from lightning_novograd.recipes.language.module import LANGUAGE

CONF = ROOT / "conf"
OF_HYDRA = sorted(CONF.glob("hydra/**/*.yaml"))  # options of Hydra's own groups: tests/recipes/common/engines
GROUPS = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.glob("*/**/*.yaml") if p not in OF_HYDRA)


@pytest.fixture(scope="module", autouse=True)
def hydra():
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        yield


# besides the speech recipe
TASKS = {"image": IMAGE, "language": LANGUAGE}
# what the user has to add to an option
REQUIRED = {
    "data/fsdd": ["data.root=recordings"],
    "data/manifest": ["data.train=train.json", "data.dev=dev.json"],
    "experiment/fsdd_novograd": ["data.root=recordings"],
}


def composed(name: str):
    group, option = name.split("/", 1)
    overrides = [f"{group}={option}", *REQUIRED.get(name, [])]
    return compose("asr", overrides=overrides)


def test_every_group_of_the_design_has_options():
    groups = {name.split("/")[0] for name in GROUPS}
    assert groups == {"optim", "sched", "model", "data", "trainer", "logger", "experiment"}


def test_the_default_config_composes():
    cfg = compose("asr")
    assert (cfg.data.name, cfg.optim.name, cfg.trainer.devices) == ("espeak_digits", "novograd", 1)


@pytest.mark.parametrize("name", GROUPS)
def test_every_yaml_composes_and_is_understood(name):
    group, option = name.split("/", 1)
    settings = RunSettings.read(composed(name), "")
    assert parse_optim(settings.optim).name
    assert settings.trainer["accelerator"] in ("cpu", "gpu")
    if group == "data":
        assert DataConfig.from_mapping(settings.data).name == option
    if group == "model":
        with torch.device("meta"):
            assert JasperCTC.from_config(settings.model).alphabet.labels[0] == " "


@pytest.mark.parametrize("name", TASKS)
def test_the_config_of_every_task_composes_and_is_understood(name):
    settings = TaskSettings.read(compose(name), "")
    assert parse_optim(settings.optim).name == "NovoGrad"
    TASKS[name].data.read(settings.data, "data")
    with torch.device("meta"):
        TASKS[name].module(settings.model, settings.optim)
    default, speech = compose(name), compose("asr")
    assert default.keys() < speech.keys()
    shared = {"seed", "large_batch", "nonfinite", "watchdog", "console", "resume", "resume_from", "layer_monitor"}
    assert default.keys() == shared | {"model", "data", "optim", "trainer", "logger", "checkpoint"}
    assert {key: default[key] for key in shared} == {key: speech[key] for key in shared}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "choice",
    [
        "optim=sgd_larc",
        "optim=paper/transformer_xl",
        "sched=constant",
        "sched=polynomial",
        "trainer=ddp",
        "logger=none",
    ],
)
def test_tasks_take_the_options_of_the_speech_recipe(task, choice):
    ours, speech = (compose(recipe, overrides=[choice]) for recipe in (task, "asr"))
    group = choice.split("=")[0]
    if group == "sched":
        assert ours.optim.sched == speech.optim.sched
    elif group == "trainer":
        assert {**ours.trainer, "max_epochs": 0} == {**speech.trainer, "max_epochs": 0}
    else:
        assert ours[group] == speech[group]


def test_a_preset_keeps_its_own_schedule():
    sched = compose("asr", overrides=["optim=paper/transformer_big"]).optim.sched
    assert (sched.name, sched.warmup_steps, sched.warmup_ratio) == ("CosineAnnealing", 4000, None)


def test_a_chosen_schedule_replaces_the_default():
    assert compose("asr", overrides=["sched=polynomial"]).optim.sched.name == "PolynomialDecayAnnealing"
    assert compose("asr", overrides=["sched=constant"]).optim.sched is None


@pytest.mark.parametrize("order", [1, -1])
def test_a_chosen_schedule_replaces_that_of_a_preset(order):
    overrides = ["optim=paper/jasper_8k", "sched=cosine"][::order]
    sched = compose("asr", overrides=overrides).optim.sched
    assert sched == OmegaConf.load(CONF / "sched" / "cosine.yaml").sched
    assert parse_optim(compose("asr", overrides=overrides).optim).sched.name == "CosineAnnealing"


def test_no_choice_of_a_schedule_that_is_not_there():
    with pytest.raises(MissingConfigException, match="Could not find 'sched/cosin'"):
        compose("asr", overrides=["sched=cosin"])


@pytest.mark.parametrize("name", [name for name in GROUPS if name.startswith("optim/")])
def test_every_preset_has_a_schedule_of_its_own(name):
    alone = compose(overrides=[f"+{name.replace('/', '=', 1)}"]).optim
    assert parse_optim(alone).sched is not None
    assert compose("asr", overrides=[name.replace("/", "=", 1)]).optim == alone


def test_yaml_files_hold_plain_data():
    paths = sorted(CONF.glob("**/*.yaml"))
    assert len(paths) - len(OF_HYDRA) == len(GROUPS) + 1 + len(TASKS), "the recipes and the options of all groups"
    for path in paths:
        content = OmegaConf.load(path)
        content.pop("hydra", None)  # whose callbacks have no other form
        assert "_target_" not in OmegaConf.to_yaml(content), path


@pytest.mark.parametrize("name", [name for name in GROUPS if name.startswith("data/")])
def test_every_corpus_can_be_loaded_in_every_way(name):
    keys = {field.name for field in dataclasses.fields(LoadingConfig)}
    assert keys - OmegaConf.load(CONF / f"{name}.yaml").keys() == set(), "Hydra takes no key that is not there"
