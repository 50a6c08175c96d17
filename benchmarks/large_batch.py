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
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from large_batch_report import write_report
from large_batch_runs import BATCHES, CONTENDERS, DIVERGED, MICRO_BATCH, Outcome, RunsFile, Trial, plan, steps_of

TRAIN = Path(__file__).resolve().parent.parent / "recipes" / "asr" / "train.py"
UTTERANCES = 2000  # of the training set
FIXED = ("epochs", "utterances", "micro_batch", "overrides")
POLL = 0.5  # s


class Training(Protocol):
    """A training under way."""

    def poll(self) -> int | None: ...
    def stop(self) -> None: ...
    def outcome(self) -> tuple[Outcome, dict[str, Any]]: ...


def overrides_of(trial: Trial, epochs: float) -> list[str]:
    """What a trial changes in the config of train.py."""
    return [
        *("model=quartznet_small", "data=fsdd", f"data.batch_size={MICRO_BATCH}"),
        *CONTENDERS[trial.optimizer].overrides,
        *("sched=cosine", f"optim.lr={trial.lr}", f"seed={trial.seed}"),
        *(f"large_batch.global_batch_size={trial.batch}", "trainer.max_epochs=-1"),
        f"trainer.max_steps={steps_of(trial.batch, epochs, UTTERANCES)}",
        # measured once, when the last step is done
        *("trainer.check_val_every_n_epoch=1000000", "trainer.enable_progress_bar=false", "logger=none"),
    ]


class Process:
    """train.py in a process and a folder of its own.

    Args:
        trial: what to train.
        epochs: times the training set's number of utterances that are heard.
        overrides: of the config, for all trials alike.
    """

    def __init__(self, trial: Trial, epochs: float, overrides: list[str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="large_batch_")
        self.run_dir = Path(self.folder.name) / "run"
        own = [*overrides_of(trial, epochs), *overrides, f"hydra.run.dir={self.run_dir}"]
        self.errors = Path(self.folder.name) / "stderr.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(TRAIN), *own],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def outcome(self) -> tuple[Outcome, dict[str, Any]]:
        """What the process has reached, and what else is of interest.

        Raises:
            RuntimeError: it failed, and not because the training diverged.
        """
        text = self.errors.read_text(errors="replace")
        if self.process.returncode == 0:
            results = json.loads((self.run_dir / "results.json").read_text())
            more = {name: results[name] for name in ("optimizer_steps", "wall_s", "utt_per_s")}
            return Outcome(*(results[name] for name in ("dev_wer", "dev_cer", "test_wer", "test_cer"))), more
        for line in text.splitlines():
            if line.startswith("DivergenceError: "):
                return DIVERGED, {"at": line.split(": ")[1]}  # the step; the rest names files
        raise RuntimeError(f"exit code {self.process.returncode}: {text[-2000:]}")


def carry_out(
    runs: RunsFile,
    start: Callable[[Trial], Training],
    jobs: int,
    batches: Iterable[int] = BATCHES,
    optimizers: Iterable[str] = CONTENDERS,
    poll: float = POLL,
) -> list[Trial]:
    """Run what is missing, so many trainings at once.

    Returns:
        Trials that failed for another reason than divergence; the next call tries them again.
    """
    batches, optimizers = list(batches), list(optimizers)
    running: dict[Trial, Training] = {}
    failed: list[Trial] = []
    try:
        while True:
            done = {*runs.outcomes, *running, *failed}
            waiting = [trial for trial in plan(runs.outcomes, batches, optimizers) if trial not in done]
            for trial in waiting[: jobs - len(running)]:
                running[trial] = start(trial)
            if not running:
                return failed
            time.sleep(poll)
            for trial in [trial for trial, training in running.items() if training.poll() is not None]:
                training = running.pop(trial)
                try:
                    outcome, more = training.outcome()
                except (RuntimeError, OSError, ValueError, KeyError) as error:
                    failed.append(trial)
                    print(f"{trial}: failed, {error}", file=sys.stderr, flush=True)
                else:
                    runs.add(trial, outcome, **more)
                    wanted = len(plan(runs.outcomes, batches, optimizers))
                    said = "diverged" if outcome.diverged else f"dev {outcome.dev_wer:.4f} test {outcome.test_wer:.4f}"
                    print(f"{len(runs.outcomes)}/{wanted} {trial}: {said} {more}", flush=True)
                training.stop()
    finally:
        for training in running.values():
            training.stop()


def machine() -> dict[str, Any]:
    """What the report says of where the runs were made."""
    import lightning
    import torch

    with open("/proc/cpuinfo") as info:
        names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": sys.version.split()[0],
        "cpu": names[0] if names else "unknown",
        "cores": os.cpu_count(),
    }


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
    runs = RunsFile(arguments.runs[0], settings, FIXED)
    failed = carry_out(
        runs,
        lambda trial: Process(trial, arguments.epochs, overrides),
        arguments.jobs,
        arguments.batches,
        arguments.optimizers,
    )
    if failed:
        sys.exit(f"failed, to be tried again: {'; '.join(map(str, failed))}")


if __name__ == "__main__":
    main()
