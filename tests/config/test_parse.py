"""The optim block: what parses, and to what."""

import copy
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lightning_novograd.config import OptimConfig, parse_optim

COSINE = {"name": "CosineAnnealing", "warmup_steps": 10, "min_lr": 1e-5}


def block(**changes: Any) -> dict[str, Any]:
    return {"name": "novograd", "lr": 0.05, "betas": [0.95, 0.25], "weight_decay": 0.001, **changes}


def sched(**changes: Any) -> dict[str, Any]:
    return block(sched={**COSINE, **changes})


def plain(value: Any) -> bool:
    """Whether nothing but built-in types is in there."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


def test_the_block_of_the_design():
    config = parse_optim(
        block(
            no_decay=["bias", "norm"],
            param_groups=[{"match": "decoder.*", "lr": 0.01}],
            larc={"trust_coefficient": 0.001, "clip": True, "eps": 1e-8, "target": "auto"},
            sched={**COSINE, "max_steps": None, "interval": "step"},
        )
    )
    assert (config.name, config.args) == ("NovoGrad", {"lr": 0.05, "betas": (0.95, 0.25), "weight_decay": 0.001})
    assert config.no_decay == ("bias", "norm")
    (rule,) = config.param_groups
    assert (rule.match, rule.options, rule.path) == (("decoder.*",), {"lr": 0.01}, "optim.param_groups[0]")
    assert config.larc is not None
    assert config.larc.args == {"trust_coefficient": 0.001, "clip": True, "eps": 1e-8, "target": "auto"}
    assert config.sched is not None
    assert (config.sched.name, config.sched.args) == ("CosineAnnealing", {"warmup_steps": 10, "min_lr": 1e-5})
    assert (config.sched.max_steps, config.sched.interval, config.sched.frequency) == (None, "step", 1)


def test_a_parsed_config_is_returned_as_it_is_and_survives_copies():
    config = parse_optim(sched())
    assert parse_optim(config) is config
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_callers_mapping_is_left_alone():
    given = sched(t_max_epochs=5)
    before = copy.deepcopy(given)
    parse_optim(given)
    assert given == before


# ---------------------------------------------------------------------------------------------- NeMo's grammar

NEMO = """
quartznet:
  name: novograd
  lr: .01
  betas: [0.8, 0.5]
  weight_decay: 0.001
  sched:
    name: CosineAnnealing
    monitor: val_loss
    reduce_on_plateau: false
    warmup_steps: null
    warmup_ratio: null
    min_lr: 0.0
    last_epoch: -1
legacy args:
  name: novograd
  lr: .01
  args:
    name: auto
    params: {betas: [0.8, 0.5], weight_decay: 0.001}
  sched:
    name: CosineAnnealing
    iters_per_batch: null
    max_steps: -1
    monitor: val_loss
    reduce_on_plateau: false
    args:
      name: auto
      params: {warmup_steps: null, warmup_ratio: null, min_lr: 0.0, last_epoch: -1}
args of a dataclass:
  name: novograd
  lr: .01
  args: {betas: [0.8, 0.5], weight_decay: 0.001}
  sched:
    name: CosineAnnealing
    args: {name: CosineAnnealingParams, warmup_steps: null, warmup_ratio: null, min_lr: 0.0}
    monitor: val_loss
"""
NEMO_OTHERS = """
conformer:
  name: adamw
  lr: 5.0
  betas: [0.9, 0.98]
  weight_decay: 1e-3
  sched: {name: NoamAnnealing, d_model: 512, warmup_steps: 10000, warmup_ratio: null, min_lr: 1e-6}
contextnet:
  name: novograd
  lr: 0.05
  betas: [0.9, 0.0]
  weight_decay: 0.001
  sched: {name: CosineAnnealing, warmup_steps: 5000, warmup_ratio: null, min_lr: 1e-5, last_epoch: -1}
matchboxnet:
  name: novograd
  lr: 0.05
  betas: [0.95, 0.5]
  weight_decay: 0.001
  sched:
    name: PolynomialHoldDecayAnnealing
    power: 2.0
    warmup_ratio: 0.05
    hold_ratio: 0.45
    min_lr: 0.001
    last_epoch: -1
