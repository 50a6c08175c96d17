"""Published recipes in conf/optim: the numbers of the tables, written here a second time, and the schedules' shape."""

import re

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_module

from lightning_novograd import build_optimizers, parse_optim
from lightning_novograd.lr_scheduler import (
    CosineAnnealing,
    PolynomialDecayAnnealing,
    WarmupHoldAnnealExponential,
)

OPTIM = ROOT / "conf" / "optim"

# lr, betas, weight decay, warmup (share of the run or steps), schedule
PUBLISHED = {
    "paper/resnet50_1k": (0.007, (0.95, 0.98), 0.002, None, CosineAnnealing),
    "paper/resnet50_8k": (0.016, (0.95, 0.98), 0.006, None, CosineAnnealing),
    "paper/resnet50_32k": (0.026, (0.95, 0.98), 0.010, None, CosineAnnealing),
    "paper/resnet50_32k_warmup": (0.026, (0.95, 0.98), 0.010, 500, CosineAnnealing),
    "paper/jasper_512": (0.015, (0.95, 0.25), 0.001, None, PolynomialDecayAnnealing),
    "paper/jasper_4k": (0.03, (0.95, 0.25), 0.001, 0.05, PolynomialDecayAnnealing),
    "paper/jasper_8k": (0.06, (0.95, 0.25), 0.001, 0.05, PolynomialDecayAnnealing),
    "paper/jasper_16k": (0.06, (0.95, 0.25), 0.003, 0.05, PolynomialDecayAnnealing),
    "paper/jasper_32k": (0.06, (0.95, 0.25), 0.004, 0.08, PolynomialDecayAnnealing),
    "paper/transformer_xl": (0.01, (0.95, 0.25), 0.0, None, CosineAnnealing),
    "paper/transformer_big": (0.04, (0.95, 0.25), 0.0001, 4000, CosineAnnealing),
    "nvidia/openseq2seq_jasper_10x5dr": (0.02, (0.95, 0.98), 0.001, None, PolynomialDecayAnnealing),
    "nvidia/openseq2seq_quartznet_15x5": (0.01, (0.95, 0.5), 0.001, 1000, CosineAnnealing),
}
# epochs: all, warmup, hold
EXPONENTIAL = {"nvidia/quartznet_15x5": (260, 2, 140), "nvidia/jasper_10x5dr": (440, 2, 140)}
MIN_LR = {CosineAnnealing: 0.0, PolynomialDecayAnnealing: 1e-5}
STEPS = 100_000


@pytest.fixture(scope="module")
def preset():
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        yield lambda name: compose(overrides=[f"+optim={name}"]).optim


def lr_at(schedule, step):
    return schedule.lr_at(step, schedule.base_lrs[0])


UNPUBLISHED = {"language/novograd"}  # a recipe's own default


def test_every_preset_is_in_the_table():
    files = {p.relative_to(OPTIM).with_suffix("").as_posix() for p in OPTIM.glob("*/*.yaml")}
    assert files == {*PUBLISHED, *EXPONENTIAL, *UNPUBLISHED}


# OpenSeq2Seq put LARC's gradient rule around NovoGrad, which is worth a warning
@pytest.mark.filterwarnings("ignore:LARC.*does not bound:UserWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_published_ones(preset, name):
    lr, betas, weight_decay, warmup, schedule_class = PUBLISHED[name]
    config = parse_optim(preset(name))
    assert (config.name, config.args["lr"], config.args["betas"]) == ("NovoGrad", lr, betas)
    assert config.args["weight_decay"] == weight_decay
    assert config.no_decay == ()

    built = build_optimizers(config, torch.nn.Linear(2, 1), max_steps=STEPS)
    schedule = built["lr_scheduler"]["scheduler"]
    assert type(schedule) is schedule_class
    assert built["lr_scheduler"]["interval"] == "step"
    warmup_steps = 0 if warmup is None else warmup if isinstance(warmup, int) else round(warmup * STEPS)
    assert schedule.arguments["warmup_steps"] == warmup_steps
    assert lr_at(schedule, warmup_steps) == lr
    assert lr_at(schedule, STEPS) == pytest.approx(MIN_LR[schedule_class], abs=1e-12)
    halfway = lr_at(schedule, (warmup_steps + STEPS) // 2)
    assert halfway == pytest.approx(lr * (0.5 if schedule_class is CosineAnnealing else 0.25), rel=0.01)


def test_openseq2seqs_jasper_has_its_larc(preset):
    larc = parse_optim(preset("nvidia/openseq2seq_jasper_10x5dr")).larc
    assert larc.args == {
        "trust_coefficient": 0.001,
        "clip": True,
        "eps": 1e-7,
        "min_update": 1e-7,
        "target": "gradient",
    }


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 244])
@pytest.mark.parametrize("name", EXPONENTIAL)
def test_nvidias_exponential_schedule(preset, name, steps_per_epoch):
    epochs, warmup, hold = EXPONENTIAL[name]
    config = parse_optim(preset(name))
    assert config.args == {"lr": 0.01, "betas": (0.95, 0.0), "weight_decay": 0.001, "grad_averaging": False}
    built = build_optimizers(config, torch.nn.Linear(2, 1), max_steps=epochs * steps_per_epoch)
    schedule = built["lr_scheduler"]["scheduler"]
    assert type(schedule) is WarmupHoldAnnealExponential
    assert built["lr_scheduler"]["interval"] == "step"

    # as its training loop has it: the LR is set after a step, from that step's number and epoch, both from 1
    warmup_steps, hold_end = warmup * steps_per_epoch, (warmup + hold) * steps_per_epoch
    for step in range(1, epochs * steps_per_epoch):
        epoch = 1 + (step - 1) // steps_per_epoch
        if step < warmup_steps:
            factor = (step + 1) / (warmup_steps + 1)
        else:
            factor = 1.0 if step < hold_end else 0.981 ** (epoch - warmup - hold)
        assert lr_at(schedule, step) == pytest.approx(max(0.01 * factor, 1e-5), rel=1e-12), step


@pytest.mark.parametrize("name", [*PUBLISHED, *EXPONENTIAL])
def test_comments_name_the_source(name):
    text = (OPTIM / f"{name}.yaml").read_text()
    assert re.search(r"^# .*https://(arxiv\.org/abs/1905\.11286|github\.com/NVIDIA/)", text, re.MULTILINE)
