"""Names -> classes: what is built in, how others register, what installed plugins add."""

import importlib.metadata
import subprocess
import sys

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedulers

from lightning_novograd import lr_scheduler, registry
from lightning_novograd.commands import describe
from lightning_novograd.config import parse_optim
from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import (
    Range,
    available_optimizers,
    available_schedulers,
    get_optimizer,
    get_scheduler,
    register_optimizer,
    register_scheduler,
    unregister_optimizer,
    unregister_scheduler,
)

TORCH_OPTIMIZERS = [
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
]
TORCH_SCHEDULERS = [name for name in torch_schedulers.__all__ if name != "LRScheduler"]
NEMO_OPTIMIZERS = ["sgd", "adam", "adamw", "adadelta", "adamax", "adagrad", "rmsprop", "rprop", "novograd", "adafactor"]


class MySGD(torch.optim.SGD):
    """My SGD. https://arxiv.org/abs/1234.5678"""


class MyLR(torch_schedulers.LRScheduler):
    def __init__(self, optimizer, *, max_steps, last_epoch=-1):
        super().__init__(optimizer, last_epoch)


@pytest.mark.parametrize("name", TORCH_OPTIMIZERS)
def test_every_torch_optimizer_is_registered(name):
    assert get_optimizer(name).cls is getattr(torch.optim, name)
    assert name in available_optimizers()


@pytest.mark.parametrize("name", TORCH_SCHEDULERS)
def test_every_torch_scheduler_is_registered(name):
    assert get_scheduler(name).cls is getattr(torch_schedulers, name)
    assert name in available_schedulers()


@pytest.mark.parametrize("name", lr_scheduler.__all__)
def test_every_scheduler_of_ours_is_registered_and_gets_its_length(name):
    entry = get_scheduler(name)
    assert entry.cls is getattr(lr_scheduler, name)
    endless = name in ("PiecewiseConstant", "ExpDecay", "TransformerPolicy")
    assert (entry.interval, entry.length) == ("step", None if endless else "max_steps")


@pytest.mark.parametrize("name", NEMO_OPTIMIZERS)
def test_nemo_optimizer_names_resolve(name):
    assert get_optimizer(name).name.casefold() == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("cosine", "CosineAnnealing"),
        ("COSINE", "CosineAnnealing"),
        ("polynomial", "PolynomialDecayAnnealing"),
        ("warmup", "WarmupPolicy"),
        ("poly_decay", "PolyDecay"),
        ("steplr", "StepLR"),
    ],
)
def test_scheduler_aliases_and_case(alias, name):
    assert get_scheduler(alias).name == name


@pytest.mark.parametrize(
    ("get", "kind", "name", "nearest"),
    [
        (get_optimizer, "optimizer", "novagrad", "NovoGrad"),
        (get_optimizer, "optimizer", "adamW2", "AdamW"),
        (get_scheduler, "scheduler", "CosineAnealing", "CosineAnnealing"),
    ],
)
def test_an_unknown_name_says_which_are_known(get, kind, name, nearest):
    with pytest.raises(ConfigError) as caught:
        get(name, "somewhere.name")
    assert caught.value.path == "somewhere.name"
    assert f"unknown {kind} {name!r}; did you mean {nearest!r}? Allowed: " in caught.value.problem


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("fused_adam", "AdamW (as apex's is by default) or Adam"),
        ("FusedSGD", "SGD"),
        ("FusedNovoGrad", "NovoGrad"),
    ],
)
def test_fused_is_an_argument_here(name, meant):
    with pytest.raises(ConfigError) as caught:
        get_optimizer(name)
    assert caught.value.problem == f"unknown optimizer {name!r}; did you mean {meant}, with fused: true?"


def test_register_as_a_decorator_with_aliases():
    try:
        assert register_optimizer("my_sgd", aliases=["mine"])(MySGD) is MySGD
        entry = get_optimizer("MINE")
        assert (entry.cls, entry.name) == (MySGD, "my_sgd")
        assert (entry.help, entry.paper) == (
            "My SGD. https://arxiv.org/abs/1234.5678",
            "https://arxiv.org/abs/1234.5678",
        )
        assert "my_sgd" in available_optimizers()
    finally:
        unregister_optimizer("my_sgd")
    assert "my_sgd" not in available_optimizers()


