"""The optim block: what parses, to what, and what every mistake says."""

import copy
import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lightning_novograd.config import OptimConfig, parse_optim
from lightning_novograd.errors import ConfigError

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


# ---------------------------------------------------------------------------------------------- mistakes

SEQUENTIAL = {"name": "SequentialLR", "milestones": [5]}
MISTAKES = [
    # cfg, path, part of the problem
    pytest.param(None, "optim", "expected a mapping, got None", id="no block"),
    pytest.param([1], "optim", "expected a mapping", id="list"),
    pytest.param({"lr": 1.0}, "optim.name", "missing; which optimizer?", id="no name"),
    pytest.param(block(name=3), "optim.name", "expected a text, got 3", id="name is a number"),
    pytest.param(block(name="novagrad"), "optim.name", "did you mean 'NovoGrad'?", id="unknown optimizer"),
    pytest.param(block(learning_rate=1), "optim.learning_rate", "unknown key", id="unknown key"),
    pytest.param(
        block(weight_deacy=1), "optim.weight_deacy", "did you mean 'weight_decay'? Allowed: ", id="misspelt key"
    ),
    pytest.param(block(momentum=0.9), "optim.momentum", "unknown key", id="another optimizer's argument"),
    pytest.param(block(params=[1]), "optim.params", "unknown key", id="params"),
    pytest.param(block(lr="fast"), "optim.lr", "expected a number, got the text 'fast'", id="type"),
    pytest.param(block(lr="1e-3"), "optim.lr", "YAML reads 1e-3 as text", id="YAML number"),
    pytest.param(block(lr=None), "optim.lr", "expected a number, got null", id="null"),
    pytest.param(block(lr=float("nan")), "optim.lr", "nan is not a finite number", id="nan"),
    pytest.param(block(lr=-1), "optim.lr", "NovoGrad refuses it", id="range"),
    pytest.param(block(betas=[0.9]), "optim.betas", "expected a list of 2 numbers", id="length"),
    pytest.param(block(betas=[0.9, 1.5]), "optim.betas", "NovoGrad refuses it", id="range of an element"),
    pytest.param({"name": "sgd", "nesterov": True}, "optim.nesterov", "requires a momentum", id="needs another"),
    pytest.param(
        {"name": "sgd", "foreach": True, "fused": True},
        "optim",
        "SGD refuses it",
        id="arguments that do not go together",
    ),
    pytest.param(block(args={"name": "auto", "params": {"lrr": 1}}), "optim.args.params.lrr", "'lr'", id="legacy key"),
    pytest.param(
        block(args={"name": "adam_params"}), "optim.args.name", "does not belong to NovoGrad", id="legacy name"
    ),
    pytest.param(block(args={"lr": 1.0}), "optim.args.lr", "but optim.lr is 0.05; give one", id="given twice"),
    pytest.param(block(args=3), "optim.args", "expected a mapping", id="legacy type"),
    pytest.param({**block(), 3: 4}, "optim", "key 3 is not a text", id="key type"),
    # code and objects
    pytest.param(block(_target_="os.system"), "optim._target_", "'os.system' is refused", id="_target_"),
    pytest.param(sched(_target_="os.system"), "optim.sched._target_", "register_scheduler", id="_target_ below"),
    pytest.param(block(args={"cls": "a.B"}), "optim.args.cls", "'a.B' is refused", id="NeMo's cls"),
    pytest.param(block(name=torch.optim.SGD), "optim.name", "is a Python object (type)", id="class"),
    pytest.param(block(lr=torch.tensor(1.0)), "optim.lr", "is a Python object (Tensor)", id="tensor"),
    pytest.param(block(betas=(0.9, object())), "optim.betas[1]", "is a Python object", id="object in a list"),
    pytest.param(block(lr="${lr}"), "optim.lr", "interpolation '${lr}' is unresolved", id="interpolation in a dict"),
    # schedules
    pytest.param(
        block(sched="cosine"), "optim.sched", "expected a mapping or null, got the text", id="sched is a text"
    ),
    pytest.param(block(sched={"warmup_steps": 1}), "optim.sched.name", "missing; which scheduler?", id="sched name"),
    pytest.param(block(sched={"name": "cosin"}), "optim.sched.name", "did you mean 'cosine'?", id="unknown scheduler"),
    pytest.param(sched(warmup_step=3), "optim.sched.warmup_step", "did you mean 'warmup_steps'?", id="sched key"),
    pytest.param(
        sched(warmup_steps="many"), "optim.sched.warmup_steps", "expected an integer or null", id="sched type"
    ),
    pytest.param(sched(warmup_steps=-1), "optim.sched.warmup_steps", "must be at least 0", id="sched range"),
    pytest.param(sched(warmup_ratio=0.1), "optim.sched.warmup_ratio", "give one", id="steps and ratio"),
    pytest.param(sched(max_steps=5), "optim.sched.warmup_steps", "10 warmup steps do not fit", id="warmup too long"),
    pytest.param(sched(max_steps=0), "optim.sched.max_steps", "0 is out of range", id="max_steps range"),
    pytest.param(sched(max_steps=9, t_max_epochs=3), "optim.sched.max_epochs", "give one", id="two lengths"),
    pytest.param(sched(min_lr=1.0), "optim.sched.min_lr", "above the learning rate", id="min_lr above lr"),
    pytest.param(sched(last_epoch=7), "optim.sched.last_epoch", "only -1", id="last_epoch"),
    pytest.param(sched(iters_per_batch=2), "optim.sched.iters_per_batch", "the trainer is asked", id="runtime key"),
    pytest.param(sched(frequency=0), "optim.sched.frequency", "at least 1", id="frequency"),
    pytest.param(sched(frequency=2), "optim.sched.frequency", "must be 1", id="frequency of a whole-run schedule"),
    pytest.param(sched(interval="batch"), "optim.sched.interval", "'step' or 'epoch'", id="interval"),
    pytest.param(
        sched(interval="epoch", max_steps=50), "optim.sched.max_steps", "counts optimizer steps", id="steps in epochs"
    ),
    pytest.param(sched(reduce_on_plateau=True), "optim.sched.reduce_on_plateau", "does not watch", id="plateau"),
    pytest.param(sched(args={"cycle": True}), "optim.sched.args.cycle", "unknown key", id="sched legacy key"),
    pytest.param(block(sched={"name": "ReduceLROnPlateau"}), "optim.sched.monitor", "missing", id="monitor"),
    pytest.param(
        block(sched={"name": "ReduceLROnPlateau", "monitor": "x", "reduce_on_plateau": False}),
        "optim.sched.reduce_on_plateau",
        "does watch a metric",
        id="plateau denied",
    ),
    pytest.param(
        block(sched={"name": "ExponentialLR"}),
        "optim.sched.gamma",
        "missing; expected a number: ",
        id="required argument",
    ),
    pytest.param(
        block(sched={"name": "ExponentialLR", "gamma": 0.9, "max_steps": 9}),
        "optim.sched.max_steps",
        "ExponentialLR has no length",
        id="length of an endless schedule",
    ),
    pytest.param(block(sched={"name": "LambdaLR"}), "optim.sched.lr_lambda", "missing", id="function"),
    pytest.param(
        block(sched={"name": "LambdaLR", "lr_lambda": "f"}),
        "optim.sched.lr_lambda",
        "Python object",
        id="function as text",
    ),
    pytest.param(
        block(sched={"name": "CosineAnnealingWarmRestarts", "T_0": 0}),
        "optim.sched",
        "refuses it",
        id="torch's own range",
    ),
    pytest.param(
        block(sched=SEQUENTIAL), "optim.sched.schedulers", "missing; expected a list of schedulers", id="no list"
    ),
    pytest.param(
        block(sched={**SEQUENTIAL, "schedulers": [{"name": "StepLR"}]}),
        "optim.sched.schedulers[0].step_size",
        "missing",
        id="inner argument",
    ),
    pytest.param(
        block(sched={**SEQUENTIAL, "schedulers": [{"name": "cosine"}]}),
        "optim.sched.schedulers[0].max_steps",
        "missing",
        id="inner length",
    ),
    pytest.param(
        block(sched={**SEQUENTIAL, "schedulers": "StepLR"}),
        "optim.sched.schedulers",
        "expected a list",
        id="inner type",
    ),
    # param groups, decay, LARC, clipping
    pytest.param(block(no_decay=3), "optim.no_decay", "expected a list of texts", id="no_decay type"),
    pytest.param(
        {"name": "rprop", "no_decay": "bias"}, "optim.no_decay", "Rprop has no weight decay", id="no decay at all"
    ),
    pytest.param(block(param_groups={"match": "a"}), "optim.param_groups", "expected a list", id="rules type"),
    pytest.param(block(param_groups=[{"lr": 1.0}]), "optim.param_groups[0].match", "missing", id="rule without match"),
    pytest.param(
        block(param_groups=[{"match": "a", "lrr": 1.0}]),
        "optim.param_groups[0].lrr",
        "did you mean 'lr'?",
        id="rule key",
    ),
    pytest.param(
        block(param_groups=[{"match": "a"}, {"match": "b", "lr": -1}]),
        "optim.param_groups[1].lr",
        "refuses",
        id="rule range",
    ),
    pytest.param(
        block(param_groups=[{"match": "a", "lr": 1e-3}], sched=dict(COSINE, min_lr=0.01)),
        "optim.sched.min_lr",
        "param group 1",
        id="rule's lr below min_lr",
    ),
    pytest.param(block(larc=0.001), "optim.larc", "expected a mapping or true or false or null", id="larc type"),
    pytest.param(block(larc={"trust": 1}), "optim.larc.trust", "unknown key", id="larc key"),
    pytest.param(block(larc={"target": "updates"}), "optim.larc", "did you mean 'update'?", id="larc target"),
    pytest.param(block(larc={"larc_mode": "skale"}), "optim.larc.larc_mode", "did you mean 'scale'?", id="larc mode"),
    pytest.param(block(larc={"eps": 1e-8, "epsilon": 1e-7}), "optim.larc.epsilon", "give one", id="larc alias twice"),
    pytest.param({"name": "lbfgs", "larc": True}, "optim.larc", "LARC refuses it", id="larc on LBFGS"),
    pytest.param(block(grad_clip_norm=0), "optim.grad_clip_norm", "must be above 0", id="clip range"),
    pytest.param(
        block(grad_clip_norm=1, grad_clip_value=1),
        "optim.grad_clip_value",
        "grad_clip_norm is given too",
        id="two clips",
    ),
    pytest.param(
        block(grad_clip_norm=1, larc=True), "optim.grad_clip_norm", "larc.allow_grad_clip", id="clip with larc"
    ),
]


