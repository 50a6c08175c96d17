"""benchmarks/large_batch.py: which trials are run, that none is run twice, and what the page says of them."""

import importlib
import json
import random
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_module

from lightning_novograd import build_optimizers
from lightning_novograd.recipes.asr.training.settings import RunSettings, plan_batches

NAMES = ("NovoGrad", "AdamW", "SGD", "SGD+LARC")


@pytest.fixture(scope="module")
def modules():
    """The script and what it imports from beside it; none of them stays importable."""
    names = ("large_batch_runs", "large_batch_report", "large_batch", "runs_file", "trainings")
    shadowed = sys.modules.pop("large_batch", None)  # tests/large_batch, for pytest
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield tuple(importlib.import_module(name) for name in names[:3])
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in names:
            sys.modules.pop(name, None)
        if shadowed is not None:
            sys.modules["large_batch"] = shadowed


@pytest.fixture
def runs(modules):
    return modules[0]


@pytest.fixture
def settings():
    versions = {"date": "2026-01-02", "torch": "2", "lightning": "2", "python": "3.11", "cpu": "X", "cores": 2}
    return {"epochs": 8.0, "utterances": 2000, "micro_batch": 16, "overrides": [], **versions}


class Training:
    """Ends at once; its WER is least at the given exponents."""

    def __init__(self, runs, trial, best, error=None):
        noise = random.Random(str(trial)).random() / 100
        wer = 0.1 + 0.1 * abs(trial.exponent - best) + noise
        self.result, self.error, self.is_stopped = runs.Outcome(wer, wer / 2, 2 * wer, wer), error, False

    def poll(self):
        return 0

    def stop(self):
        self.is_stopped = True

    def outcome(self):
        if self.error is not None:
            raise self.error
        return self.result, {"wall_s": 1.0}


def complete(runs, batches=(16, 64, 256, 1024), wer=lambda trial: 0.1 + 0.1 * abs(trial.exponent)):
    outcomes = {}
    while missing := [trial for trial in runs.plan(outcomes, batches) if trial not in outcomes]:
        for trial in missing:
            outcomes[trial] = runs.Outcome(*[wer(trial)] * 4)
    return outcomes


def write(runs, path, settings, outcomes):
    file = sys.modules["runs_file"].RunsFile(path, settings, (), runs.KIND)
    for trial, outcome in outcomes.items():
        file.add(trial, outcome)
    file.close()


def test_all_optimizers_have_as_many_trials_and_the_middle_comes_first(runs):
    wanted = runs.plan({})
    assert len(wanted) == len(set(wanted)) == 4 * 4 * 5
    assert {trial.exponent for trial in wanted[:16]} == {0}
    assert {trial.seed for trial in wanted} == {1}
    assert set(NAMES) == set(runs.CONTENDERS)


def test_the_grid_grows_with_the_root_of_the_batch_by_factors_of_the_root_of_ten(runs):
    lrs = [runs.Trial(16, "NovoGrad", exponent, 1).lr for exponent in (-2, -1, 0, 1, 2)]
    assert lrs == [0.002, 0.00632, 0.02, 0.0632, 0.2]
    assert runs.Trial(1024, "NovoGrad", 0, 3).lr == 0.16


@pytest.mark.parametrize(("batch", "steps"), [(16, 1000), (64, 250), (256, 62), (1024, 16)])
def test_all_batches_hear_as_many_utterances(runs, batch, steps):
    assert runs.steps_of(batch, 8, 2000) == steps
    assert runs.steps_of(batch, 0, 2000) == 1


def test_other_seeds_follow_the_search(runs):
    outcomes = complete(runs)
    assert len(outcomes) == 4 * 4 * (5 + 2)
    assert {(t.exponent, t.seed) for t in outcomes if t.seed != 1} == {(0, 2), (0, 3)}


def test_a_best_lr_at_the_edge_extends_the_grid_of_all_optimizers_at_that_batch(runs):
    def wer(trial):
        far = trial.optimizer == "SGD" and trial.batch == 64
        return 0.5 + 0.01 * (-trial.exponent if far else abs(trial.exponent))

    outcomes = complete(runs, wer=wer)
    assert {(t.batch, t.optimizer) for t in outcomes if t.exponent == 3 and t.seed == 1} == {(64, n) for n in NAMES}
    assert not any(abs(t.exponent) > 3 for t in outcomes)
    assert runs.at_edge("SGD", 64, outcomes)  # and is said, where one more was not enough
    assert not runs.at_edge("AdamW", 64, outcomes)
    assert {t.exponent for t in outcomes if t.seed == 2} == {0, 3}