def test_an_alias_may_be_the_name_in_another_case():
    register_optimizer("my_sgd", MySGD, aliases=["My_SGD"])
    unregister_optimizer("my_sgd")
    assert "my_sgd" not in available_optimizers()


@pytest.mark.parametrize(("length", "found"), [("max_steps", "max_steps"), ("total", None), (None, None)])
def test_a_registered_scheduler_gets_the_length_if_it_takes_one(length, found):
    register_scheduler("my_lr", MyLR, length=length, interval="epoch")
    try:
        entry = get_scheduler("my_lr")
        assert (entry.length, entry.interval) == (found, "epoch")
    finally:
        unregister_scheduler("my_lr")


@pytest.mark.parametrize("name", ["sgd", "SGD", "NovoGrad"])
def test_a_taken_name_is_refused(name):
    with pytest.raises(ConfigError, match="already registered"):
        register_optimizer(name, MySGD)


class OfTypes(MySGD):
    def __init__(self, params: "ForTypeCheckers", lr: "ForTypeCheckers" = 0.1):  # noqa: F821
        super().__init__(params, lr)


class OfTypesLR(MyLR):
    def __init__(self, optimizer: "ForTypeCheckers", *, max_steps: "int", power: "ForTypeCheckers" = 1.0):  # noqa: F821
        super().__init__(optimizer, max_steps=max_steps)

    def get_lr(self):
        return self.base_lrs


def test_classes_annotated_for_type_checkers_only_can_be_registered():
    register_optimizer("of_types", OfTypes)
    register_scheduler("of_types_lr", OfTypesLR)
    try:
        config = parse_optim({"name": "of_types", "lr": 1, "sched": {"name": "of_types_lr", "power": 2}})
        assert config.args == {"lr": 1.0}
        assert config.sched.args == {"power": 2.0}
        with pytest.raises(ConfigError, match="expected a number"):
            parse_optim({"name": "of_types", "lr": "fast"})
    finally:
        unregister_optimizer("of_types")
        unregister_scheduler("of_types_lr")


def test_what_is_known_of_a_class_is_checked_in_every_block_that_names_it():
    def check(args):
        if args.get("nesterov") and not args.get("momentum"):
            raise ConfigError("nesterov", "needs a momentum")

    register_optimizer("my_sgd", MySGD, ranges={"momentum": Range("below 1", lambda value: value < 1)}, check=check)
    try:
        for block, path, problem in [
            ({"momentum": 9}, "optim.momentum", "9.0 is out of range; must be below 1"),
            ({"nesterov": True}, "optim.nesterov", "needs a momentum"),
            ({"param_groups": [{"match": "*", "momentum": 2}]}, "optim.param_groups[0].momentum", "must be below 1"),
        ]:
            with pytest.raises(ConfigError) as caught:
                parse_optim({"name": "my_sgd", **block})
            assert caught.value.path == path
            assert problem in caught.value.problem
    finally:
        unregister_optimizer("my_sgd")


def test_a_class_under_another_name_is_still_what_it_is():
    register_scheduler("my_step", torch_schedulers.StepLR, interval="epoch", length=None)
    try:
        with pytest.raises(ConfigError, match="must be at least 1"):
            parse_optim({"name": "sgd", "sched": {"name": "my_step", "step_size": 0}})
        assert get_scheduler("StepLR").name == "StepLR"
    finally:
        unregister_scheduler("my_step")


def test_only_classes_are_registered():
    with pytest.raises(ConfigError, match="a class is registered"):
        register_optimizer("my_function", lambda params: None)  # type: ignore[arg-type]


def test_arguments_come_from_the_signature_and_the_docstring():
    arguments = entry_arguments(get_optimizer("adamw"))
    assert "params" not in arguments
    assert (arguments["weight_decay"].default, arguments["weight_decay"].help) == (0.01, "weight decay coefficient")
    assert entry_arguments(get_scheduler("ExponentialLR"))["gamma"].required


@pytest.mark.parametrize("name", ["NovoGrad", *TORCH_OPTIMIZERS])
def test_every_optimizer_argument_has_a_type_that_data_can_have(name):
    assert all(argument.from_data for argument in entry_arguments(get_optimizer(name)).values())


