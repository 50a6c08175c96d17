"""Whatever parses also builds and steps on a model, or is refused with a ConfigError: nothing else."""

import copy
import math
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_novograd import build_optimizers
from lightning_novograd.config import parse_optim
from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import available_optimizers, available_schedulers

# What schedulers must be given; those of members are added
NEEDS: dict[str, dict[str, Any]] = {
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    "ExpDecay": {"decay_steps": 5, "decay_rate": 0.5, "use_staircase_decay": False},
    "ExponentialLR": {"gamma": 0.9},
    "InvPolyDecay": {"min_lr": 0.001},
    "MultiStepLR": {"milestones": [2, 4]},
    "NoamAnnealing": {"d_model": 64},
    "NoamHoldAnnealing": {"warmup_steps": 2},
    "OneCycleLR": {"max_lr": 0.1},
    "PiecewiseConstant": {"boundaries": [2], "decay_rates": [0.1]},
    "ReduceLROnPlateau": {"monitor": "loss"},
    "StepLR": {"step_size": 2},
    "TransformerPolicy": {"warmup_steps": 2, "d_model": 8},
}
OF_MEMBERS = ("ChainedScheduler", "SequentialLR")
LEAVES = sorted({*available_schedulers()} - {*OF_MEMBERS, "LambdaLR", "MultiplicativeLR"})
PATTERNS = ["embed.*", "body.*", "body.0.*", "head.*", "*.weight", "*", "bias", "norm", "depthwise", "1d"]
LAYERS = st.sampled_from(
    ["auto", "layer_of", "embed", ["x.*"], ["embed.*", "body.*"], ["body.0.*", "body.*", "head.*"]]
)
# Of the block, of a rule and of a rule's own optimizer, where the class has it
OPTIONS = {
    "lr": st.sampled_from([0.0, 1e-3, 0.1]),
    "weight_decay": st.sampled_from([0.0, 0.01]),
    "momentum": st.sampled_from([0.0, 0.9]),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "fused": st.booleans(),
    "foreach": st.booleans(),
}


def some(required: dict[str, Any], optional: dict[str, Any], most: int) -> st.SearchStrategy[dict[str, Any]]:
    """The required keys and at most so many of the others, so that most combinations can be meant."""
    chosen = st.lists(st.sampled_from(sorted(optional)), max_size=most, unique=True)
    return chosen.flatmap(lambda keys: st.fixed_dictionaries({**required, **{key: optional[key] for key in keys}}))


def named(name: str) -> dict[str, Any]:
    return {"name": name, **NEEDS.get(name, {})}


MEMBER = st.sampled_from(LEAVES).map(named)
SCHEDULER = st.one_of(
    MEMBER,
    st.builds(
        lambda members: {"name": "ChainedScheduler", "schedulers": members}, st.lists(MEMBER, min_size=1, max_size=3)
    ),
    st.builds(
        lambda *members: {"name": "SequentialLR", "schedulers": list(members), "milestones": [2]}, MEMBER, MEMBER
    ),
    st.just({"name": "ChainedScheduler", "schedulers": [named("ExponentialLR"), named("StepLR")]}),
)
OF_SCHED = {
    "interval": st.sampled_from(["step", "epoch"]),
    "frequency": st.integers(1, 3),
    "max_steps": st.integers(1, 12),
    "warmup_steps": st.integers(0, 4),
    "warmup_ratio": st.sampled_from([0.0, 0.5]),
    "min_lr": st.sampled_from([0.0, 1e-4]),
}
SCHED = st.builds(lambda scheduler, more: {**scheduler, **more}, SCHEDULER, some({}, OF_SCHED, most=2))
LARC = st.one_of(st.booleans(), some({}, {"clip": st.booleans(), "target": st.just("auto"), "eps": st.just(1e-6)}, 2))
NAMES = st.one_of(st.sampled_from(["sgd", "novograd", "adamw"]), st.sampled_from(available_optimizers()))
OWN = st.one_of(NAMES, some({"name": NAMES}, {**OPTIONS, "larc": LARC}, most=2))
RULE = some(
    {"match": st.one_of(st.sampled_from(PATTERNS), st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2))},
    {
        **OPTIONS,
        "lr_mult": st.sampled_from([0.0, 0.5, 2.0]),
        "wd_mult": st.sampled_from([0.0, 0.5]),
        "larc": st.booleans(),
        "name": st.sampled_from(["a", "b"]),
        "module_type": st.sampled_from(["Linear", "Norm*"]),
        "optimizer": OWN,
        "sched": SCHED,
    },
    most=3,
)
BLOCK = some(
    {"name": NAMES},
    {
        **OPTIONS,
        "no_decay": st.sampled_from(["bias", ["bias", "norm"], "1d", "depthwise"]),
        "layer_decay": st.one_of(
            st.sampled_from([0.5, 1.0]), st.builds(lambda layers: {"decay": 0.75, "layers": layers}, LAYERS)
        ),
        "param_groups": st.lists(RULE, max_size=3),
        "larc": LARC,
        "grad_clip_norm": st.just(1.0),
        "grad_clip_value": st.just(0.1),
        "sched": SCHED,
        "module": st.sampled_from(["body", "head"]),
    },
    most=4,
)
# Rules with parts of their own are rare among all blocks
WITH_PARTS = st.builds(
    lambda block, rules, sched: {**block, "param_groups": rules, "sched": sched},
    some({"name": st.just("sgd")}, {"layer_decay": st.just(0.5), "larc": LARC, "no_decay": st.just("bias")}, most=2),
    st.lists(
        some({"match": st.sampled_from(PATTERNS)}, {"optimizer": OWN, "sched": SCHED, "lr_mult": st.just(0.5)}, most=2),
        min_size=1,
        max_size=2,
        unique_by=lambda rule: rule["match"],
    ),
    st.one_of(st.none(), SCHEDULER, SCHED),
)


