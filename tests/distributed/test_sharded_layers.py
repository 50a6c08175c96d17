"""A layer spread over processes is trained as the whole layer in one process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.sharded_training import OPTIONS, make_model, one_process, train
from torch import Tensor

from lightning_novograd.optim import NovoGrad

SCRIPT = Path(__file__).with_name("sharded_training.py")
SIZES = (2, pytest.param(4, marks=pytest.mark.slow))


def launch(world_size: int, folder: Path) -> dict[str, Any]:
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(world_size), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=180)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(outputs)[-10_000:]
    return torch.load(folder / f"{world_size}.pt", weights_only=True)


class Results(dict[int, dict[str, Any]]):
    """By the number of ranks, which are begun when they are asked for; four go on from what two have saved."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, world_size: int) -> dict[str, Any]:
        if world_size == 4:
            assert self[2]
        self[world_size] = launch(world_size, self.folder)
        return self[world_size]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return Results(tmp_path_factory.mktemp("sharded"))


def assert_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        assert (a - e).abs().max() <= 1e-6 * e.abs().max(), f"layer {index}"


def one_process_without_groups() -> list[Tensor]:
    model = make_model()
    train(model, NovoGrad(model.parameters(), lr=0.05, weight_decay=0.01))
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    ("world_size", "layout", "options"),
    [
        *((2, layout, name) for layout in ("fsdp2", "tensor parallel") for name in OPTIONS),
        (2, "hsdp", "default"),
        *(
            pytest.param(4, layout, name, marks=pytest.mark.slow)
            for layout in ("fsdp2", "tensor parallel", "hsdp", "fsdp2 and tensor parallel")
            for name in OPTIONS
        ),
    ],
    ids=str,
)
def test_sharded_layers_equal_whole_layers(results, world_size, layout, options):
    actual, expected = results[world_size][f"{layout} {options}"], one_process(**OPTIONS[options])
    assert actual.keys() == expected.keys()
    for key, tensors in expected.items():
        assert_close(actual[key], tensors)


@pytest.mark.parametrize("world_size", SIZES)
def test_gradients_laid_out_otherwise_than_their_layers(results, world_size):
    found = results[world_size]["partial gradients"]
    assert_close(found["actual"], found["expected"])
    assert found["grad untouched"]


@pytest.mark.parametrize("world_size", SIZES)
def test_one_all_reduce_per_step_however_many_layers(results, world_size):
    found = results[world_size]
    assert found["all-reduces fsdp2"] == [1, 1]
    assert found["all-reduces fsdp2 luc"] == 1 + 2, "all gradients, then weights and moments of each param group"
    assert found["all-reduces tensor parallel"] == 1
    if world_size == 4:
        assert found["all-reduces hsdp"] == 1
        assert found["all-reduces fsdp2 and tensor parallel"] == 1


@pytest.mark.parametrize("world_size", SIZES)
def test_a_bad_shard_spoils_its_own_layer_alone(results, world_size):
    assert results[world_size]["bad gradient"] == [True, True, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["resume", "resume composite"])
def test_checkpoint_of_two_ranks_resumes_on_four(results, case):
    actual, expected = results[4][case], one_process(amsgrad=True)
    assert len(expected) > 1
    assert actual.keys() == expected.keys()
    for key, tensors in expected.items():
        assert_close(actual[key], tensors)


def test_lightning_model_parallel_strategy_trains_and_resumes(results):
    assert_close(results[2]["lightning"]["weights"], one_process()["weights"])


@pytest.mark.parametrize(
    ("world_size", "case"),
    [
        (2, "zero redundancy"),
        (2, "zero redundancy bucket view"),
        pytest.param(4, "zero redundancy", marks=pytest.mark.slow),
    ],
)
def test_zero_redundancy_optimizer(results, world_size, case):
    assert_close(results[world_size][case], one_process_without_groups())


@pytest.mark.parametrize("world_size", SIZES)
def test_a_composite_of_zero_redundancy_optimizers(results, world_size):
    expected = one_process_without_groups()
    for actual in results[world_size]["zero redundancy composite"]:
        assert_close(actual, expected)


def test_fsdp1_says_what_to_use_instead(results):
    messages = results[2]["fsdp1"]
    assert messages
    for message in messages:
        assert "FSDP1" in message
        assert "fully_shard" in message
        assert "ModelParallelStrategy" in message


def test_deepspeed_partitions_say_what_to_use_instead():
    """ZeRO-1 and 2 put flat partitions in the place of the layers, after the optimizer was built."""
    layer = torch.nn.Linear(4, 3)
    optimizer = NovoGrad(layer.parameters())
    optimizer.param_groups[0]["params"] = [torch.nn.Parameter(torch.zeros(8))]
    optimizer.param_groups[0]["params"][0].grad = torch.ones(8)
    with pytest.raises(ValueError, match=r"flattened partition.*DeepSpeed.*fully_shard.*ModelParallelStrategy"):
        optimizer.step()
