"""What augmentation is worth on FSDD: three seeds of experiment=fsdd_novograd.

    OMP_NUM_THREADS=1 python benchmarks/augmented.py --fsdd CLONE --jobs 2

Prints a table of dev and test WER.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from runs_file import Kind, RunsFile
from tables import percent, row, table
from trainings import ALIKE, Process, carry_out

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Trial:
    """One training."""

    seed: int

    def row(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Outcome:
    """What it has reached, fractions."""

    dev: float
    test: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("NOVOGRAD_TEST_DATA")
    parser.add_argument("--fsdd", default=data and f"{data}/fsdd", help="default: $NOVOGRAD_TEST_DATA/fsdd")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, one thread each")
    arguments = parser.parse_args()
    if not arguments.fsdd:
        parser.error("--fsdd or NOVOGRAD_TEST_DATA: where the recordings are")

    def start(trial: Trial) -> Process[Outcome]:
        own = ("experiment=fsdd_novograd", f"data.root={arguments.fsdd}", f"seed={trial.seed}", *ALIKE)
        return Process("asr", own, lambda found: Outcome(found["dev_wer"], found["test_wer"]), Outcome(1.0, 1.0))

    with TemporaryDirectory() as folder:
        runs = RunsFile(Path(folder) / "runs.jsonl", {}, (), Kind(Trial, Outcome))
        if failed := carry_out(runs, start, lambda _: [Trial(seed) for seed in SEEDS], arguments.jobs):
            raise SystemExit(f"failed: {failed}")
    found = [runs.outcomes[Trial(seed)] for seed in SEEDS]
    print("\n".join(table("WER, %", *(f"seed {seed}" for seed in SEEDS), "median")))
    for split in ("dev", "test"):
        values = [getattr(outcome, split) for outcome in found]
        print(row(split, *map(percent, values), percent(median(values))))


if __name__ == "__main__":
    main()
