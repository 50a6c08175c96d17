"""Measures all that the README and the pages cite, into files of results with today's date: `make evidence`.

    python benchmarks/evidence.py --fsdd CLONE             # about a night on two cores; nothing else should run
    python benchmarks/evidence.py --fsdd CLONE --only optimizers large_batch
    python benchmarks/evidence.py --list

CLONE is a clone of https://github.com/Jakobovski/free-spoken-digit-dataset. Called again, it goes on where it was
broken off, under the date of its beginning; `--new` begins anew. A step that fails is reported, the others go on. In
the end the table of README.md is made of the new files.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evidence_steps import STEPS, Command, Step
from readme_results import write_table
from trainings import machine

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "outputs" / "evidence"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass
class Progress:
    """What is done, in a file that is written after each command.

    Args:
        date: of the beginning, which the files of results are named after.
        hardware: likewise.
        done: commands of each step that are done, and their seconds.
        printed: what they printed, by step, so far as its page shows it.
    """

    date: str
    hardware: str
    done: dict[str, list[float]] = field(default_factory=dict)
    printed: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, new: bool) -> "Progress":
        """That of an evidence that was broken off; a new one where there is none."""
        if path.is_file() and not new:
            return cls(**json.loads(path.read_text()))
        found = machine()
        return cls(found["date"], f"{found['cpu'].split()[-1].lower()}{found['cores']}")

    def write(self, path: Path) -> None:
        """Keep it, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".part")
        half.write_text(json.dumps(asdict(self), indent=1))
        half.replace(path)


def carry_out(steps: Iterable[Step], progress: Progress, state: Path, places: Mapping[str, str]) -> list[str]:
    """Run what is not done yet.

    Args:
        steps: in this order.
        progress: what is done; it is brought up to date.
        state: its file.
        places: what stands for the braces in the commands, but for ``{out}`` and ``{date}``.

    Returns:
        Names of the steps that failed.
    """
    failed = []
    for step in steps:
        page = Path(places["results"]) / f"{step.name}_{progress.hardware}_{progress.date}.md"
        own = {**places, "out": str(page.with_suffix("")), "date": progress.date}
        done, printed = progress.done.setdefault(step.name, []), progress.printed.setdefault(step.name, [])
        if len(done) == len(step.commands):
            print(f"{step.name}: done before", flush=True)
            continue
        for command in step.commands[len(done) :]:
            start = time.monotonic()
            code, text = execute(command, own)
            if code:
                failed.append(step.name)
                print(f"{step.name}: exit code {code}: {shown(command, step)}", file=sys.stderr, flush=True)
                break
            if command.shows:
                printed.append(text if command.shows == "output" else Path(command.shows.format(**own)).read_text())
            done.append(round(time.monotonic() - start, 1))
            progress.write(state)
        else:
            if step.title is not None:
                page.write_text(page_of(step, printed, page.stem), encoding="utf-8")
            print(f"{step.name}: {sum(done):.0f} s, {page.name}", flush=True)
    return failed


def execute(command: Command, places: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and standard output of a command; what it says of its errors goes where ours do."""
    words = [word.format(**places) for word in shlex.split(command.words)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(command.threads)}
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(f"  {line}", end="", flush=True)
    except BaseException:
        process.terminate()  # it ends its own processes
        raise
    finally:
        process.wait()
    return process.returncode, "".join(lines)


def page_of(step: Step, printed: Sequence[str], stem: str) -> str:
    """The page of a step whose commands print their results."""
    found = machine()
    versions = (
        f"{found['date']}; torch {found['torch']}, Lightning {found['lightning']}, Python {found['python']}, Linux"
    )
    lines = [f"# {step.title}", "", f"{versions}; {found['cpu']}, {found['cores']} cores.", ""]
    lines += [step.about, ""] if step.about else []
    lines += [f"![{step.title}]({stem}.{step.picture})", ""] if step.picture else []
    for command, text in zip((c for c in step.commands if c.shows), printed, strict=True):
        lines += [f"    {shown(command, step)}", "", text.strip(), ""]
    return "\n".join(lines)


def shown(command: Command, step: Step) -> str:
    """A command as a reader types it."""
    names = {"fsdd": "CLONE", "corpus": "CORPUS", "nemo": "NEMO_PYTHON", "jobs": "2", "out": step.name}
    words = command.words.format(**names, results="outputs", state="outputs", date="DATE")
    return f"OMP_NUM_THREADS={command.threads} python {words}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("NOVOGRAD_TEST_DATA")
    parser.add_argument("--fsdd", default=data and f"{data}/fsdd", help="default: $NOVOGRAD_TEST_DATA/fsdd")
    parser.add_argument("--nemo-python", help="a Python that has NeMo, to be measured beside; left out without one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help="these steps")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at once; default: the cores")
    parser.add_argument("--new", action="store_true", help="forget an evidence that was broken off")
    parser.add_argument("--list", action="store_true", help="name the steps, and how long those took that are done")
    arguments = parser.parse_args()
    state = STATE / "progress.json"
    progress = Progress.read(state, arguments.new)
    if arguments.list:
        for step in STEPS:
            seconds = progress.done.get(step.name, [])
            print(f"{step.name:18} {len(seconds)} of {len(step.commands)} commands done, {sum(seconds):.0f} s")
        return
    if not arguments.fsdd:
        parser.error("--fsdd or NOVOGRAD_TEST_DATA: where the recordings are")
    steps = [step for step in STEPS if step.name in (arguments.only or names)]
    if not arguments.nemo_python:
        steps = [step for step in steps if step.needs != "nemo"]
    places = {
        "fsdd": str(Path(arguments.fsdd).resolve()),
        "nemo": arguments.nemo_python or "",
        "jobs": str(arguments.jobs),
        "results": str(arguments.results.resolve()),
        "corpus": str(STATE / "corpus"),
        "state": str(STATE),
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = carry_out(steps, progress, state, places)
    if arguments.results.resolve() == RESULTS:
        write_table()
    if failed:
        sys.exit(f"failed, to be tried again: {', '.join(failed)}")


if __name__ == "__main__":
    main()