def test_where_no_word_is_right_the_characters_decide_and_divergence_is_worst(runs):
    found = {
        runs.Trial(16, "SGD", exponent, 1): runs.Outcome(1.0, cer, 1.0, 1.0) for exponent, cer in [(0, 0.8), (1, 0.7)]
    }
    found[runs.Trial(16, "SGD", 2, 1)] = runs.DIVERGED
    assert runs.best_exponent("SGD", 16, found) == 1
    found[runs.Trial(16, "SGD", -1, 1)] = runs.Outcome(1.07, 0.6, 1.0, 1.0)  # words that were never said
    assert runs.best_exponent("SGD", 16, found) == -1


@pytest.mark.parametrize(
    ("name", "built"), [("NovoGrad", "NovoGrad"), ("AdamW", "AdamW"), ("SGD", "SGD"), ("SGD+LARC", "LARC")]
)
def test_a_trial_is_a_config_of_the_recipe(modules, name, built):
    runs, _, script = modules
    trial = runs.Trial(256, name, 1, 2)
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        settings = RunSettings.read(compose("asr", overrides=script.overrides_of(trial, 8)), "")
    assert (settings.seed, settings.optim["lr"], settings.trainer["max_steps"]) == (2, trial.lr, 62)
    assert plan_batches(settings, settings.data["batch_size"]).accumulate_grad_batches == 16
    optimizer = build_optimizers(settings.optim, torch.nn.Linear(2, 2), max_steps=62)["optimizer"]
    assert type(optimizer).__name__ == built
    assert optimizer.param_groups[0].get("nesterov", True)


@pytest.mark.parametrize("jobs", [1, 3])
def test_runs_all_once_and_a_second_call_goes_on(modules, tmp_path, settings, jobs):
    runs, _, script = modules
    path, started = tmp_path / "runs.jsonl", []

    def start(trial):
        if len(started) == 30:
            raise KeyboardInterrupt
        started.append(trial)
        return Training(runs, trial, best=1)

    file = script.RunsFile(path, settings, script.FIXED, runs.KIND)
    with pytest.raises(KeyboardInterrupt):
        script.carry_out(file, start, runs.plan, jobs, poll=0)
    file.close()
    with path.open("a") as torn:
        torn.write('{"batch": 16, "opti')
    kept = runs.KIND.read(path)[1]
    assert 30 - jobs <= len(kept) <= 30

    started.clear()
    again = []
    file = script.RunsFile(path, settings, script.FIXED, runs.KIND)

    def start_again(trial):
        again.append(trial)
        return Training(runs, trial, best=1)

    assert script.carry_out(file, start_again, runs.plan, jobs, poll=0) == []
    file.close()
    assert not set(again) & set(kept)
    assert len(again) + len(kept) == len(set(again) | set(kept)) == 4 * 4 * 7
    assert runs.KIND.read(path)[1] == file.outcomes
    assert sum("opti" in line for line in path.read_text().splitlines()) == 4 * 4 * 7


def test_a_run_that_fails_is_left_to_the_next_call(modules, tmp_path, settings, capsys):
    runs, _, script = modules
    bad = runs.Trial(64, "SGD", -1, 1)

    def start(trial):
        return Training(runs, trial, best=0, error=RuntimeError("exit code -9") if trial == bad else None)

    file = script.RunsFile(tmp_path / "runs.jsonl", settings, script.FIXED, runs.KIND)
    assert script.carry_out(file, start, partial(runs.plan, batches=[16, 64]), 2, poll=0) == [bad]
    assert "exit code -9" in capsys.readouterr().err
    assert bad not in file.outcomes
    assert {trial.batch for trial in file.outcomes if trial.seed == 2} == {16}  # those of 64 wait for the whole search


def test_other_settings_and_another_writer_are_refused(modules, tmp_path, settings):
    runs, _, script = modules
    path = tmp_path / "runs.jsonl"
    file = script.RunsFile(path, settings, script.FIXED, runs.KIND)
    with pytest.raises(SystemExit, match="another call"):
        script.RunsFile(path, settings, script.FIXED, runs.KIND)
    file.close()
    with pytest.raises(SystemExit, match=r"epochs 8\.0, not 4"):
        script.RunsFile(path, {**settings, "epochs": 4}, script.FIXED, runs.KIND)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((0.1, 0.2, 0.3), (0.3, 0.4, 0.5), "no difference seen"),
        ((0.1, 0.2, 0.3), (0.31, 0.4, 0.5), "better"),
        ((0.6, 0.7, 0.8), (0.3, 0.4, 0.5), "worse"),
        ((1.0, 1.0, 0.9), (1.0, 0.99, 1.0), "no words yet"),
        ((0.1, 0.2), (0.3, 0.4, 0.5), "open"),
    ],
)
def test_ranges_that_overlap_are_no_difference(modules, first, second, said):
    assert modules[1].compare(first, second) == said


