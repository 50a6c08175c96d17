"""A batch ramp is exact in every stage, or refused with the stage at fault."""

import re

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch import BatchRamp, solve_batch_plan, solve_batch_ramp

ISSUE = [[0, 256], [2000, 1024], [10000, 4096]]


def test_each_stage_is_the_plan_of_its_batch():
    ramp = solve_batch_ramp(ISSUE, devices=4, num_nodes=2, per_device_batch_size=16)
    assert ramp.begins == (0, 2000, 10000)
    plans = [solve_batch_plan(size, devices=4, num_nodes=2, per_device_batch_size=16) for _, size in ISSUE]
    assert list(ramp.plans) == plans
    assert [plan.accumulate_grad_batches for plan in plans] == [2, 8, 32]
    assert ramp.world_size == 8


@pytest.mark.parametrize(
    ("step", "batch"), [(0, 256), (1999, 256), (2000, 1024), (9999, 1024), (10000, 4096), (10**9, 4096)]
)
def test_the_plan_of_a_step(step, batch):
    assert solve_batch_ramp(ISSUE, devices=1, per_device_batch_size=64).plan_at(step).global_batch_size == batch


def test_the_largest_batch_of_a_device_divides_every_stage():
    ramp = solve_batch_ramp([[0, 96], [5, 144]], devices=2, max_per_device_batch_size=40)
    assert [plan.per_device_batch_size for plan in ramp.plans] == [24, 24]
    assert [plan.accumulate_grad_batches for plan in ramp.plans] == [2, 3]


@pytest.mark.parametrize(("rule", "factors"), [("linear", [1, 4, 16]), ("sqrt", [1, 2, 4]), ("none", [1, 1, 1])])
def test_factors_of_the_lr(rule, factors):
    ramp = solve_batch_ramp(ISSUE, devices=1, per_device_batch_size=64)
    assert [ramp.lr_factor(step, rule) for step in (0, 2000, 10000)] == factors


@pytest.mark.parametrize(
    ("stages", "path", "words"),
    [
        ([], "", "expected a list of pairs"),
        ("64", "", "expected a list of pairs"),
        ([[0, 64], 5], "[1]", "5 is no pair"),
        ([[0, 64], [1, 2, 3]], "[1]", "is no pair"),
        ([[5, 64]], "[0]", "the first stage begins at optimizer step 0, not at 5"),
        ([[0, 64], [5, 128], [5, 256]], "[2]", "begins at optimizer step 5, not after"),
        ([[0, 64], [-1, 128]], "[1]", "an integer of at least 0, not at -1"),
        ([[0, 64], [1.5, 128]], "[1]", "not at 1.5"),
        ([[True, 64]], "[0]", "not at True"),
        ([[0, 64], [5, 100]], "[1]", "100 is not a multiple of 16 .* nearest that work: 96 and 112"),
    ],
)
def test_refused(stages, path, words):
    with pytest.raises(ConfigError, match=words) as caught:
        solve_batch_ramp(stages, devices=2, per_device_batch_size=8)
    assert caught.value.path == f"large_batch.global_batch_size{path}"


def counted(ramp: BatchRamp, batches: int, step: int) -> int:
    """One batch after the other."""
    first, accumulated = step, 0
    for index in range(batches):
        accumulated += 1
        if accumulated == ramp.plan_at(step).accumulate_grad_batches or index == batches - 1:
            step, accumulated = step + 1, 0
    return step - first


@given(
    gaps=st.lists(st.integers(1, 6), max_size=4),
    sizes=st.lists(st.integers(1, 7), min_size=5, max_size=5),
    batches=st.integers(0, 60),
    step=st.integers(0, 20),
)
def test_steps_of_an_epoch(gaps, sizes, batches, step):
    begins = [sum(gaps[:index]) for index in range(len(gaps) + 1)]
    ramp = solve_batch_ramp([*map(list, zip(begins, sizes, strict=False))], devices=1, per_device_batch_size=1)
    assert ramp.steps_of(batches, step) == counted(ramp, batches, step)


def test_the_page_example():
    page = (ROOT / "docs" / "batch_ramp.md").read_text("utf-8")
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], names)
    assert [plan.accumulate_grad_batches for plan in names["ramp"].plans] == [4, 16, 64]
    assert any(getattr(callback, "lr_scaling", None) == "sqrt" for callback in names["trainer"].callbacks)
