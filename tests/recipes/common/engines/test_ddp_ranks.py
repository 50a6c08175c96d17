"""Two real ranks over gloo: what DDP sends, when it does, and that the options change no more than they say."""

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

SCRIPT = Path(__file__).with_name("ddp_ranks.py")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("ddp")
    for ranks in (1, 2):
        run_ranks(SCRIPT, ranks, folder)
    return {name.stem: torch.load(name, weights_only=True) for name in folder.glob("*.pt")}


@pytest.fixture
def one(seen) -> dict:
    return seen["rank_0_of_1"]


@pytest.fixture
def two(seen) -> dict:
    return seen["rank_0_of_2"]


def assert_same(actual: dict, expected: dict, statistics: bool = False) -> None:
    for name, tensor in expected["weights"].items():
        if statistics or not name.endswith(STATISTICS):
            torch.testing.assert_close(actual["weights"][name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("case", ["plain", "accumulated"])
def test_two_ranks_are_one(one, two, case):
    assert one[case]["steps"] == two[case]["steps"] == 4
    assert_same(two[case], one[case])


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("several buckets", "plain"),
        ("several buckets accumulated", "accumulated"),
        ("bucket view", "plain"),
        ("static graph", "plain"),
        ("static graph accumulated", "accumulated"),
    ],
)
def test_options_change_no_weight(two, case, expected):
    assert_same(two[case], two[expected], statistics=True)


def test_one_all_reduce_for_each_bucket_of_a_step(two):
    """However many micro-batches a step has, and whether or not the guard leaves it out."""
    for case in ("plain", "accumulated", "bucket view", "static graph"):
        assert (two[case]["buckets"], two[case]["sent"]) == (1, 4), case
    # after the first step DDP arranges its buckets by the order in which gradients come
    for case in ("several buckets", "several buckets accumulated", "several buckets skipping"):
        assert (two[case]["buckets"], two[case]["sent"]) == (2, 1 + 3 * 2), case
    assert two["several buckets skipping"]["skipped"] == 1
    # the graph is learnt in the first micro-batch of all, which sends nothing
    assert two["static graph accumulated"]["sent"] == 4


def test_a_static_graph_changes_no_bit(seen):
    """A run that goes on learns it anew, in the middle of a training."""
    for rank in (0, 1):
        static, plain = (
            seen[f"rank_{rank}_of_2"][case]["weights"] for case in ("static graph accumulated", "accumulated")
        )
        assert [name for name, tensor in plain.items() if not torch.equal(static[name], tensor)] == []


def test_batch_norm_over_both_ranks_is_that_of_one_batch(one, two, seen):
    assert_same(two["synced"], one["together"], statistics=True)
    assert_same(seen["rank_1_of_2"]["synced"], one["together"], statistics=True)
    mean = "model.encoder.encoder.0.mconv.2.running_mean"
    assert not torch.allclose(two["plain"]["weights"][mean], one["together"]["weights"][mean], rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "tolerance"), [("bf16", 0.02), ("fp16", 0.01), ("powersgd", 0.2), ("powersgd bf16", 0.2)]
)
def test_compressed_gradients_learn_too(seen, case, tolerance):
    ends = []
    for name in (case, "whole"):
        losses = [loss for rank in (0, 1) for loss in seen[f"rank_{rank}_of_2"][name]["losses"][-4:]]
        assert all(seen[f"rank_{rank}_of_2"][name]["losses"][0] > 15 for rank in (0, 1))
        ends.append(sum(losses) / len(losses))
    compressed, whole = ends
    assert whole < 6
    assert compressed == pytest.approx(whole, rel=tolerance)
    assert compressed != whole


def test_compressed_gradients_are_smaller(two):
    whole = two["whole"]["bytes"]
    assert two["bf16"]["bytes"] == two["fp16"]["bytes"] == whole / 2
    assert two["powersgd"]["bytes"] < whole / 5


def test_ranks_stay_alike_under_powersgd_after_a_step_left_out(seen):
    first, second = (seen[f"rank_{rank}_of_2"]["powersgd skipping"] for rank in (0, 1))
    assert first["skipped"] == second["skipped"] == 1
    assert_same(first, second)
    assert all(torch.isfinite(tensor).all() for tensor in first["weights"].values())
    assert first["losses"][-1] < first["losses"][0]
