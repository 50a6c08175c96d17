"""benchmarks/optimizers.py: the trials, the configs that they are, and what the page says of them."""

import importlib
import sys

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from lightning_novograd import build_optimizers

NAMES = ("NovoGrad", "AdamW", "Adam", "SGD", "SGD+LARC", "Muon")
SETTINGS = {"date": "2026-01-02", "torch": "2", "lightning": "2", "python": "3.11", "cpu": "X", "cores": 2}


@pytest.fixture(scope="module")
def modules():
    """The trials, what they say, and the page; nothing beside them stays importable."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield tuple(importlib.import_module(f"optimizers_{name}") for name in ("runs", "results", "report"))
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", "") and "benchmarks" in str(sys.modules[name].__file__):
                del sys.modules[name]


@pytest.fixture
def runs(modules):
    return modules[0]


def complete(runs, metric):
    """All trials, with a metric of each."""
    outcomes = {}
    while missing := [trial for trial in runs.plan(outcomes) if trial not in outcomes]:
        for trial in missing:
            outcomes[trial] = runs.Outcome(metric(trial), 2 * metric(trial), metric(trial))
    return outcomes


def even(trial):
    """Best at the middle of the space, a little other with each seed."""
    return 0.1 * (1 + abs(trial.point) + abs(trial.factor - 1)) + 0.001 * trial.seed


def test_every_optimizer_has_as_many_trials_at_the_same_places(runs):
    wanted = runs.plan({})
    assert len(wanted) == len(set(wanted)) == (5 + 5 + 6) * 5
    assert all(trial.is_search for trial in wanted)
    assert set(NAMES) == {trial.optimizer for trial in wanted}
    assert {trial.task for trial in wanted if trial.optimizer == "Muon"} == {"language"}
    for axis in zip(*runs.POINTS, strict=True):
        assert sorted(axis) == [0, 1, 2, 3, 4]  # each fifth of each axis once


def test_the_space_spans_two_decades_around_its_middle(runs):
    trials = runs.search("asr", "NovoGrad")
    assert sorted(trial.lr for trial in trials) == [0.0032, 0.008, 0.02, 0.05, 0.13]
    assert sorted(trial.weight_decay for trial in trials) == [0.00016, 0.0004, 0.001, 0.0025, 0.0063]
    assert runs.Trial("asr", "NovoGrad", 2, factor=0.25).lr == 0.13 / 4
    assert len({(trial.lr, trial.weight_decay) for trial in trials}) == 5


def test_what_follows_a_search_is_with_its_best_settings(runs):
    outcomes = complete(runs, lambda trial: even(trial) - 0.5 * (trial.point == 3))
    assert len(outcomes) == 16 * 14
    later = [trial for trial in outcomes if not trial.is_search]
    assert {trial.point for trial in later} == {3}
    assert sum(not trial.warmup for trial in later) == 16 * 3
    assert {trial.factor for trial in later} == {0.25, 0.5, 1.0, 2.0, 4.0}


def test_the_dev_loss_decides_between_equal_errors_and_who_diverges_is_last(runs):
    found = {runs.Trial("image", "SGD", point): runs.Outcome(0.02, 0.03, loss) for point, loss in [(0, 0.2), (1, 0.1)]}
    found[runs.Trial("image", "SGD", 2)] = runs.diverged("image")
    assert runs.best("image", "SGD", found).point == 1
    assert runs.best("image", "AdamW", found) is None


@pytest.mark.parametrize("task", ["asr", "image", "language"])
def test_a_trial_is_a_config_of_its_recipe(runs, task):
    model = torch.nn.ModuleDict({"query": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)})
    model = torch.nn.ModuleDict({"layer": model, **{n: torch.nn.Linear(2, 2) for n in ("key", "value", "out")}})
    model = torch.nn.ModuleDict(
        {"a": model, "b": torch.nn.ModuleDict({n: torch.nn.Linear(2, 2) for n in ("up", "down")})}
    )
    built = {"NovoGrad": "NovoGrad", "SGD+LARC": "LARC", "Muon": "Composite"}
    for name in NAMES:
        if task not in runs.CONTENDERS[name].tasks:
            continue
        trial = runs.Trial(task, name, 1, factor=2.0, warmup=name != "Adam", seed=3)
        with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
            cfg = compose(task, overrides=trial.overrides())
        block = OmegaConf.to_container(cfg.optim, resolve=True)
        optimizer = build_optimizers(block, model, max_steps=100)["optimizer"]
        assert type(optimizer).__name__ == built.get(name, name)
        assert {group["initial_lr"] for group in optimizer.param_groups} == {trial.lr}
        assert {group["weight_decay"] for group in optimizer.param_groups} <= {trial.weight_decay, 0.0}
        assert (cfg.seed, cfg.optim.sched.warmup_ratio) == (3, 0.0 if name == "Adam" else 0.1)


def test_nothing_is_said_of_a_loser_whose_lr_is_the_outermost_and_would_be_better_beyond(modules):
    runs, results, _ = modules

    def metric(trial):
        if trial.optimizer == "SGD":  # best at the smallest LR of all
            return 1 + trial.lr + 0.001 * trial.seed
        return even(trial)

    said = results.Results(complete(runs, metric))
    assert said.at_edge("image", "SGD")
    assert said.judge("image", "SGD", "test") == "open: the worse one's LR lies at the edge"
    assert said.judge("image", "AdamW", "test") == "no difference seen"
    assert said.better_factor("image", "SGD") == 0.25
    assert said.better_factor("image", "AdamW") is None


def test_claims_of_complete_runs(modules):
    runs, results, report = modules

    def metric(trial):
        """NovoGrad is best, but for language; it alone is as good without warmup, and changes least with the LR."""
        own = trial.optimizer == "NovoGrad"
        far = 0.1 * abs(trial.factor - 1) * (1 if own else 2)
        late = 0.0 if trial.warmup or own else 0.1
        behind = 0.5 * (own if trial.task == "language" else not own)
        return 1 + behind + far + late + 0.1 * trial.point + (0.001 if own else 0.002) * trial.seed

    costs = [
        {"task": task, "optimizer": name, "state_bytes": size, "parameters": 1, "ms": 1.0, "ratio": 1.0}
        for task in runs.TASKS
        for name, size in (("NovoGrad", 4), ("Adam", 8))
    ]
    rows = list(report.claims(results.Results(complete(runs, metric)), costs))
    verdicts = [line.split("|")[2].strip(" *") for line in rows if line.startswith("| ")][2:]
    assert verdicts == ["partly", "held", "held", "held", "held"]
    assert "of 9 pairs better in 6, worse in 3" in rows[2]
    assert "AdamW, Adam, SGD, SGD+LARC, Muon: worse" in rows[5]


def test_page_of_runs_that_are_not_complete(modules, tmp_path):
    runs, _, report = modules
    outcomes = complete(runs, even)
    file = sys.modules["runs_file"].RunsFile(tmp_path / "runs.jsonl", SETTINGS, (), runs.KIND)
    for trial, outcome in outcomes.items():
        if trial.task == "image" or trial.is_search:
            diverged = trial == runs.Trial("language", "Muon", 4)
            file.add(trial, runs.diverged("language") if diverged else outcome)
    file.close()
    report.write_report(tmp_path / "runs.jsonl", None, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "1 of them diverged. **Not complete**" in page
    assert page.count("**not complete**") == 5
    assert "| NovoGrad | 0.02 | 0.001 | 10.2 (10.1 to 10.3) | 20.4 (20.2 to 20.6) |" in page
    assert "1 of 5 runs diverged; not complete" in page
    assert "Not measured yet." in page
    assert not [line for line in page.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert (tmp_path / "page.png").stat().st_size < 200_000