def test_page_of_complete_runs(modules, tmp_path, settings, monkeypatch):
    runs, report, _ = modules
    monkeypatch.setattr(report, "draw", lambda *_: None)  # the other page has a picture, that takes a second

    def wer(trial):
        behind = 0.1 if trial.optimizer == "SGD" else 0.0
        return 0.01 * trial.seed + 0.1 * abs(trial.exponent) + behind

    outcomes = complete(runs, wer=wer)
    outcomes[runs.Trial(1024, "SGD", 2, 1)] = runs.DIVERGED
    for trial, outcome in outcomes.items():
        if trial.batch == 1024 and not outcome.diverged:
            outcomes[trial] = runs.Outcome(1.0, outcome.dev_cer, 1.0, outcome.test_cer)
    write(runs, tmp_path / "runs.jsonl", settings, outcomes)
    report.write_report([tmp_path / "runs.jsonl"], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| 16 | 1000 | AdamW | 0.002 | 2.0 (1.0 to 3.0) | 2.0 (1.0 to 3.0) |" in page
    assert "| 64 | no difference seen / no difference seen | better / better |" in page
    counted = "of 12 pairs 6 show no difference; in 6 the layer-wise optimizer is better, in 0 worse"
    assert f"- test: {counted}; 4 more have learned no words yet" in page.replace("\n  ", " ")
    assert "| no words yet (CER: better) / no words yet (CER: better) |" in page
    assert "112 runs, 1 of them diverged." in page
    assert "1 of 7 runs diverged" in page
    assert "**1.0 / 1.0**" in page
    assert "Not complete" not in page
    assert not [line for line in page.splitlines() if len(line) > 120 and not line.startswith("|")]


def test_nothing_is_said_of_a_loser_whose_best_lr_is_the_outermost(modules, tmp_path, settings, monkeypatch):
    runs, report, _ = modules
    monkeypatch.setattr(report, "draw", lambda *_: None)

    def wer(trial):
        of_lr = 0.8 - 0.1 * trial.exponent if trial.optimizer == "SGD" else 0.1 * abs(trial.exponent)
        return of_lr + 0.01 * trial.seed

    write(runs, tmp_path / "runs.jsonl", settings, complete(runs, batches=[16], wer=wer))
    report.write_report([tmp_path / "runs.jsonl"], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    untuned = report.UNTUNED
    seen = "no difference seen / no difference seen"
    assert f"| 16 | {seen} | {untuned} / {untuned} | {seen} | {untuned} / {untuned} |" in page
    assert "of 2 pairs 2 show no difference" in page


def test_page_of_runs_that_are_not_complete(modules, tmp_path, settings):
    runs, report, _ = modules
    outcomes = complete(runs, batches=[16])
    few = {trial: outcome for trial, outcome in outcomes.items() if (trial.optimizer, trial.exponent) == ("SGD", 0)}
    more = {runs.Trial(1024, "NovoGrad", 0, 1): runs.DIVERGED}
    write(runs, tmp_path / "runs.jsonl", settings, few)
    write(runs, tmp_path / "longer.jsonl", {**settings, "epochs": 32.0}, more)
    report.write_report([tmp_path / "runs.jsonl", tmp_path / "longer.jsonl"], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    listed = "19 of batch 16, 20 of batch 64, 20 of batch 256, 20 of batch 1024."
    assert f"**Not complete**: at least 79 runs are missing, {listed}" in page.replace("\n", " ")
    assert "**Not complete**: at least 19 runs are missing, 19 of batch 1024." in page
    assert "edge" not in page
    assert "| 64 | 250 | AdamW | - |" in page
    assert "| 16 | open / open |" in page
    assert "--epochs 32 --batches 1024" in page
    assert (tmp_path / "page.png").stat().st_size < 200_000
    assert json.loads((tmp_path / "longer.jsonl").read_text().splitlines()[1])["diverged"]
