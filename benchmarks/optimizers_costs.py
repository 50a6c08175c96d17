"""Time and memory of a step of each optimizer of optimizers.py, on the models of its tasks."""

import copy
import json
import logging
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from optimizers_runs import CONTENDERS, TASKS, Trial
from steps import timed
from torch import nn
from torch.optim import Optimizer

from lightning_novograd import build_optimizers
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.image.module import IMAGE
from lightning_novograd.recipes.language.module import LANGUAGE

ROUNDS, WARM = 200, 5
FLOOR = "SGD"
CPU = torch.device("cpu")


def write_costs(path: Path, machine: dict[str, Any]) -> None:
    """Measure all tasks, and write a JSON file of settings and rows."""
    logging.getLogger("lightning_novograd").setLevel(logging.WARNING)  # it tells the groups of each
    rows = [row for task in TASKS for row in costs_of(task)]
    settings = {**machine, "threads": torch.get_num_threads(), "rounds": ROUNDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


def costs_of(task: str, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """A row for each optimizer; they step in turns, in an order that is drawn anew in each round.

    Args:
        task: whose model it is.
        rounds: steps of each that are timed.
    """
    names = [name for name in CONTENDERS if task in CONTENDERS[name].tasks]
    model, optimizers = None, {}
    for name in names:
        with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
            cfg = compose(task, overrides=Trial(task, name, 0).overrides())
        model = model or model_of(task, cfg)
        block = OmegaConf.to_container(cfg.optim, resolve=True)
        optimizers[name] = build_optimizers(block, _with_gradients(model), max_steps=rounds + WARM + 1)["optimizer"]
    times: dict[str, list[float]] = {name: [] for name in names}
    draw = random.Random(0)
    for _ in range(WARM + rounds):
        for name in draw.sample(names, len(names)):
            times[name].append(timed(optimizers[name].step, CPU))
    times = {name: values[WARM:] for name, values in times.items()}
    return [
        {
            "task": task,
            "optimizer": name,
            "parameters": sum(p.numel() for group in optimizers[name].param_groups for p in group["params"]),
            "state_bytes": state_bytes(optimizers[name]),
            "ms": 1e3 * statistics.median(times[name]),
            "ratio": statistics.median(a / b for a, b in zip(times[name], times[FLOOR], strict=True)),
        }
        for name in names
    ]


def model_of(task: str, cfg: Any) -> nn.Module:
    """The model that the recipe of a task trains."""
    block = OmegaConf.to_container(cfg.model, resolve=True)
    if task == "asr":
        return JasperCTC.from_config(block)
    return {"image": IMAGE, "language": LANGUAGE}[task].module(block).model


def state_bytes(optimizer: Optimizer) -> int:
    """Of the tensors that the optimizer keeps, counters of steps included."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def _with_gradients(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = 0.01 * torch.randn(p.shape, generator=generator)
    return model
