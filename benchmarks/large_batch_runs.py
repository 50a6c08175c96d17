"""What large_batch.py runs: optimizers, LR grids, the order of the trials."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runs_file import Kind

BATCHES = (16, 64, 256, 1024)
REFERENCE = 16  # the batch that an optimizer's `base_lr` is for
MICRO_BATCH = 16  # of every global batch, so that BatchNorm sees the same number of utterances in all of them
SEARCH_SEED = 1
SEEDS = (1, 2, 3)
GRID = (0, 1, -1, 2, -2)  # exponents of sqrt(10), the middle first: a search that is cut short has seen that
CHANCE = 1.0  # WER and CER of a run that diverged


@dataclass(frozen=True)
class Contender:
    """An optimizer with all that is not searched.

    Args:
        name: in the tables.
        base_lr: the middle of the grid at batch 16.
        overrides: of the config of train.py.
        is_layer_wise: whether each layer's step has a length of its own.
    """

    name: str
    base_lr: float
    overrides: tuple[str, ...]
    is_layer_wise: bool = False


# betas and weight decay of NovoGrad, LARC and SGD are those of conf/optim, Nesterov and the betas of AdamW arXiv
# 2102.06356's and the usual ones of CTC models
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("NovoGrad", 0.02, ("optim=novograd",), is_layer_wise=True),
        Contender("AdamW", 0.002, ("optim=adamw", "optim.betas=[0.9,0.98]", "optim.weight_decay=0.001")),
        Contender("SGD", 0.01, ("optim=sgd", "+optim.nesterov=true")),
        Contender("SGD+LARC", 0.03, ("optim=sgd_larc", "+optim.nesterov=true"), is_layer_wise=True),
    )
}


@dataclass(frozen=True, order=True)
class Trial:
    """One training: what tells it from the others."""

    batch: int
    optimizer: str
    exponent: int  # the LR is the middle of the grid times sqrt(10) ** exponent
    seed: int

    @property
    def lr(self) -> float:
        """With three digits: the base times the square root of the batch's growth, times sqrt(10) ** exponent."""
        middle = CONTENDERS[self.optimizer].base_lr * math.sqrt(self.batch / REFERENCE)
        return float(f"{middle * 10 ** (self.exponent / 2):.3g}")

    def row(self) -> dict[str, Any]:
        """The fields and the LR."""
        return {**vars(self), "lr": self.lr}

    def __str__(self) -> str:
        return f"{self.optimizer} batch {self.batch} lr {self.lr:g} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a training has reached; error rates are fractions."""

    dev_wer: float
    dev_cer: float
    test_wer: float
    test_cer: float
    diverged: bool = False

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> "Outcome":
        """That of a run, from its results.json."""
        return cls(*(results[name] for name in ("dev_wer", "dev_cer", "test_wer", "test_cer")))

    def __str__(self) -> str:
        return "diverged" if self.diverged else f"dev {self.dev_wer:.4f} test {self.test_wer:.4f}"


DIVERGED = Outcome(CHANCE, CHANCE, CHANCE, CHANCE, diverged=True)
Outcomes = dict[Trial, Outcome]
KIND = Kind(Trial, Outcome)


def steps_of(batch: int, epochs: float, utterances: int) -> int:
    """Optimizer steps that hear as many utterances as so many epochs have."""
    return max(1, round(epochs * utterances / batch))


def best_exponent(optimizer: str, batch: int, outcomes: Outcomes) -> int | None:
    """Of the LRs tried; by dev WER, then dev CER, then nearest the middle.

    A WER above 1, of words that were never said, counts as 1: no word is right, and the characters decide.
    """
    tried = [
        (min(outcome.dev_wer, CHANCE), outcome.dev_cer, abs(trial.exponent), trial.exponent)
        for trial, outcome in outcomes.items()
        if (trial.optimizer, trial.batch, trial.seed) == (optimizer, batch, SEARCH_SEED)
    ]
    return min(tried)[-1] if tried else None


def search(batch: int, exponents: Iterable[int], optimizers: Iterable[str]) -> list[Trial]:
    """The trials of a grid, for all optimizers alike."""
    return [Trial(batch, name, exponent, SEARCH_SEED) for exponent in exponents for name in optimizers]


def extension(batch: int, outcomes: Outcomes, optimizers: Iterable[str]) -> tuple[int, ...]:
    """The exponents beyond the grid on the sides where the best LR of an optimizer is the outermost."""
    names = list(optimizers)
    grid = [trial for trial in search(batch, GRID, names)]
    if not set(grid) <= set(outcomes):
        return ()
    inside = {trial: outcomes[trial] for trial in grid}
    found = {best_exponent(name, batch, inside) for name in names}
    return tuple(edge + (1 if edge > 0 else -1) for edge in (max(GRID), min(GRID)) if edge in found)


def at_edge(optimizer: str, batch: int, outcomes: Outcomes) -> bool:
    """Whether the best LR is the largest or the smallest of those tried."""
    tried = [t.exponent for t in outcomes if (t.optimizer, t.batch, t.seed) == (optimizer, batch, SEARCH_SEED)]
    return bool(tried) and best_exponent(optimizer, batch, outcomes) in (min(tried), max(tried))


def plan(outcomes: Outcomes, batches: Iterable[int] = BATCHES, optimizers: Iterable[str] = CONTENDERS) -> list[Trial]:
    """All trials that are known to be wanted, in the order in which they are run.

    The search goes through all cells for each exponent; where a best LR lies at the edge, the grid of that batch grows
    by one on that side for all optimizers; then come the other seeds of the best LRs.
    """
    sizes, names = list(batches), list(optimizers)
    wanted = [trial for exponent in GRID for batch in sizes for trial in search(batch, [exponent], names)]
    seeds = []
    for batch in sizes:
        more = search(batch, extension(batch, outcomes, names), names)
        wanted += more
        if set(search(batch, GRID, names)) | set(more) <= set(outcomes):
            for name in names:
                exponent = best_exponent(name, batch, outcomes)
                assert exponent is not None
                seeds += [Trial(batch, name, exponent, seed) for seed in SEEDS if seed != SEARCH_SEED]
    return [*wanted, *sorted(seeds, key=lambda trial: trial.seed)]