speaker recognition:
  name: sgd
  lr: .006
  weight_decay: 0.001
  momentum: 0.9
  sched: {name: CosineAnnealing, warmup_ratio: 0.1, min_lr: 0.0}
squeezeformer:
  name: adamw
  lr: 0.0005
  betas: [0.9, 0.98]
  weight_decay: 4e-5
  sched: {name: NoamHoldAnnealing, warmup_steps: 5000, hold_steps: 40000, decay_rate: 1.0, min_lr: 1e-6}
text classification:
  name: adam
  lr: 5e-5
  weight_decay: 0.00
  sched:
    name: WarmupAnnealing
    warmup_steps: null
    warmup_ratio: 0.1
    last_epoch: -1
    monitor: val_loss
    reduce_on_plateau: false
machine translation:
  name: adam
  lr: 0.001
  betas: [0.9, 0.98]
  weight_decay: 0.0
  sched: {name: InverseSquareRootAnnealing, min_lr: 0.0, last_epoch: -1, warmup_ratio: 0.1}
vocoder:
  name: adamw
  lr: 2e-4
  betas: [0.8, 0.99]
  sched: {name: ExponentialLR, gamma: 0.999, last_epoch: -1, reduce_on_plateau: false}
epochs at run time:
  name: adamw
  lr: 1e-3
  sched:
    name: SquareAnnealing
    max_steps: null
    t_max_epochs: 100
    t_accumulate_grad_batches: null
    t_limit_train_batches: null
    t_num_workers: null
    warmup_steps: 100
plateau:
  name: sgd
  lr: 0.1
  sched: {name: ReduceLROnPlateau, factor: 0.5, patience: 3, monitor: val_loss, reduce_on_plateau: true}
no schedule:
  name: rmsprop
  lr: 0.1
  sched: null
