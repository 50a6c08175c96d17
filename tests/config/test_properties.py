"""Whatever happens to a valid block, it parses to the same meaning or raises ConfigError: nothing else."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_novograd.config import OptimConfig, parse_optim
from lightning_novograd.errors import ConfigError

BLOCKS: list[dict[str, Any]] = [
    {
        "name": "novograd",
        "lr": 0.05,
        "betas": [0.95, 0.25],
        "weight_decay": 0.001,
        "grad_averaging": False,
        "no_decay": ["bias", "norm"],
        "param_groups": [{"match": "decoder.*", "lr": 0.01}, {"module_type": ["BatchNorm*"], "larc": False}],
        "larc": {"trust_coefficient": 0.001, "clip": True, "target": "auto"},
        "sched": {"name": "CosineAnnealing", "warmup_steps": 10, "min_lr": 0.0, "max_steps": 100, "interval": "step"},
    },
    {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "grad_clip_norm": 1.0,
        "ema": {"decay": 0.95, "update_every_n_steps": 4, "update_starting_at_step": 12, "use_buffers": False},
        "sched": {"name": "ReduceLROnPlateau", "monitor": "val_loss", "factor": 0.5, "patience": 3, "mode": "min"},
    },
    {
        "name": "adamw",
        "lr": 0.001,
        "args": {"name": "auto", "params": {"betas": [0.9, 0.98], "eps": 1e-6}},
        "sched": {
            "name": "NoamAnnealing",
            "monitor": "loss",
            "args": {"name": "auto", "params": {"d_model": 64, "warmup_steps": 10}},
        },
    },
    {
        "_target_": "torch.optim.AdamW",
        "lr": 2e-4,
        "sched": {
            "name": "CosineAnnealing",
            "iters_per_batch": 1,
            "max_steps": -1,
            "args": {"name": "auto", "warmup_ratio": 0.1, "last_epoch": -1},
        },
    },
    {
        "name": "fused_adam",
        "lr": 2e-4,
        "weight_decay": 0.01,
        "ema": 0.9975,
        "adam_w_mode": True,
        "set_grad_none": True,
        "sched": {"name": "ExponentialLR", "lr_decay": 0.999875},
    },
    {
        "name": "sgd",
        "lr": 0.1,
        "momentum": 0.8,
        "param_groups": [{"match": "decoder.*", "lr": 0.03}],
        "sched": {"name": "OneCycleLR", "max_lr": 0.7, "pct_start": 0.4, "base_momentum": 0.6, "max_steps": 90},
    },
    {
        "name": "sgd",
        "large_batch": {"global_batch_size": [[0, 16], [30, 64]], "per_device_batch_size": 8, "lr_scaling": "sqrt"},
        "sched": {"name": "StepLR", "interval": "step", "step_size": 7, "warmup_steps": 13, "max_steps": 90},
    },
    {
        "name": "sgd",
        "sched": {
            "name": "SequentialLR",
            "milestones": [5, 17],
            "schedulers": [
                {"name": "ConstantLR", "factor": 1.0},
                {"name": "cosine"},
                {"name": "StepLR", "step_size": 3},
            ],
            "interval": "step",
            "warmup_ratio": 0.06,
        },
    },
    {
        "name": "sgd",
        "sched": {
            "name": "SequentialLR",
            "milestones": [5],
            "schedulers": [{"name": "LinearLR", "total_iters": 5}, {"name": "ExponentialLR", "gamma": 0.9}],
        },
    },
]
BLOCKS += [
    {
        "name": "adamw",
        "lr": 0.001,
        "module": "decoder",
        "layer_decay": {"decay": 0.75, "layers": ["embed.*", "blocks.0.*"]},
        "param_groups": [
            {"match": "depthwise", "lr_mult": 0.25, "wd_mult": 2.5},
            {"match": "body.*", "optimizer": {"name": "sgd", "lr": 0.3, "momentum": 0.85, "larc": {"eps": 1e-7}}},
            {"match": "head.*", "sched": {"name": "polynomial", "power": 1.5, "steps_per_batch": 2.0}},
        ],
        "sched": {"name": "cosine", "min_lr": 1e-6, "steps_per_batch": 2.0},
    },
    {"name": "sgd", "layer_decay": 0.65, "param_groups": [{"match": "bias", "optimizer": "rmsprop"}]},
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["sgd", "cosine", "step", "epoch", "1e-3", "auto", "*", "${lr}", "???"]),
    st.binary(max_size=3),
    st.lists(st.floats(0, 1), max_size=3),
    st.dictionaries(st.sampled_from(["name", "lr", "params", "x"]), st.integers(0, 3), max_size=2),
    st.builds(object),
)
NAMES = ("name", "_target_", "target", "larc", "optimizer")
WITHOUT_EFFECT = ("iters_per_batch",)
KEYS = st.one_of(st.text(max_size=6), st.integers(), st.none(), st.just("_target_"))


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys and list elements in a block."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def parent_of(block: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        block = block[key]
    return block


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(what was done, the block before, the block after)."""
    before = draw(st.sampled_from(BLOCKS))
    after = copy.deepcopy(before)
    path = draw(st.sampled_from(places(after)))
    parent, key = parent_of(after, path), path[-1]
    kind = draw(st.sampled_from(["drop", "misspell", "retype", "nest", "unnest", "add"]))
    if kind == "drop":
        del parent[key]
    elif kind == "misspell" and isinstance(key, str):
        cut = draw(st.integers(0, len(key)))
        parent[key[:cut] + draw(st.sampled_from(["x", "_", "", "S"])) + key[cut + 1 :]] = parent.pop(key)
    elif kind == "retype":
        parent[key] = draw(VALUES)
    elif kind == "nest":
        parent[key] = draw(st.sampled_from([[parent[key]], {"name": parent[key]}, {key: parent[key]}, (parent[key],)]))
    elif kind == "unnest" and isinstance(parent[key], dict) and isinstance(parent, dict):
        parent.update(parent.pop(key))
    elif isinstance(parent, dict):
        parent[draw(KEYS)] = draw(VALUES)
    return kind, before, after


