"""The runs whose checkpoints lie in golden/before_rooms: what `make.py` there made them with, and what resumes them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import soundfile
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_novograd import LARC, NovoGrad, OptimMixin, lr_scheduler

FOLDER = Path(__file__).parent / "golden" / "before_rooms"

# ---------------------------------------------------------------------------------------------- optimizers

# The step at which a state_dict was taken, and the last step
SAVED, LAST = 3, 6

Layers = list[torch.nn.Parameter]


def in_two_groups(layers: Layers) -> list[dict[str, Any]]:
    """All layers but the last two, and these; options come from a checkpoint or from the caller."""
    return [{"params": layers[:-2]}, {"params": layers[-2:]}]


# Without any options: a loaded state_dict brings them all back.
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "novograd": NovoGrad,
    "novograd-amsgrad": NovoGrad,
    "novograd-bfloat16": NovoGrad,
    "larc-sgd": lambda groups: LARC(torch.optim.SGD(groups)),
    "larc-novograd": lambda groups: LARC(NovoGrad(groups)),
    "larc-adamw": lambda groups: LARC(torch.optim.AdamW(groups)),
    "larc-adamw-usual": lambda groups: LARC(torch.optim.AdamW(groups)),
}


def step(optimizer: Optimizer, layers: Layers, grads: Sequence[Tensor | None], lr: float | None) -> None:
    for layer, grad in zip(layers, grads, strict=True):
        layer.grad = None if grad is None else grad.clone()
    if lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr
    optimizer.step()


# ---------------------------------------------------------------------------------------------- schedules

BASE_LRS = (0.5, 0.25)
SAVED_SCHEDULE, LAST_SCHEDULE = 7, 24
OURS: dict[str, dict[str, Any]] = {
    "CosineAnnealing": {"max_steps": 20, "warmup_steps": 4, "min_lr": 0.01},
    "CosineDecay": {"max_steps": 20, "begin_decay_at": 3, "min_lr_ratio": 0.1, "warmup_steps": 4},
    "ExpDecay": {"decay_steps": 5, "decay_rate": 0.5, "use_staircase_decay": True, "begin_decay_at": 2},
    "InvPolyDecay": {"min_lr": 0.01, "max_steps": 20, "power": 2.0},
    "InverseSquareRootAnnealing": {"max_steps": 20, "warmup_ratio": 0.2},
    "NoamAnnealing": {"d_model": 16, "warmup_steps": 4, "min_lr": 0.01},
    "NoamHoldAnnealing": {"max_steps": 20, "warmup_steps": 4, "hold_steps": 2, "decay_rate": 1.0},
    "PiecewiseConstant": {"boundaries": [2, 9], "decay_rates": [0.5, 0.25]},
    "PolyDecay": {"max_steps": 20, "power": 2.0, "begin_decay_at": 5, "min_lr": 0.01, "warmup_steps": 4},
    "PolynomialDecayAnnealing": {"max_steps": 20, "warmup_steps": 4, "power": 2.0, "cycle": True},
    "PolynomialHoldDecayAnnealing": {"max_steps": 20, "warmup_steps": 4, "hold_ratio": 0.25, "power": 2.0},
    "SquareAnnealing": {"max_steps": 20, "warmup_steps": 4},
    "SquareRootAnnealing": {"max_steps": 20, "warmup_steps": 4},
    "T5InverseSquareRootAnnealing": {"max_steps": 20, "constant_steps": 5},
    "TransformerPolicy": {"d_model": 16, "warmup_steps": 4, "max_lr": 0.05, "coefficient": 2.0},
    "WarmupAnnealing": {"max_steps": 20, "warmup_ratio": 0.3},
    "WarmupHoldAnnealExponential": {"max_steps": 20, "warmup_steps": 2, "gamma": 0.9, "num_decays": 9},
    "WarmupHoldAnnealLinear": {"max_steps": 20, "warmup_steps": 4, "hold_steps": 2},
    "WarmupHoldAnnealOneMinusSquareRoot": {"max_steps": 20, "warmup_steps": 4, "hold_steps": 2},
    "WarmupHoldPolicy": {"max_steps": 20, "warmup_steps": 4, "hold_steps": 2},
    "WarmupPolicy": {"warmup_steps": 12},
}


def sgd_to_schedule() -> torch.optim.SGD:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in BASE_LRS]
    groups = [{"params": [weight], "lr": lr} for weight, lr in zip(weights, BASE_LRS, strict=True)]
    return torch.optim.SGD(groups, momentum=0.5)


def _sequential(optimizer: Optimizer) -> Any:
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.25, total_iters=4)
    cosine = lr_scheduler.CosineAnnealing(optimizer, max_steps=16, min_lr=0.01)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[4])


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    **{
        name: lambda optimizer, name=name, arguments=arguments: getattr(lr_scheduler, name)(optimizer, **arguments)
        for name, arguments in OURS.items()
    },
    "SequentialLR": _sequential,
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=[1.0, 0.5], total_steps=LAST_SCHEDULE + 1),
}


def learning_rates(schedule: Any, steps: int) -> list[list[float]]:
    """The LRs that each of the next optimizer steps sees."""
    lrs = []
    for _ in range(steps):
        lrs.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return lrs


def scheduled(optimizer: Optimizer, schedule: Any, steps: int) -> Tensor:
    """The weights after some steps of an optimizer and its schedule."""
    [weight] = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        step(optimizer, [weight], [torch.tensor([0.0, 3.0])], None)
        schedule.step()
    return weight.detach()


# ---------------------------------------------------------------------------------------------- Lightning

EPOCHS, SAVED_EPOCHS = 4, 2
OPTIM = """
peak: 0.02
optim:
  name: novograd
  lr: ${peak}
  betas: [0.9, 0.5]
  weight_decay: 0.01
  no_decay: bias
  param_groups: [{match: "layers.2.*", lr: 0.01}]
  larc: {trust_coefficient: 0.05}
  sched: {name: CosineAnnealing, warmup_steps: 3, min_lr: 0.001, max_steps: 16}
