"""Which optimizer learns best from large batches, if each has its learning rate searched alike?

Trains quartznet_small on FSDD with NovoGrad, AdamW, SGD with Nesterov momentum and the same under LARC, at batches of
16 to 1024, for as many utterances each ("equal epochs"): five learning rates each, the best by dev WER with 3 seeds.
The null hypothesis is that of arXiv 2102.06356: tuned, Nesterov and Adam do as well as layer-wise optimizers.

    OMP_NUM_THREADS=1 python benchmarks/large_batch.py --fsdd CLONE --runs runs.jsonl --jobs 2
    python benchmarks/large_batch.py --runs runs.jsonl --report benchmarks/results/large_batch_HARDWARE_DATE.md

Every finished training is a line of the runs file: called again, it goes on with what is missing. The report can be
made at any time and says what it lacks.
"""

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path

from large_batch_report import write_report
from large_batch_runs import BATCHES, CONTENDERS, DIVERGED, KIND, MICRO_BATCH, Outcome, Trial, plan, steps_of
from runs_file import RunsFile
from trainings import ALIKE, Process, carry_out, machine

UTTERANCES = 2000  # of the training set
FIXED = ("epochs", "utterances", "micro_batch", "overrides")


def overrides_of(trial: Trial, epochs: float) -> list[str]:
    """What a trial changes in the config of train.py."""
    return [
        *("model=quartznet_small", "data=fsdd", f"data.batch_size={MICRO_BATCH}"),
        *CONTENDERS[trial.optimizer].overrides,
        *("sched=cosine", f"optim.lr={trial.lr}", f"seed={trial.seed}"),
        *(f"large_batch.global_batch_size={trial.batch}", "trainer.max_epochs=-1"),
        f"trainer.max_steps={steps_of(trial.batch, epochs, UTTERANCES)}",
        *ALIKE,
    ]


def train(trial: Trial, epochs: float, overrides: list[str]) -> Process[Outcome]:
    """Begin the training of a trial."""
    return Process("asr", [*overrides_of(trial, epochs), *overrides], Outcome.of, DIVERGED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("NOVOGRAD_TEST_DATA")
    parser.add_argument("--fsdd", default=data and f"{data}/fsdd", help="default: $NOVOGRAD_TEST_DATA/fsdd")
    about_runs = "file of the finished runs, made or gone on with; several for a report, the first with all batches"
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help=about_runs)
    parser.add_argument("--epochs", type=float, default=8, help="utterances heard by a run, in training sets")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, one thread each")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, choices=BATCHES)
    parser.add_argument("--optimizers", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument(
        "--report", type=Path, help="write this page and its picture from what there is, and run nothing"
    )
    parser.add_argument("overrides", nargs="*", help="of the config of train.py, for all runs; after --")
    arguments = parser.parse_args()
    if arguments.report:
        write_report(arguments.runs, arguments.report)
        return
    if len(arguments.runs) > 1:
        parser.error("--runs: several files are for --report alone")
    if not arguments.fsdd:
        parser.error("--fsdd or NOVOGRAD_TEST_DATA: where the recordings are")
    fixed = {"epochs": arguments.epochs, "utterances": UTTERANCES, "micro_batch": MICRO_BATCH}
    settings = {**fixed, "overrides": arguments.overrides, **machine()}
    overrides = [f"data.root={arguments.fsdd}", *arguments.overrides]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no training outlives this
    runs = RunsFile(arguments.runs[0], settings, FIXED, KIND)
    failed = carry_out(
        runs,
        partial(train, epochs=arguments.epochs, overrides=overrides),
        partial(plan, batches=arguments.batches, optimizers=arguments.optimizers),
        arguments.jobs,
    )
    if failed:
        sys.exit(f"failed, to be tried again: {'; '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
