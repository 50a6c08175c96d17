"""Trainings of the recipes in processes of their own, several at once, each finished one kept."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from runs_file import OutcomeT, RunsFile, TrialT

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
POLL = 0.5  # s
ALIKE = (
    # measured once, when the last step is done
    "trainer.check_val_every_n_epoch=1000000",
    "trainer.enable_progress_bar=false",
    "logger=none",
)


class Training(Protocol[OutcomeT]):
    """A training under way."""

    def poll(self) -> int | None: ...
    def stop(self) -> None: ...
    def outcome(self) -> tuple[OutcomeT, dict[str, Any]]: ...


class Process(Training[OutcomeT]):
    """train.py of a recipe in a process of one thread and a folder of its own.

    Args:
        recipe: its folder's name.
        overrides: of its config.
        read: makes an outcome of what results.json holds.
        diverged: the outcome of a training that diverged.
    """

    def __init__(
        self, recipe: str, overrides: Iterable[str], read: Callable[[dict[str, Any]], OutcomeT], diverged: OutcomeT
    ) -> None:
        self.read, self.diverged = read, diverged
        self.folder = tempfile.TemporaryDirectory(prefix="training_")
        self.run_dir = Path(self.folder.name) / "run"
        self.errors = Path(self.folder.name) / "stderr.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(RECIPES / recipe / "train.py"), *overrides, f"hydra.run.dir={self.run_dir}"],
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

    def outcome(self) -> tuple[OutcomeT, dict[str, Any]]:
        """What the process has reached, and what else is of interest.

        Raises:
            RuntimeError: it failed, and not because the training diverged.
        """
        text = self.errors.read_text(errors="replace")
        if self.process.returncode == 0:
            results = json.loads((self.run_dir / "results.json").read_text())
            more = {name: results[name] for name in results if name in ("optimizer_steps", "wall_s", "utt_per_s")}
            return self.read(results), more
        for line in text.splitlines():
            if line.startswith("DivergenceError: "):
                return self.diverged, {"at": line.split(": ")[1]}  # the step; the rest names files
        raise RuntimeError(f"exit code {self.process.returncode}: {text[-2000:]}")


def carry_out(
    runs: RunsFile[TrialT, OutcomeT],
    start: Callable[[TrialT], Training[OutcomeT]],
    plan: Callable[[dict[TrialT, OutcomeT]], Sequence[TrialT]],
    jobs: int,
    poll: float = POLL,
) -> list[TrialT]:
    """Run what is missing, so many trainings at once.

    Args:
        runs: the finished ones.
        start: begins a training.
        plan: all trials that are known to be wanted, given what has come of the others.
        jobs: trainings at once.
        poll: s between two looks at them.

    Returns:
        Trials that failed for another reason than divergence; the next call tries them again.
    """
    running: dict[TrialT, Training[OutcomeT]] = {}
    failed: list[TrialT] = []
    try:
        while True:
            done = {*runs.outcomes, *running, *failed}
            waiting = [trial for trial in plan(runs.outcomes) if trial not in done]
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
                    wanted = len(plan(runs.outcomes))
                    print(f"{len(runs.outcomes)}/{wanted} {trial}: {outcome} {more}", flush=True)
                training.stop()
    finally:
        for training in running.values():
            training.stop()


def machine() -> dict[str, Any]:
    """What a report says of where the runs were made."""
    with open("/proc/cpuinfo") as info:
        names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "torch": version("torch"),
        "lightning": version("lightning"),
        "python": sys.version.split()[0],
        "cpu": names[0] if names else "unknown",
        "cores": os.cpu_count(),
    }
