"""NovoGrad, AdamW, Adam, SGD with momentum, SGD with LARC and Muon on three tasks, searched alike.

As AlgoPerf's external tuning has it: five trials of each optimizer on each task, from a stated space of learning rates
and weight decays, the same for all tasks; the best of them by the dev set, run with three seeds, is what the test set
is asked about. Then the best settings without warmup, with three seeds, and at 1/4 to 4 times their learning rate.

    OMP_NUM_THREADS=1 python benchmarks/optimizers.py --runs FILE.jsonl --fsdd CLONE --jobs 2
    OMP_NUM_THREADS=1 python benchmarks/optimizers.py --costs COSTS.json        # time and memory; idle machine
    python benchmarks/optimizers.py --runs FILE.jsonl --costs COSTS.json --report PAGE.md

CLONE is a clone of https://github.com/Jakobovski/free-spoken-digit-dataset. Every finished training is a line of the
runs file: called again, it goes on with what is missing. The report can be made at any time and says what it lacks.
"""

import argparse
import os
import signal
import sys
from functools import partial
from pathlib import Path

from optimizers_costs import write_costs
from optimizers_report import write_report
from optimizers_runs import CONTENDERS, KIND, POINTS, TASKS, Outcome, Trial, diverged, plan
from runs_file import RunsFile
from trainings import ALIKE, Process, carry_out, machine

FIXED = ("tasks", "points", "overrides")


def train(trial: Trial, overrides: dict[str, list[str]]) -> Process[Outcome]:
    """Begin the training of a trial."""
    own = [*trial.overrides(), *ALIKE, *overrides.get(trial.task, [])]
    return Process(trial.task, own, partial(Outcome.of, task=trial.task), diverged(trial.task))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("NOVOGRAD_TEST_DATA")
    parser.add_argument("--fsdd", default=data and f"{data}/fsdd", help="default: $NOVOGRAD_TEST_DATA/fsdd")
    parser.add_argument("--runs", type=Path, help="file of the finished runs, made or gone on with")
    parser.add_argument("--costs", type=Path, help="file of the steps' times; without --report, it is written")
    parser.add_argument("--report", type=Path, help="write this page and its picture from both files, and run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, one thread each")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--optimizers", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("overrides", nargs="*", help="of the configs of all recipes, for all runs; after --")
    arguments = parser.parse_args()
    if arguments.report:
        if not arguments.runs:
            parser.error("--runs: what the report is of")
        write_report(arguments.runs, arguments.costs, arguments.report)
        return
    if arguments.costs:
        write_costs(arguments.costs, machine())
        return
    if not arguments.runs:
        parser.error("--runs or --costs: what is to be made")
    if "asr" in arguments.tasks and not arguments.fsdd:
        parser.error("--fsdd or NOVOGRAD_TEST_DATA: where the recordings are")
    alike = {"tasks": {name: list(task.overrides) for name, task in TASKS.items()}, "points": [list(p) for p in POINTS]}
    settings = {**alike, "overrides": arguments.overrides, **machine()}
    overrides = {task: list(arguments.overrides) for task in TASKS}
    overrides["asr"].append(f"data.root={arguments.fsdd}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no training outlives this
    failed = carry_out(
        RunsFile(arguments.runs, settings, FIXED, KIND),
        partial(train, overrides=overrides),
        partial(plan, tasks=arguments.tasks, optimizers=arguments.optimizers),
        arguments.jobs,
    )
    if failed:
        sys.exit(f"failed, to be tried again: {'; '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