class Net(nn.Module):
    """A layer of each kind that rules tell apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 4)
        self.body = nn.Sequential(nn.Conv1d(4, 4, 1, groups=4), nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self) -> torch.Tensor:
        hidden = self.body(self.embed(torch.arange(5)).T[None])
        return self.head(self.norm(hidden[0].T)).square().mean()

    def layer_of(self, name: str) -> int:
        return ["embed", "body", "norm", "head"].index(name.partition(".")[0])


def trained(block: dict[str, Any], max_steps: int) -> dict[str, Any]:
    """What is built of a block, after two steps of everything and a load of its own state."""
    module = Net()
    built = build_optimizers(block, module, max_steps=max_steps)
    optimizer, entry = built["optimizer"], built.get("lr_scheduler")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = module()
        loss.backward()
        if "clip_gradients" in built:
            built["clip_gradients"]()
        return loss

    for _ in range(2):
        optimizer.step(closure)
        if entry is not None:
            entry["scheduler"].step(*([1.0] if entry["reduce_on_plateau"] else []))
    for one in (optimizer, *([entry["scheduler"]] if entry is not None else [])):
        one.load_state_dict(copy.deepcopy(one.state_dict()))
    assert all(param.isfinite().all() for param in module.parameters())
    assert all(math.isfinite(group["lr"]) for group in optimizer.param_groups)
    return built


def end_of(block: dict[str, Any], max_steps: int) -> str:
    """How far a block comes; what is refused is refused with its place."""
    refused, end = None, "stepped"
    try:
        parse_optim(block)
    except ConfigError as error:
        refused, end = error, "not parsed"
    else:
        try:
            trained(block, max_steps)
        except ConfigError as error:
            refused, end = error, "not built"
    assert refused is None or refused.path.startswith("optim")
    return end


def count(blocks: st.SearchStrategy[dict[str, Any]], examples: int) -> Counter[str]:
    """How many blocks ended where; other exceptions end the test."""
    ends = Counter[str]()

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(blocks, st.integers(3, 30))
    def check(block: dict[str, Any], max_steps: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ends[end_of(block, max_steps)] += 1

    check()
    return ends


def test_blocks_step_or_are_refused():
    ends = count(BLOCK, 400)
    assert ends["stepped"] > 150, ends


def test_blocks_of_several_optimizers_and_schedules_step_or_are_refused():
    ends = count(WITH_PARTS, 400)
    assert ends["stepped"] > 100, ends


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("name", [name for name in LEAVES if name != "ReduceLROnPlateau"])
def test_every_scheduler_beside_that_of_a_rule(name, interval):
    """What no random block need have met."""
    sched, other = ({**named(each), "interval": interval} for each in (name, "ExponentialLR"))
    chain = {"name": "ChainedScheduler", "schedulers": [named("ExponentialLR")], "interval": interval}
    rule = {"match": "head.*", "sched": other}
    ends = [
        end_of({"name": "sgd", "lr": 0.1, **block}, 12)
        for block in (
            {"sched": sched},
            {"sched": sched, "param_groups": [rule]},
            {"sched": chain, "param_groups": [{**rule, "sched": sched}]},
            {"param_groups": [rule, {"match": "body.*", "sched": sched, "optimizer": "adamw"}]},
        )
    ]
    if ends[0] == "stepped":
        assert ends == ["stepped"] * 4
