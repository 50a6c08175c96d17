"""Everything in this folder has the marker `chaos`: processes that are killed, stopped and starved of disk.

`--faults FILE` writes the table of what was done, what was printed and how long it took; the tests say the rows. The
last line, also of the terminal, counts the kills behind which a run was exact.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

HEAD = "| what was done | ranks begun by | seconds until nothing is left | what was printed |\n|---|---|---:|---|\n"


def pytest_addoption(parser):
    parser.addoption("--faults", help="a file for the table of faults")


def pytest_configure(config):
    config.faults = {}
    config.kills = {}


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.chaos)


@pytest.fixture
def faults(request, tmp_path) -> Callable[[str, str, str, float | None], None]:
    """Adds a row to the table, with names of processes and folders that are the same every time."""

    def add(fault: str, launcher: str, printed: str, seconds: float | None) -> None:
        text = " ".join(re.sub(rf"{tmp_path.parent}/[^/]*", "...", printed).split())
        text = re.sub(r"^\[[^\]]*\]\[[^\]]*\]\[[^\]]*\] - ", "", text)
        text = re.sub(r"process \d+ on [\w.-]+", "process 1234 on host", text).replace("|", r"\|")
        shown = "" if seconds is None else f"{seconds:.1f}"
        request.config.faults[request.node.nodeid] = f"| {fault} | {launcher} | {shown} | `{text}` |\n"

    return add


@pytest.fixture
def kills(request) -> Callable[[int, bool], None]:
    """Takes how many kills there were in a test, and whether the run behind them was exact."""

    def add(count: int, is_exact: bool) -> None:
        request.config.kills[request.node.nodeid] = (count, is_exact)

    return add


def exact_kills(config) -> str:
    """What the tests of kills have seen; empty if none of them has run."""
    runs = config.kills.values()
    exact = sum(count for count, is_exact in runs if is_exact)
    said = "resumed and ended bit for bit as the run that nobody interrupted"
    return f"kill -9: {exact} of {sum(count for count, _ in runs)} ({len(runs)} runs) {said}" if runs else ""


def pytest_terminal_summary(terminalreporter, config):
    if line := exact_kills(config):
        terminalreporter.write_line(line)


def pytest_sessionfinish(session):
    path, line = session.config.getoption("--faults"), exact_kills(session.config)
    if path and (session.config.faults or line):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        rows = "".join(session.config.faults.values())
        Path(path).write_text(f"{HEAD * bool(rows)}{rows}\n{line}\n", encoding="utf-8")
