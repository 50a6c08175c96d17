"""The commands of README.md's table, as printed, in an empty folder; what first.py prints is what the page says."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.docs

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^\| .*`python (examples/[^`]+)` \|$", README, re.MULTILINE)


def run(command: str, folder) -> str:
    """All that it prints, in a folder in which examples/ is the repository's."""
    (folder / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_every_example_is_in_the_table():
    scripts = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} - {"examples/spirals.py"}
    assert {command.split()[0] for command in COMMANDS} == scripts


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_a_way_in_works_as_printed(command, tmp_path):
    said = run(command, tmp_path)
    accuracy = re.search(r"([\d.]+)% (right|of the points)", said)
    assert float(accuracy[1]) > 95
    if "first.py" not in command:
        optimizer = "AdamW" if "adamw" in command else "NovoGrad"
        assert f"{optimizer}, lr 0.0000 at the end" in said


def test_the_first_example_prints_what_the_page_says(tmp_path):
    said = run("examples/first.py", tmp_path)
    *lines, last = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1].splitlines()
    for line in lines:
        assert line in said
    assert last.split("%")[1] in said
