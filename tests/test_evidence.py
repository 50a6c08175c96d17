"""`make evidence`: what was done is not done again, what failed is; its commands are understood; README's table."""

import importlib
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "docs"))
from commands import check, split

sys.path.pop(0)


@pytest.fixture(scope="module")
def modules():
    """The command, its steps, README's table; nothing beside them stays importable."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield tuple(importlib.import_module(name) for name in ("evidence", "evidence_steps", "readme_results"))
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in set(sys.modules) - before:
            if "benchmarks" in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.fixture
def evidence(modules):
    return modules[0]


@pytest.fixture
def command(modules, tmp_path):
    """Makes a command that counts its calls in a file, prints their number, and fails where a file is missing."""

    def make(name, shows="output"):
        program = f"""
import pathlib
counter = pathlib.Path({str(tmp_path / name)!r})
calls = counter.read_text() + "x" if counter.exists() else "x"
counter.write_text(calls)
pathlib.Path({str(tmp_path / (name + ".txt"))!r}).write_text("written by it")
print("call", len(calls))
raise SystemExit(0 if pathlib.Path({str(tmp_path / (name + ".ok"))!r}).exists() else 3)
"""
        return modules[1].Command(f"-c {shlex.quote(program)}", shows=shows)

    return make


@pytest.fixture
def run(evidence, tmp_path):
    """Carries out steps as a call of the command does, with what the state file holds."""

    def call(steps, new=False):
        state = tmp_path / "progress.json"
        progress = evidence.Progress.read(state, new)
        progress.date, progress.hardware = "2026-01-02", "x1"
        names = ("fsdd", "corpus", "nemo", "jobs")
        return evidence.carry_out(steps, progress, state, {**dict.fromkeys(names, "1"), **places(tmp_path)})

    return call


def places(tmp_path):
    return {"results": str(tmp_path), "state": str(tmp_path)}


def test_a_call_goes_on_where_the_last_one_failed(modules, command, run, tmp_path, capfd):
    steps = [
        modules[1].Step("one", "One", (command("a"), command("b"))),
        modules[1].Step("two", "Two", (command("c", shows=str(tmp_path / "c.txt")),), "About it.", picture="png"),
    ]
    for name in ("a", "c"):
        (tmp_path / f"{name}.ok").touch()
    assert run(steps) == ["one"]
    assert "one: exit code 3: OMP_NUM_THREADS=1 python -c" in capfd.readouterr().err
    assert not (tmp_path / "one_x1_2026-01-02.md").exists()
    two = (tmp_path / "two_x1_2026-01-02.md").read_text()
    assert two.startswith("# Two\n\n")
    assert "![Two](two_x1_2026-01-02.png)" in two
    assert "written by it" in two

    (tmp_path / "b.ok").touch()
    assert run(steps) == []
    assert [len((tmp_path / name).read_text()) for name in "abc"] == [1, 2, 1]
    page = (tmp_path / "one_x1_2026-01-02.md").read_text()
    assert "call 1" in page  # of the first call
    assert "call 2" in page
    assert "two: done before" in capfd.readouterr().out


def test_a_killed_call_keeps_its_date_and_a_new_one_forgets_it(evidence, tmp_path):
    path = tmp_path / "progress.json"
    evidence.Progress("2020-01-01", "x1", {"a": [1.0]}).write(path)
    assert evidence.Progress.read(path, new=False).date == "2020-01-01"
    assert evidence.Progress.read(path, new=True).done == {}


def steps():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("evidence_steps").STEPS
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("step", steps(), ids=lambda step: step.name)
def test_the_programs_understand_their_commands(step):
    for command in step.commands:
        words = command.words.format(
            out="outputs/x",
            results="outputs",
            state="outputs",
            fsdd="CLONE",
            corpus="CORPUS",
            nemo="NEMO",
            jobs="2",
            date="D",
        )
        [parts] = split(f"python {words}")
        made = parts.index("--faults") if "--faults" in parts else len(parts)  # and its file, which is not there yet
        check(parts[:made] + parts[made + 2 :], None)


def test_names_of_pages_differ():
    assert len({step.name for step in steps()}) == len(steps())


def test_the_table_of_the_readme_is_that_of_the_newest_results(modules):
    _, _, table = modules
    if (runs := table.newest()) is None:
        pytest.skip("no comparison of optimizers is complete yet: make evidence")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert table.with_table(readme, runs) == readme, "run: python benchmarks/readme_results.py"


def test_a_readme_without_a_place_for_the_table_is_refused(modules):
    with pytest.raises(SystemExit, match="once each"):
        modules[2].with_table("# Read me", Path("optimizers_x_2026-01-02.jsonl"))


def write_runs(table, path, tasks):
    """All trials of some tasks, each with a metric of its own."""
    runs = sys.modules["optimizers_runs"]
    outcomes = {}
    while missing := [trial for trial in runs.plan(outcomes, tasks) if trial not in outcomes]:
        for trial in missing:
            metric = 0.01 * (1 + trial.point + trial.seed + list(runs.CONTENDERS).index(trial.optimizer))
            outcomes[trial] = runs.Outcome(metric, 2 * metric, metric)
    file = sys.modules["runs_file"].RunsFile(path, {"date": "2026-01-02"}, (), runs.KIND)
    for trial, outcome in outcomes.items():
        file.add(trial, outcome)
    file.close()


def test_the_table_is_of_the_newest_complete_runs_and_can_be_written_again(modules, tmp_path):
    _, _, table = modules
    assert table.newest(tmp_path) is None
    every = list(sys.modules["optimizers_runs"].TASKS)
    for name, tasks in (("z_2026-01-02", every), ("a_2026-02-01", every), ("a_2026-03-01", every[:1])):
        write_runs(table, tmp_path / f"optimizers_{name}.jsonl", tasks)
    runs = table.newest(tmp_path)
    assert runs.stem == "optimizers_a_2026-02-01"
    text = f"# Read me\n\n{table.BEGIN}\nold\n{table.END}\n\nThe rest.\n"
    once = table.with_table(text, runs)
    assert table.with_table(once, runs) == once
    assert "| NovoGrad | 3.0 / 6.0 | 3.0 / 6.0 | 0.030 / 0.060 |" in once
    assert "| Muon |  |  | 0.080 / 0.160 |" in once
    assert "old" not in once
    assert once.endswith(f"{table.END}\n\nThe rest.\n")
