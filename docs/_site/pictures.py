"""A picture of every schedule of the package, by the code of `plot-schedule`: the same bytes each time."""

import io
import logging
from collections.abc import Iterator
from typing import Any

import matplotlib
import torch

from lightning_novograd import build_optimizers, lr_scheduler
from lightning_novograd.lr_scheduler.plot import plot_schedule

logging.getLogger("lightning_novograd").setLevel(logging.WARNING)

STEPS = 200
LR = 0.1
SIZE = (6, 3.4)  # inches; two beside each other on the page
WARMUP = {"warmup_steps": 20}
HOLD = {**WARMUP, "hold_steps": 40}
FLOOR = {"min_lr": 0.01}

# By family, what each is drawn with
SCHEDULES: dict[str, dict[str, dict[str, Any]]] = {
    "nemo": {
        "WarmupPolicy": WARMUP,
        "WarmupHoldPolicy": HOLD,
        "CosineAnnealing": {**WARMUP, **FLOOR, "constant_steps": 40},
        "WarmupAnnealing": {**WARMUP, **FLOOR},
        "PolynomialDecayAnnealing": {**WARMUP, **FLOOR, "power": 2.0},
        "PolynomialHoldDecayAnnealing": {**HOLD, **FLOOR, "power": 2.0},
        "SquareAnnealing": {**WARMUP, **FLOOR},
        "SquareRootAnnealing": {**WARMUP, **FLOOR},
        "WarmupHoldAnnealLinear": {**HOLD, **FLOOR},
        "WarmupHoldAnnealOneMinusSquareRoot": {**HOLD, **FLOOR},
        "InverseSquareRootAnnealing": WARMUP,
        "NoamAnnealing": {**WARMUP, "d_model": 512},
        "NoamHoldAnnealing": HOLD,
        "T5InverseSquareRootAnnealing": {"constant_steps": 20},
    },
    "openseq2seq": {
        "PolyDecay": {**FLOOR, "power": 2.0},
        "CosineDecay": {**WARMUP, "min_lr_ratio": 0.1},
        "ExpDecay": {"decay_steps": 20, "decay_rate": 0.7, "use_staircase_decay": True},
        "PiecewiseConstant": {"boundaries": [80, 140], "decay_rates": [0.1, 0.01]},
        "InvPolyDecay": {**FLOOR, "power": 1.0},
        "TransformerPolicy": {**WARMUP, "d_model": 512},
    },
    "deeplearningexamples": {
        "WarmupHoldAnnealExponential": {**HOLD, **FLOOR, "gamma": 0.8, "num_decays": 14},
    },
}


def all_names() -> set[str]:
    """Of the schedules that the package has."""
    return set(lr_scheduler.__all__)


def draw(family: str) -> Iterator[tuple[str, str, str]]:
    """Name, block and SVG of each schedule of a family."""
    for name, arguments in SCHEDULES[family].items():
        said = ", ".join(f"{key}: {str(value).lower() if value is True else value}" for key, value in arguments.items())
        yield name, f"{{name: {name}, {said}}}", picture({"name": name, **arguments})


def picture(sched: dict[str, Any]) -> str:
    """What `plot-schedule` draws of a block with this schedule; letters are text, so that the file is small."""
    block = {"name": "novograd", "lr": LR, "sched": sched}
    scheduler = build_optimizers(block, torch.nn.Linear(1, 1), max_steps=STEPS)["lr_scheduler"]["scheduler"]
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": sched["name"]}):
        figure = plot_schedule(scheduler, STEPS)
        figure.set_size_inches(SIZE)
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