@pytest.fixture
def installed(monkeypatch):
    """Pretends that distributions offer entry points: `installed("optimizers", name="module:attribute", ...)`."""
    registry._entry_points.cache_clear()

    def install(group, **points):
        class Point(importlib.metadata.EntryPoint):
            dist = type("Distribution", (), {"name": "fancy-optimizers"})()

        found = [Point(name, value, f"lightning_novograd.{group}") for name, value in points.items()]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: [point for point in found if point.group == group]
        )

    yield install
    registry._entry_points.cache_clear()


def test_entry_points_are_found_without_importing_them(installed):
    installed("optimizers", fancy="test_registry_no_such_module:Fancy")
    assert "fancy" in available_optimizers()
    assert get_optimizer("sgd").cls is torch.optim.SGD


def test_an_entry_point_resolves(installed):
    installed("optimizers", fancy="torch.optim:SGD")
    assert get_optimizer("Fancy").cls is torch.optim.SGD
    assert "fancy" not in available_schedulers()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("test_registry_no_such_module:Fancy", "cannot be imported: ModuleNotFoundError"),
        ("torch.optim:NoSuchClass", "cannot be imported: AttributeError"),
        ("torch:zeros", "is not a class that inherits from LRScheduler"),
        ("torch.optim:SGD", "is not a class that inherits from LRScheduler"),
    ],
)
def test_a_broken_plugin_is_named_when_it_is_asked_for(installed, value, problem):
    installed("schedulers", fancy=value)
    with pytest.raises(ConfigError, match=problem) as caught:
        get_scheduler("fancy")
    assert "'fancy-optimizers'" in caught.value.problem


def test_a_scheduler_of_a_plugin_gets_the_length_of_the_run(installed):
    installed(
        "schedulers",
        fancy="lightning_novograd.lr_scheduler.nemo:CosineAnnealing",
        plain="torch.optim.lr_scheduler:StepLR",
    )
    assert get_scheduler("fancy").length == "max_steps"
    assert get_scheduler("plain").length is None


def test_a_broken_plugin_does_not_hide_the_others(installed):
    installed("optimizers", fancy="test_registry_no_such_module:Fancy")
    text = describe.overview("optimizer")
    assert "optimizer 'fancy' of the distribution 'fancy-optimizers' cannot be imported" in text
    assert "NovoGrad" in text
    assert "NovoGrad" in describe.markdown()


def test_a_name_offered_twice_is_refused_not_guessed(installed):
    installed("optimizers", sgd="torch.optim:Adam")
    with pytest.raises(ConfigError, match=r"more than once: by fancy-optimizers, .*SGD"):
        get_optimizer("sgd")


def test_installed_plugins_are_read_from_the_environment(tmp_path):
    """A real distribution on sys.path, in a process of its own."""
    (tmp_path / "fancy.py").write_text("from torch.optim import SGD\nclass Fancy(SGD): pass\n")
    info = tmp_path / "fancy_optimizers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fancy-optimizers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lightning_novograd.optimizers]\nfancy = fancy:Fancy\n")
    code = "from lightning_novograd.registry import get_optimizer; print(get_optimizer('fancy').cls.__name__)"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "Fancy"


@pytest.mark.parametrize("name", ["", " ", "my sgd ", "\n", None, 3], ids=repr)
@pytest.mark.parametrize(("register", "cls"), [(register_optimizer, MySGD), (register_scheduler, MyLR)])
def test_a_name_that_no_config_can_give_is_refused(register, cls, name):
    with pytest.raises(ConfigError, match="a name is a text, not empty"):
        register(name, cls)
    with pytest.raises(ConfigError, match="a name is a text, not empty"):
        register("my_own", cls, aliases=[name])
    assert "my_own" not in available_optimizers() + available_schedulers()


@pytest.mark.parametrize(
    ("register", "cls", "base"),
    [
        (register_optimizer, torch.nn.Linear, "Optimizer"),
        (register_optimizer, MyLR, "Optimizer"),
        (register_optimizer, torch.optim.Optimizer, "Optimizer"),
        (register_scheduler, MySGD, "LRScheduler"),
        (register_scheduler, torch_schedulers.LRScheduler, "LRScheduler"),
        (register_scheduler, int, "LRScheduler"),
    ],
)
def test_only_optimizers_and_schedulers_are_registered(register, cls, base):
    with pytest.raises(ConfigError, match=f"is not a class that inherits from {base}"):
        register("my_own", cls)
