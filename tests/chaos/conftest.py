"""Everything in this folder has the marker `chaos`: processes that are killed, stopped and starved of disk.

`--faults FILE` writes the table of what was done, what was printed and how long it took; the tests say the rows.
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


def pytest_sessionfinish(session):
    path = session.config.getoption("--faults")
    if path and session.config.faults:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(HEAD + "".join(session.config.faults.values()), encoding="utf-8")