@pytest.mark.parametrize(("cfg", "path", "problem"), MISTAKES)
def test_a_mistake_is_one_error_with_its_path(cfg, path, problem):
    with pytest.raises(ConfigError) as caught:
        parse_optim(cfg)
    assert caught.value.path == path
    assert problem in caught.value.problem


def test_the_path_is_relative_to_where_the_block_is():
    with pytest.raises(ConfigError, match=r"^model\.optim\.sched\.warmup_step: unknown key"):
        parse_optim(sched(warmup_step=1), "model.optim")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("optim: {name: sgd, lr: '${nowhere}'}", "does not resolve at optim.lr"),
        ("optim: {name: sgd, lr: '???'}", "does not resolve at optim.lr"),
        ("optim: {name: sgd, lr: '${optim.lr}'}", "does not resolve at optim.lr"),
    ],
)
def test_omegaconf_errors_become_ours(text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_optim(OmegaConf.create(text).optim)
    assert caught.value.path == "optim"


def test_a_missing_value_in_plain_data():
    with pytest.raises(ConfigError, match="mandatory value"):
        parse_optim(block(lr="???"))


def test_a_block_that_contains_itself_is_refused():
    loop: dict[str, Any] = block()
    loop["sched"] = loop
    with pytest.raises(ConfigError, match="nested deeper"):
        parse_optim(loop)


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