"""
ONE_MEANING = OmegaConf.create(NEMO)
OTHERS = OmegaConf.create(NEMO_OTHERS)


@pytest.mark.parametrize("key", list(ONE_MEANING))
def test_nemo_writes_one_block_in_several_ways(key):
    config = parse_optim(ONE_MEANING[key])
    assert (config.name, config.args) == ("NovoGrad", {"lr": 0.01, "betas": (0.8, 0.5), "weight_decay": 0.001})
    assert config.sched is not None
    assert config.sched.args == {"warmup_steps": None, "warmup_ratio": None, "min_lr": 0.0}
    assert (config.sched.name, config.sched.monitor, config.sched.max_steps) == ("CosineAnnealing", "val_loss", None)


@pytest.mark.parametrize("key", list(OTHERS))
def test_blocks_of_nemo_examples_parse(key):
    config = parse_optim(OTHERS[key])
    written = OmegaConf.to_container(OTHERS[key])
    for name in written.keys() - {"name", "sched"}:
        assert config.args[name] == (tuple(written[name]) if name == "betas" else written[name])
    assert (config.sched is None) == (written["sched"] is None)
    if config.sched is not None:
        assert config.sched.name == written["sched"]["name"]
        own = {"name", "last_epoch", "monitor", "reduce_on_plateau", "max_steps", "t_max_epochs"}
        runtime = {"t_accumulate_grad_batches", "t_limit_train_batches", "t_num_workers"}
        assert config.sched.args == {k: v for k, v in written["sched"].items() if k not in own | runtime}
        assert config.sched.max_epochs == written["sched"].get("t_max_epochs")


@pytest.mark.parametrize(
    ("alias", "value", "key", "meaning"),
    [
        ("larc_eta", 0.001, "trust_coefficient", 0.001),
        ("larc_mode", "clip", "clip", True),
        ("larc_mode", "scale", "clip", False),
        ("epsilon", 1e-7, "eps", 1e-7),
        ("min_update", 1e-7, "min_update", 1e-7),
    ],
)
def test_openseq2seq_larc_keys(alias, value, key, meaning):
    config = parse_optim(block(larc={alias: value}))
    assert config.larc is not None
    assert config.larc.args == {key: meaning}


# ---------------------------------------------------------------------------------------------- other sources


def test_interpolations_and_anchors_are_resolved_to_plain_values():
    cfg = OmegaConf.create(
        """
        base: &betas [0.9, 0.98]
        model: {width: 512}
        peak: 2.0
        optim:
          name: adamw
          lr: ${peak}
          betas: *betas
          sched: {name: NoamAnnealing, d_model: "${model.width}", warmup_steps: "${optim.sched.d_model}"}
        """
    )
    config = parse_optim(cfg.optim)
    assert (config.args, config.sched.args) == (
        {"lr": 2.0, "betas": (0.9, 0.98)},
        {"d_model": 512, "warmup_steps": 512},
    )
    assert plain(config.args)
    assert plain(config.sched.args)


def test_omegaconf_inside_of_a_plain_dict():
    config = parse_optim(block(betas=OmegaConf.create([0.9, 0.5]), sched=OmegaConf.create(COSINE)))
    assert plain(config.args)
    assert type(config.args["betas"]) is tuple
    assert plain(config.sched.args)


def test_dataclasses_are_mappings_too():
    @dataclass
    class Sched:
        name: str = "cosine"
        warmup_steps: int = 3

    @dataclass
    class Optim:
        name: str = "sgd"
        lr: float = 0.1
        sched: Sched = field(default_factory=Sched)

    assert parse_optim(Optim()) == parse_optim(
        {"name": "sgd", "lr": 0.1, "sched": {"name": "cosine", "warmup_steps": 3}}
    )
    assert parse_optim(OmegaConf.structured(Optim())) == parse_optim(Optim())


def test_schedulers_inside_of_schedulers():
    config = parse_optim(
        {
            "name": "sgd",
            "sched": {
                "name": "SequentialLR",
                "milestones": [5],
                "interval": "step",
                "schedulers": [{"name": "LinearLR", "total_iters": 5}, {"name": "cosine", "max_steps": 20}],
            },
        }
    )
    inner = config.sched.args["schedulers"]
    assert [(spec.name, spec.args) for spec in inner] == [
        ("LinearLR", {"total_iters": 5}),
        ("CosineAnnealing", {"max_steps": 20}),
    ]
    assert inner[1].path == "optim.sched.schedulers[1]"


@pytest.mark.parametrize(("value", "absent"), [(None, True), (False, True), (True, False), ({}, False)])
def test_larc_on_and_off(value, absent):
    assert (parse_optim(block(larc=value)).larc is None) == absent


@pytest.mark.parametrize(
    ("name", "interval"),
    [("cosine", "step"), ("OneCycleLR", "step"), ("CyclicLR", "step"), ("StepLR", "epoch"), ("MultiStepLR", "epoch")],
)
def test_default_intervals(name, interval):
    needed = {
        "OneCycleLR": {"max_lr": 1},
        "CyclicLR": {"base_lr": 0.1, "max_lr": 1},
        "StepLR": {"step_size": 3},
        "MultiStepLR": {"milestones": [2]},
    }
    config = parse_optim({"name": "sgd", "momentum": 0.9, "sched": {"name": name, **needed.get(name, {})}})
    assert config.sched.interval == interval


def test_larc_and_clipping_together_if_that_is_meant():
    config = parse_optim(block(grad_clip_norm=1, larc={"allow_grad_clip": True}))
    assert isinstance(config, OptimConfig)
    assert (config.grad_clip_norm, config.larc.allow_grad_clip, config.larc.args) == (1.0, True, {})


def test_parsing_says_nothing_and_draws_no_random_numbers(recwarn):
    state = torch.get_rng_state()
    parse_optim(sched())
    parse_optim(block(larc={"target": "gradient"}))
    assert torch.equal(torch.get_rng_state(), state)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"sched": {"name": "cosine", "max_steps": 1}}, lambda config: config.sched.max_steps == 1),
        ({"sched": {"name": "cosine", "max_epochs": 1}}, lambda config: config.sched.max_epochs == 1),
        ({"sched": {"name": "StepLR", "step_size": 1, "frequency": 1}}, lambda config: config.sched.frequency == 1),
        ({"grad_clip_norm": 1e-9}, lambda config: config.grad_clip_norm == 1e-9),
        ({"grad_clip_value": 1e-9}, lambda config: config.grad_clip_value == 1e-9),
        ({"sched": {"name": "cosine", "max_steps": -1}}, lambda config: config.sched.max_steps is None),
    ],
)
def test_the_least_that_is_allowed(changes, read):
    assert read(parse_optim(block(**changes)))
