"""The script that goes over a NeMo checkout: its reference formulas, its counts, its mutations."""

import random

import nemo_configs
import nemo_schedules
import pytest

from lightning_novograd.errors import ConfigError

CONFIGS = """
trainer: {max_steps: 90}
model:
  optim:
    _target_: torch.optim.AdamW
    lr: 0.1
    sched: {name: CosineAnnealing, warmup_steps: 5, min_lr: 0.001, max_steps: "${trainer.max_steps}"}
  parts:
    - optim: {name: novograd, lr: 0.1, sched: {name: StepLR, step_size: 2}}
    - optim: {name: sgd, lr: 0.1, sched: {name: ExponentialLR, gamma: 0.9}}
    - optim: {name: adam, lr: 0.1}
    - optim: {name: lamb, lr: 0.1}
    - optim: null
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "model.yaml").write_text(CONFIGS)
    (tmp_path / "conf" / "other.yml").write_text("not: {a config}: of NeMo's\n")
    return tmp_path


def cases(golden):
    for name, examples in golden["policies"].items():
        for example in examples if name in nemo_schedules.POLICIES else ():
            if example.get("error") is None and example["args"].get("last_epoch", -1) == -1:
                yield name, example["args"], example["lr"]


def test_the_formulas_give_nemos_values(golden):
    seen = set()
    for name, args, lrs in cases(golden("schedules.json")):
        formula, length = nemo_schedules.POLICIES[name], args.get("max_steps") or 10**9
        assert [formula(step, 0.1, args, length) for step in range(len(lrs))] == pytest.approx(lrs, rel=1e-12), args
        seen.add(name)
    assert seen == {*nemo_schedules.POLICIES} - {"ExponentialLR", "StepLR"}


def test_counts(checkout, capsys):
    assert nemo_configs.main([str(checkout), "--mutations", "20"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:6] == [
        "5 blocks",
        "4 built",
        "1 with a constant LR",
        "2 with NeMo's LR curve, to 1e-09 of it",
        "1 with another LR curve: StepLR is stepped per epoch, NeMo's per step (the log says so)",
        "1 refused: optim.name: unknown optimizer 'lamb'",
    ]
    assert lines[7] == "20 mutations, seed 0"
    assert lines[-1] == "0 violations"


def test_a_curve_that_is_not_nemos_and_an_exception_are_violations(checkout, capsys, monkeypatch):
    monkeypatch.setitem(nemo_schedules.POLICIES, "CosineAnnealing", lambda *_: 0.5)
    monkeypatch.setattr(nemo_configs, "nemos_lr", lambda name, *given: nemo_schedules.POLICIES[name](*given))
    assert nemo_configs.main([str(checkout)]) == 1
    assert "conf/model.yaml, model.optim: CosineAnnealing" in capsys.readouterr().err
    monkeypatch.setattr(nemo_configs, "parse_optim", lambda *_: 1 / 0)
    assert nemo_configs.main([str(checkout)]) == 6  # and nothing is left
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_folder_without_blocks_is_a_mistake(tmp_path):
    assert nemo_configs.main([str(tmp_path)]) == 1


def test_mutations_are_seeded_and_of_every_kind():
    block = {"name": "sgd", "lr": 0.1, "betas": [1, 2], "sched": {"name": "cosine", "args": {"name": "auto"}}}
    made, again = ([nemo_configs.mutate(block, rng) for _ in range(200)] for rng in map(random.Random, (1, 1)))
    assert repr(made) == repr(again)
    assert block == {"name": "sgd", "lr": 0.1, "betas": [1, 2], "sched": {"name": "cosine", "args": {"name": "auto"}}}
    assert sum("sched" not in mutant for mutant in made) > 5
    assert sum(isinstance(mutant.get("lr"), list | dict) for mutant in made) > 2
    assert sum("args" in mutant for mutant in made) > 2


def fails(block):
    return 1 / 0


def names_nothing(block):
    raise ConfigError("", "bad")


@pytest.mark.parametrize(
    ("parse", "problem"),
    [
        (dict, None),
        (fails, "ZeroDivisionError"),
        (names_nothing, "names no place"),
        (lambda _: object(), "second time"),
    ],
)
def test_violations(parse, problem, monkeypatch):
    monkeypatch.setattr(nemo_configs, "parse_optim", parse)
    found = nemo_configs.violation({"name": "sgd", "lr": 0.1})
    assert found is None if problem is None else problem in found
