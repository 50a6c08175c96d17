"""What the code wrote before it was divided into rooms goes on as it would have gone on then.

`golden/before_rooms/make.py` made the checkpoints. Optimizers are compared bit by bit: their inputs leave nothing to
round. Where there is rounding, a bound says how much.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import before_rooms_runs as runs
import pytest
import torch
from omegaconf import DictConfig
from optim_db import WORKERS
from torch import Tensor

from lightning_novograd import LARC, NovoGrad, lr_scheduler
from lightning_novograd.recipes.asr.train import run as run_recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(LeafSpec|dirpath has changed|callbacks used to create).*"),
    # pickled objects name the modules of then
    pytest.mark.filterwarnings("ignore:lightning_novograd.* is .* now:DeprecationWarning"),
]

EXACT = ["novograd", "novograd-amsgrad", "novograd-bfloat16", "larc-sgd", "larc-novograd", "larc-adamw"]

# A handful of float64 operations and one of libm's functions, whose last bits differ between C libraries.
LR_ERROR = 8 * math.ulp(1.0)

# Of three AdamW steps, as a share of the largest weight: a step is at most 0.02 of the weights and has some 20
# roundings of 2^-24 each, and storing the weights rounds twice more: 3 * (0.02 * 20 + 2) * 2^-24, and a factor of 2.
ADAMW_ERROR = 1e-6

# Of training steps, as a share of the way that a layer has gone since the checkpoint. NovoGrad normalizes gradients, so
# this is the relative error of a gradient. The small network has chains of some 50 roundings: 50 * 2^-24 = 3e-6; from
# one instruction set to another its weights differ by 1e-6 of the way. The speech model's features may differ by 3e-4
# where there is next to no energy; its weights differ by 5e-5 of the way. What is lost (moments, the place in the
# epoch, the schedule's) changes the way by more than a tenth.
NETWORK_ERROR = 1e-4
SPEECH_ERROR = 2e-3


def read(name: str) -> Any:
    return torch.load(runs.FOLDER / name, weights_only=True)


def loaded(name: str) -> tuple[Any, runs.Layers, dict[str, Any]]:
    case = read("optimizers.pt")[name]
    layers = [torch.nn.Parameter(w.clone()) for w in case["weights"]]
    optimizer = runs.OPTIMIZERS[name](runs.in_two_groups(layers))
    optimizer.load_state_dict(case["state"])
    return optimizer, layers, case


def go_on(optimizer: Any, layers: runs.Layers, case: dict[str, Any]) -> None:
    for index, grads in enumerate(case["grads"]):
        runs.step(optimizer, layers, grads, case["lrs"] and case["lrs"][index])


def assert_same(found: Any, expected: Any, where: str) -> None:
    """Tensors to the last bit and of one dtype, all else equal."""
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert found == expected, where


def assert_went_the_same_way(
    found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor], error: float
) -> None:
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        allowed = error * (weights - start[name]).double().norm()
        assert (found[name] - weights).double().norm() <= allowed, name


# ---------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("name", EXACT)
def test_an_optimizer_goes_on_from_its_state_dict(name, worker):
    optimizer, layers, case = loaded(name)
    assert_same(optimizer.state_dict(), case["state"], "state")
    for group in optimizer.param_groups:
        group.update({"foreach": None, "fused": None} | WORKERS[worker])
    go_on(optimizer, layers, case)
    assert_same([layer.detach() for layer in layers], case["weights_after"], "weights")
    assert_same(optimizer.state_dict()["state"], case["state_after"]["state"], "state")


def test_larc_around_adamw_of_usual_values_goes_on():
    optimizer, layers, case = loaded("larc-adamw-usual")
    go_on(optimizer, layers, case)
    for layer, expected in zip(layers, case["weights_after"], strict=True):
        assert (layer - expected).abs().max() <= ADAMW_ERROR * expected.abs().max()


# ---------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", runs.SCHEDULES)
def test_a_schedule_goes_on_from_its_state_dict(name):
    case = read("schedules.pt")[name]
    schedule = runs.SCHEDULES[name](runs.sgd_to_schedule())
    schedule.optimizer.load_state_dict(case["optimizer"])
    with warnings.catch_warnings(action="error"):  # which would say that something is not as it was saved
        schedule.load_state_dict(case["state"])
    state = schedule.state_dict()
    assert state.keys() == case["state"].keys()
    if name in runs.OURS:
        known = ("policy", "arguments", "last_epoch", "_step_count", "base_lrs")
        assert_same({key: state[key] for key in known}, {key: case["state"][key] for key in known}, "state")
    assert_lrs(runs.learning_rates(schedule, len(case["lrs"])), case["lrs"])


def test_every_schedule_of_ours_has_been_saved():
    assert {*runs.OURS} == {*lr_scheduler.__all__}


def assert_lrs(found: list[list[float]], expected: list[list[float]]) -> None:
    for lrs, theirs in zip(found, expected, strict=True):
        assert lrs == pytest.approx(theirs, rel=LR_ERROR, abs=LR_ERROR * max(runs.BASE_LRS))


# ---------------------------------------------------------------------------------------------- pickled objects


@pytest.fixture
def objects() -> dict[str, Any]:
    return torch.load(runs.FOLDER / "objects.pt", weights_only=False)


@pytest.mark.parametrize(("name", "cls"), [("novograd", NovoGrad), ("larc-sgd", LARC), ("larc-novograd", LARC)])
def test_a_pickled_optimizer_goes_on(name, cls, objects):
    optimizer, case = objects[name], read("optimizers.pt")[name]
    assert type(optimizer) is cls
    layers = [layer for group in optimizer.param_groups for layer in group["params"]]
    assert_same([layer.detach() for layer in layers], case["weights"], "weights")
    go_on(optimizer, layers, case)
    assert_same([layer.detach() for layer in layers], case["weights_after"], "weights")


# those of OpenSeq2Seq's and DeepLearningExamples' origin were defined in other modules than lr_scheduler
@pytest.mark.parametrize("file", ["objects.pt", "objects_of_other_modules.pt"])
def test_pickled_schedules_go_on(file):
    found = torch.load(runs.FOLDER / file, weights_only=False)
    expected = read("expected.pt")["objects"]
    schedules = found.get("schedules", found)
    assert len(schedules) > 1
    for name, schedule in schedules.items():
        assert type(schedule) is getattr(lr_scheduler, name)
        assert_lrs(runs.learning_rates(schedule, len(expected[name])), expected[name])


def test_an_optimizer_and_its_schedule_that_were_pickled_together_go_on_together(objects):
    pair = objects["scheduled"]
    assert pair["schedule"].optimizer is pair["optimizer"]
    weights = runs.scheduled(**pair, steps=runs.LAST - runs.SAVED)
    assert torch.equal(weights, read("expected.pt")["objects"]["scheduled"])


# ---------------------------------------------------------------------------------------------- runs


def test_a_lightning_run_goes_on():
    path, expected = runs.FOLDER / "lightning.ckpt", read("expected.pt")["lightning"]
    net, trainer = runs.regression(), runs.trainer(runs.EPOCHS)
    trainer.fit(net, runs.points(), ckpt_path=path, weights_only=True)
    assert trainer.global_step == expected["global_step"]
    lrs = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert lrs == pytest.approx(expected["lrs"], rel=LR_ERROR)
    start = read("lightning.ckpt")["state_dict"]
    assert_went_the_same_way(net.state_dict(), expected["weights"], start, NETWORK_ERROR)


def test_a_lightning_checkpoint_is_a_module_again():
    net = runs.Regression.load_from_checkpoint(runs.FOLDER / "lightning.ckpt", weights_only=True)
    assert (net.hparams.width, net.optim_config.larc.args) == (6, {"trust_coefficient": 0.05})
    assert isinstance(net.hparams.optim, DictConfig)
    assert_same(net.state_dict(), dict(read("lightning.ckpt")["state_dict"]), "weights")


def test_a_recipe_run_goes_on_inside_the_epoch(tmp_path: Path):
    expected = read("expected.pt")["recipe"]
    assert runs.digest_of_tones() == expected["tones"], "other audio than the checkpoint was trained with"
    run_dir = tmp_path / "run"
    run_recipe(runs.recipe_config(runs.write_tones(tmp_path), runs.FOLDER / "recipe.ckpt"), run_dir)
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == expected["global_step"]
    lrs = [group["lr"] for group in last["optimizer_states"][0]["param_groups"]]
    assert lrs == pytest.approx(expected["lrs"], rel=LR_ERROR, abs=LR_ERROR)
    start = read("recipe.ckpt")["state_dict"]
    assert_went_the_same_way(last["state_dict"], expected["weights"], start, SPEECH_ERROR)
