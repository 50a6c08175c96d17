"""Every mistake in an optim block is one ConfigError: the key's full path, what is wrong, what is allowed."""

import re
from typing import Any

import pytest
import torch
from mistakes import refused
from omegaconf import OmegaConf

from lightning_novograd.config import parse_optim
from lightning_novograd.config.arguments import entry_arguments, expected
from lightning_novograd.config.schema import LARC_ARGUMENTS
from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import available_optimizers, get_optimizer

COSINE = {"name": "CosineAnnealing", "warmup_steps": 10, "min_lr": 1e-5}


def block(**changes: Any) -> dict[str, Any]:
    return {"name": "novograd", "lr": 0.05, "betas": [0.95, 0.25], "weight_decay": 0.001, **changes}


def sched(**changes: Any) -> dict[str, Any]:
    return block(sched={**COSINE, **changes})


SEQUENTIAL = {"name": "SequentialLR", "milestones": [5]}
MISTAKES = [
    # cfg, path, part of the problem
    pytest.param(None, "optim", "expected a mapping, got None", id="no block"),
    pytest.param([1], "optim", "expected a mapping", id="list"),
    pytest.param({"lr": 1.0}, "optim.name", "missing; which optimizer?", id="no name"),
    pytest.param({"optim": block()}, "optim.name", "is a key 'optim': give what is in it", id="whole config"),
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
    pytest.param(block(lr=10**400), "optim.lr", "an integer of 1329 bits is too large", id="integer no float can hold"),
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
        {"name": "rprop", "sched": {"name": "CyclicLR", "base_lr": 0.1, "max_lr": 0.2}},
        "optim.sched",
        "refuses it",
        id="torch's own rule",
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
    pytest.param(block(larc={"target": "updates"}), "optim.larc.target", "did you mean 'update'?", id="larc target"),
    pytest.param(
        block(larc={"trust_coefficient": -1}),
        "optim.larc.trust_coefficient",
        "Invalid trust_coefficient",
        id="larc range",
    ),
    pytest.param(block(larc={"larc_mode": "skale"}), "optim.larc.larc_mode", "did you mean 'scale'?", id="larc mode"),
    pytest.param(block(larc={"eps": 1e-8, "epsilon": 1e-7}), "optim.larc.epsilon", "give one", id="larc alias twice"),
    pytest.param({"name": "lbfgs", "larc": True}, "optim.larc", "LARC refuses it", id="larc on LBFGS"),
    pytest.param(
        block(larc={"trust_coefficient": 1e60}),
        "optim.larc.trust_coefficient",
        "allowed: a number >= 0 that float32 holds",
        id="larc beyond float32",
    ),
    pytest.param(block(grad_clip_norm=0), "optim.grad_clip_norm", "must be above 0", id="clip range"),
    pytest.param(block(grad_clip_norm=1e-50), "optim.grad_clip_norm", "is 0.0 in float32", id="clip of 0 in float32"),
    pytest.param(block(grad_clip_value=1e39), "optim.grad_clip_value", "beyond float32", id="clip beyond float32"),
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
    with refused(path, problem):
        parse_optim(cfg)


def test_the_path_is_relative_to_where_the_block_is():
    with pytest.raises(ConfigError, match=r"^model\.optim\.sched\.warmup_step: unknown key"):
        parse_optim(sched(warmup_step=1), "model.optim")


@pytest.mark.parametrize("digits", [20, 400, 5000])
@pytest.mark.parametrize(
    "path", [("lr",), ("betas", 1), ("larc", "eps"), ("sched", "min_lr"), ("param_groups", 0, "lr")]
)
def test_integers_that_no_float_and_no_counter_can_hold(path, digits):
    cfg = block(larc={"eps": 1e-8}, sched=dict(COSINE), param_groups=[{"match": "bias", "lr": 0.1}])
    node: Any = cfg
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = 10**digits
    for given in (cfg, OmegaConf.create(cfg)):
        with pytest.raises(ConfigError, match=r"an integer of \d+ bits is too large") as caught:
            parse_optim(given)
        assert caught.value.path == "optim" + "".join(f"[{key}]" if type(key) is int else f".{key}" for key in path)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("lr: '${nowhere}'", "lr"),
        ("lr: '???'", "lr"),
        ("lr: '${optim.lr}'", "lr"),
        ("param_groups: [{match: bias, lr: '???'}]", "param_groups[0].lr"),
        ("sched: {name: cosine, min_lr: '${nowhere}'}", "sched.min_lr"),
    ],
)
def test_omegaconf_errors_become_ours(text, path):
    block = f"{{name: sgd, {text}}}"
    for cfg in (OmegaConf.create(block), OmegaConf.create(f"{{optim: {block}}}").optim):
        with pytest.raises(ConfigError, match="does not resolve: ") as caught:
            parse_optim(cfg)
        assert caught.value.path == f"optim.{path}"


def test_a_missing_value_in_plain_data():
    with pytest.raises(ConfigError, match="mandatory value"):
        parse_optim(block(lr="???"))


def test_a_block_that_contains_itself_is_refused():
    loop: dict[str, Any] = block()
    loop["sched"] = loop
    with pytest.raises(ConfigError, match="nested deeper"):
        parse_optim(loop)


NUMBERS = [
    *(
        (name, key, argument)
        for name in available_optimizers()
        for key, argument in entry_arguments(get_optimizer(name)).items()
    ),
    *(("LARC", key, argument) for key, argument in LARC_ARGUMENTS.items()),
]


@pytest.mark.parametrize("number", [1e39, 1e60, 1e300, -1e300])
@pytest.mark.parametrize(
    ("name", "key", "argument"),
    [entry for entry in NUMBERS if re.search("integer|number", expected(entry[2].hint))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_optimizer_takes_what_float32_does_not_hold(name, key, argument, number):
    """Those of schedules: tests/lr_scheduler."""
    many = isinstance(argument.default, tuple)
    for place in range(len(argument.default)) if many else [0]:
        value = [*argument.default[:place], number, *argument.default[place + 1 :]] if many else number
        cfg = {"name": "sgd", "larc": {key: value}} if name == "LARC" else {"name": name, key: value}
        with pytest.raises(ConfigError) as caught:
            parse_optim(cfg)
        assert caught.value.path == ("optim.larc." if name == "LARC" else "optim.") + key
