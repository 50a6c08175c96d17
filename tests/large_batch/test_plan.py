"""Global batch = per-device batch x devices x nodes x accumulation, exactly or not at all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch.plan import BatchPlan, scale_lr, solve_batch_plan

SIZES = st.integers(1, 64)


@pytest.mark.parametrize(
    ("wanted", "given_", "per_device", "accumulation"),
    [
        pytest.param(64, {"devices": 2, "per_device_batch_size": 16}, 16, 2, id="two ranks, accumulation 2"),
        pytest.param(32, {"devices": 1, "per_device_batch_size": 32}, 32, 1, id="one device, no accumulation"),
        pytest.param(32768, {"devices": 8, "num_nodes": 4, "per_device_batch_size": 64}, 64, 16, id="32K on 32 GPUs"),
        pytest.param(8192, {"devices": 8, "num_nodes": 4, "max_per_device_batch_size": 72}, 64, 4, id="divisor"),
        pytest.param(1152, {"devices": 8, "max_per_device_batch_size": 72}, 72, 2, id="NVIDIA's QuartzNet"),
        pytest.param(7, {"devices": 1, "max_per_device_batch_size": 6}, 1, 7, id="prime"),
        pytest.param(4, {"devices": 2, "max_per_device_batch_size": 100}, 2, 1, id="memory to spare"),
    ],
)
def test_exact_plans(wanted, given_, per_device, accumulation):
    plan = solve_batch_plan(wanted, **given_)
    assert plan == BatchPlan(wanted, per_device, given_["devices"], given_.get("num_nodes", 1), accumulation)


@given(devices=SIZES, num_nodes=SIZES, limit=SIZES, per_rank=SIZES)
def test_a_plan_multiplies_out_and_accumulates_least(devices, num_nodes, limit, per_rank):
    wanted = devices * num_nodes * per_rank
    plan = solve_batch_plan(wanted, devices=devices, num_nodes=num_nodes, max_per_device_batch_size=limit)
    assert plan.per_device_batch_size * plan.world_size * plan.accumulate_grad_batches == wanted
    assert plan.per_device_batch_size <= limit
    better = range(plan.per_device_batch_size + 1, min(limit, per_rank) + 1)
    assert all(per_rank % size for size in better)


@pytest.mark.parametrize(
    ("wanted", "given_", "nearest"),
    [
        pytest.param(100, {"devices": 2, "per_device_batch_size": 16}, "96 and 128", id="between"),
        pytest.param(10, {"devices": 2, "per_device_batch_size": 16}, "32", id="below the smallest"),
        pytest.param(100, {"devices": 8, "num_nodes": 3, "max_per_device_batch_size": 16}, "96 and 120", id="world"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_nearest(wanted, given_, nearest):
    with pytest.raises(ConfigError) as caught:
        solve_batch_plan(wanted, **given_)
    assert caught.value.path == "large_batch.global_batch_size"
    assert caught.value.problem.startswith(f"{wanted} is not a multiple of ")
    assert caught.value.problem.endswith(f"nearest that work: {nearest}")


@given(wanted=st.integers(1, 5000), devices=SIZES, per_device=SIZES)
def test_the_nearest_sizes_do_work(wanted, devices, per_device):
    try:
        solve_batch_plan(wanted, devices=devices, per_device_batch_size=per_device)
    except ConfigError as error:
        nearest = [int(size) for size in error.problem.rsplit(": ", 1)[1].split(" and ")]
        for size in nearest:
            solve_batch_plan(size, devices=devices, per_device_batch_size=per_device)
        assert min(abs(wanted - size) for size in nearest) < devices * per_device or wanted < min(nearest)


@pytest.mark.parametrize(
    ("wanted", "given_", "path"),
    [
        (0, {"devices": 1, "per_device_batch_size": 1}, "global_batch_size"),
        (8.0, {"devices": 1, "per_device_batch_size": 1}, "global_batch_size"),
        (8, {"devices": 0, "per_device_batch_size": 1}, "devices"),
        (8, {"devices": 1, "num_nodes": True, "per_device_batch_size": 1}, "num_nodes"),
        (8, {"devices": 1, "per_device_batch_size": -1}, "per_device_batch_size"),
        (8, {"devices": 1, "num_nodes": 0, "per_device_batch_size": 1}, "num_nodes"),
        (8, {"devices": 1, "per_device_batch_size": 0}, "per_device_batch_size"),
        (8, {"devices": 1, "max_per_device_batch_size": 0}, "max_per_device_batch_size"),
        (8, {"devices": 1}, "per_device_batch_size"),
        (8, {"devices": 1, "per_device_batch_size": 1, "max_per_device_batch_size": 1}, "per_device_batch_size"),
    ],
)
def test_impossible_arguments(wanted, given_, path):
    with pytest.raises(ConfigError) as caught:
        solve_batch_plan(wanted, **given_)
    assert caught.value.path == f"large_batch.{path}"


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_lr_scaling(rule, factor):
    assert math.isclose(scale_lr(0.02, 1024, 256, rule), 0.02 * factor)


@pytest.mark.parametrize("sizes", [(0, 256), (1024, 0), (-1, 256)])
@pytest.mark.parametrize("rule", ["linear", "none"])
def test_scaling_from_or_to_an_empty_batch_is_refused(sizes, rule):
    name = "base_global_batch_size" if sizes[1] < 1 else "global_batch_size"
    with pytest.raises(ConfigError, match="is out of range; must be at least 1") as caught:
        scale_lr(0.02, *sizes, rule)
    assert caught.value.path == f"large_batch.{name}"


def test_an_unknown_scaling_rule_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        scale_lr(0.02, 1024, 256, "liner")  # type: ignore[arg-type]
