"""What large_batch.py runs: optimizers, LR grids, the order of the trials, the file of the finished ones."""

import fcntl
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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


DIVERGED = Outcome(CHANCE, CHANCE, CHANCE, CHANCE, diverged=True)
Outcomes = dict[Trial, Outcome]


def steps_of(batch: int, epochs: float, utterances: int) -> int:
    """Optimizer steps that hear as many utterances as so many epochs have."""
    return max(1, round(epochs * utterances / batch))


def best_exponent(optimizer: str, batch: int, outcomes: Outcomes) -> int | None:
    """Of the LRs tried; by dev WER, then dev CER (WER is 1 until the first word is right), then nearest the middle."""
    tried = [
        (outcome.dev_wer, outcome.dev_cer, abs(trial.exponent), trial.exponent)
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


class RunsFile:
    """Finished trials, one JSON object a line after one of the settings that they share.

    Args:
        path: of the file; made if it is not there.
        settings: of this call. Those under `fixed` must be the file's.
        fixed: keys of what makes runs comparable.

    Raises:
        SystemExit: another call writes to it, or it holds runs of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], fixed: Iterable[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"{path}: another call is writing to it") from None
        self._drop_torn_line()
        if path.stat().st_size == 0:
            self._write({"settings": settings})
        known, self.outcomes = read_runs(path)
        for name in fixed:
            if known.get(name) != settings.get(name):
                raise SystemExit(f"{path} has runs with {name} {known.get(name)!r}, not {settings.get(name)!r}")

    def add(self, trial: Trial, outcome: Outcome, **more: Any) -> None:
        """Keep a finished trial."""
        self._write({**vars(trial), "lr": trial.lr, **vars(outcome), **more})
        self.outcomes[trial] = outcome

    def close(self) -> None:
        self._file.close()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def _drop_torn_line(self) -> None:
        """What a killed call has not finished writing."""
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._file.truncate(len(whole.encode()))


def read_runs(path: Path) -> tuple[dict[str, Any], Outcomes]:
    """Settings and finished trials of a file; a last line without an end is not one."""
    settings: dict[str, Any] = {}
    outcomes: Outcomes = {}
    for row in _rows(path):
        if "settings" in row:
            settings = row["settings"]
            continue
        trial = Trial(*(row[name] for name in Trial.__dataclass_fields__))
        if trial.lr != row["lr"]:
            raise SystemExit(f"{path}: {trial} was run with lr {row['lr']}: the grid was another one then")
        outcomes[trial] = Outcome(*(row[name] for name in Outcome.__dataclass_fields__))
    return settings, outcomes


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