@settings(max_examples=600, deadline=None, derandomize=True)
@given(mutated())
def test_a_mutation_parses_or_raises_config_error(mutation):
    kind, _, after = mutation
    try:
        config = parse_optim(after)
    except ConfigError as error:
        config, refused = None, error
    if config is None:
        assert refused.problem
        assert refused.path.startswith("optim")
    else:
        assert isinstance(config, OptimConfig), kind
        assert parse_optim(copy.deepcopy(after)) == config


def test_what_still_parses_has_lost_no_value():
    """Nothing is ignored: a block that parses after a change has every changed value in its config."""
    looked_at = []

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(mutated())
    def check(mutation):
        _, _, after = mutation
        try:
            config = parse_optim(after)
        except ConfigError:
            return
        said = repr(config)  # in which texts are escaped
        for path in places(after):
            value = parent_of(after, path)[path[-1]]
            if path[-1] in (*NAMES, *WITHOUT_EFFECT) or isinstance(value, dict | list | tuple | bool) or value is None:
                continue
            if path[-1] in ("max_steps", "last_epoch") and value == -1:
                continue
            number = isinstance(value, int | float) and (str(float(value)) in said or f"{value:.0f}" in said)
            assert number or str(value) in said or repr(value) in said, (path, value)
            looked_at.append(path)

    check()
    assert len(looked_at) > 100


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_key_order_does_not_matter(index):
    def backwards(node: Any) -> Any:
        return {key: backwards(node[key]) for key in reversed(node)} if isinstance(node, dict) else node

    assert parse_optim(backwards(BLOCKS[index])) == parse_optim(BLOCKS[index])
