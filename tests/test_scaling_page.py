"""docs/scaling.md is what benchmarks/scaling_model.py prints, and its formulas are what they are called."""

import importlib.util

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def model():
    spec = importlib.util.spec_from_file_location("scaling_model", ROOT / "benchmarks" / "scaling_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small(model):
    return model.Model("quartznet_15x5", parameters=1_000_000, flops=1e9, unit=100_000)


@pytest.mark.slow
def test_the_page_is_what_the_script_prints(model):
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert page == model.page(), "run: python benchmarks/scaling_model.py > docs/scaling.md"


def test_a_ring_sends_almost_twice_the_gradients(model, small):
    assert model.wire(small, 2, "DDP") == 4e6
    assert model.wire(small, 512, "DDP") == pytest.approx(8e6, rel=0.01)
    assert model.wire(small, 8, "DDP, bf16") == model.wire(small, 8, "DDP") / 2
    assert model.wire(small, 8, "FSDP2") == model.wire(small, 8, "DDP") * 1.5


def test_memory(model, small):
    assert model.memory(small, 8, "DDP", 4.0) == 12e6
    assert model.memory(small, 8, "ZeRO-1", 8.0) == 8e6 + 1e6
    assert model.memory(small, 8, "FSDP2", 4.0) == 12e6 / 8 + 2 * 4e5


def test_no_step_is_shorter_than_its_computation(model, small):
    for engine in model.ENGINES:
        for gpus in model.GPUS:
            assert model.step(small, gpus, 64, engine) > model.compute(small, 64)


def test_steps_fall_with_the_batch_until_the_noise_scale(model, small):
    taken = [model.hours(small, 512, batch, noise=8192) for batch in model.BATCHES]
    assert taken.index(min(taken)) in (2, 3)