"""


class Regression(OptimMixin, pl.LightningModule):
    def __init__(self, optim: DictConfig, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return torch.nn.functional.mse_loss(self.layers(batch[0]), batch[1])


def regression() -> Regression:
    return Regression(OmegaConf.create(OPTIM).optim, width=6)


def points() -> DataLoader:
    """Four batches of small fractions, always the same."""
    inputs = (torch.arange(48).reshape(16, 3) * 7 % 11 - 5) / 4
    targets = (torch.arange(32).reshape(16, 2) * 5 % 7 - 3) / 4
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def trainer(max_epochs: int) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


# ---------------------------------------------------------------------------------------------- the speech recipe

RATE, UTTERANCES = 16000, 16
SAVED_RECIPE = 5  # optimizer steps of four an epoch: the second epoch has just begun
RECIPE = [
    "data=manifest",
    "data.batch_size=4",
    "data.num_workers=0",
    "model.preprocessor.features=16",
    "model.preprocessor.dither=0.0",
    "model.encoder.jasper=[{filters:16,kernel:5,stride:2,separable:true,residual:false},"
    "{filters:16,kernel:3,repeat:2,separable:true,residual:true},{filters:16,kernel:1,residual:false}]",
    "model.decoder.feat_in=16",
    "optim.no_decay=[bias,norm]",
    "logger=none",
    "trainer.max_epochs=2",
    f"checkpoint.every_n_steps={SAVED_RECIPE}",
    "trainer.enable_progress_bar=false",
    "+trainer.enable_model_summary=false",
]


def tone(index: int) -> np.ndarray:
    """0.5 to 1 s of two triangle waves, int16; of integers alone, so that every machine makes the same bits."""
    n = np.arange(8000 + 500 * (index * 7 % 16), dtype=np.int64)
    high, low = 40 + 3 * index, 90 + 11 * index  # periods in samples
    triangles = sum(abs((n * 2) % (2 * period) - period) * 6000 // period for period in (high, low))
    return (triangles - 6000).astype(np.int16)


def write_tones(folder: Path) -> Path:
    """A manifest of 16 utterances; their audio is FLAC of 16 bits."""
    rows = []
    for index in range(UTTERANCES):
        samples = tone(index)
        soundfile.write(str(folder / f"{index}.flac"), samples, RATE, subtype="PCM_16")
        text = "ab"[index % 2] + " " + "cdef"[index % 4]
        rows.append({"audio_filepath": f"{index}.flac", "duration": len(samples) / RATE, "text": text})
    manifest = folder / "tones.json"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def digest_of_tones() -> str:
    return hashlib.sha256(b"".join(tone(index).astype("<i2").tobytes() for index in range(UTTERANCES))).hexdigest()


def recipe_config(manifest: Path, resume_from: Path | None = None) -> DictConfig:
    overrides = [*RECIPE, *(f"data.{split}={manifest}" for split in ("train", "dev", "test"))]
    overrides += [] if resume_from is None else [f"resume_from='{resume_from}'"]
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        return compose("asr", overrides=overrides)
