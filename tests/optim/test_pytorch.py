"""torch's optimizers by name: numbers that end in NaN, in an exception or nowhere are refused at once."""

import math
import re
from typing import Any

import pytest
import torch
from mistakes import refused
from torch import nn

from lightning_novograd.config import OptimConfig, build_optimizers, parse_optim
from lightning_novograd.config.arguments import entry_arguments, expected
from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.pytorch import _RANGES
from lightning_novograd.registry import get_optimizer, register_optimizer, unregister_optimizer

# argument: (refused, at the borders and still allowed)
Values = dict[str, tuple[list[Any], list[Any]]]
NOT_NEGATIVE: tuple[list[Any], list[Any]] = ([-1e-9, -1], [0, 1e-9])
ALMOST_1 = 0.99999999  # in float32 it is 1
BETAS = (
    [[-0.1, 0.9], [0.9, -0.1], [1, 0.9], [0.9, 1], [0.9, 1.5], [ALMOST_1, 0.9], [0.9, ALMOST_1]],
    [[0, 0], [0, 0.999], [0.999, 0.999], [0.9, 0.9999999]],
)
EPS = ([0, -1e-8, 1e-46], [1e-30, 1.2e-38])  # in float32 1e-46 is 0
ADAM: Values = {"lr": NOT_NEGATIVE, "betas": BETAS, "eps": EPS, "weight_decay": NOT_NEGATIVE}
TABLE: dict[str, Values] = {
    "SGD": {
        "lr": NOT_NEGATIVE,
        "momentum": ([-0.1, 1, 9, ALMOST_1], [0, 0.999]),
        "dampening": ([-0.1, 1, 2, ALMOST_1], [0, 0.999]),
        "weight_decay": NOT_NEGATIVE,
    },
    "Adam": ADAM,
    "AdamW": ADAM,
    "Adamax": ADAM,
    "NAdam": {**ADAM, "momentum_decay": NOT_NEGATIVE},
    "RAdam": ADAM,
    "SparseAdam": {"lr": ([0, -1, 1e-50], [1e-9]), "betas": BETAS, "eps": EPS},
    "Adadelta": {"lr": NOT_NEGATIVE, "rho": ([-0.1, 1.1], [0, 1]), "eps": EPS, "weight_decay": NOT_NEGATIVE},
    "Adagrad": {
        "lr": NOT_NEGATIVE,
        "lr_decay": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "initial_accumulator_value": NOT_NEGATIVE,
        "eps": EPS,
    },
    "Adafactor": {
        "lr": NOT_NEGATIVE,
        "beta2_decay": ([0.1], [0, -0.8, -2]),
        "eps": (
            [[0, 1e-3], [-1, 1e-3], [1e-23, 1e-3], [1e20, 1e-3], [None, -1]],
            [[None, 0], [None, 1e-3], [1e-22, 1e-3]],
        ),
        "d": ([0, 0.9, -1], [1, 2]),
        "weight_decay": NOT_NEGATIVE,
    },
    "RMSprop": {
        "lr": NOT_NEGATIVE,
        "alpha": ([-0.1, 1, 2, ALMOST_1], [0, 0.999]),
        "eps": EPS,
        "weight_decay": NOT_NEGATIVE,
        "momentum": ([-0.1, 1, 9, ALMOST_1], [0, 0.999]),
    },
    "ASGD": {
        "lr": NOT_NEGATIVE,
        "lambd": NOT_NEGATIVE,
        "alpha": NOT_NEGATIVE,
        "t0": ([], [-1, 0, 1e6]),
        "weight_decay": NOT_NEGATIVE,
    },
    "Rprop": {
        "lr": NOT_NEGATIVE,
        "etas": ([[0, 1.2], [-1, 1.2], [1, 1.2], [0.5, 1], [0.5, 0.9]], [[1e-9, 1.001], [0.999, 5]]),
        "step_sizes": ([[-1, -0.5], [-1, 50], [1, 0.5]], [[0, 50], [1, 1]]),
    },
    "LBFGS": {
        "lr": NOT_NEGATIVE,
        "max_iter": ([0, -1], [1]),
        "max_eval": ([0, -1], [1, None]),
        "tolerance_grad": ([], [-1, 0]),
        "tolerance_change": ([], [-1, 0]),
        "history_size": ([0, -1], [1]),
        "line_search_fn": (["wolfe"], ["strong_wolfe", None]),
    },
    "Muon": {
        "lr": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "momentum": ([-0.1, 1, 2], [0, 0.999]),
        "ns_coefficients": ([[6.8, -4.7, 4.0], [20, 0, 0]], [[2, -1.5, 0.5], [1.5, -0.5, 0], [3.4445, -4.775, 2.0315]]),
        "eps": EPS,
        "ns_steps": ([-1, 100], [0, 1, 99]),
        "adjust_lr_fn": (["copied"], ["original", "match_rms_adamw", None]),
    },
}
REFUSED = [(name, key, value) for name, values in TABLE.items() for key, (bad, _) in values.items() for value in bad]
ALLOWED = [(name, key, value) for name, values in TABLE.items() for key, (_, good) in values.items() for value in good]


def with_value(value: Any, bad: float) -> list[Any]:
    """`bad` alone, or at each place of a list like `value`."""
    if not isinstance(value, list):
        return [bad]
    return [[*value[:index], bad, *value[index + 1 :]] for index in range(len(value))]


NOT_FINITE = [
    (name, key, value)
    for name, values in TABLE.items()
    for key, (_, good) in values.items()
    if not any(isinstance(g, str) for g in good)
    for bad in (math.nan, math.inf, -math.inf, 1e39, 1e300, -1e300)  # float32 holds none of them
    for value in with_value(good[-1], bad)
]


def test_every_optimizer_of_torch_and_every_number_is_in_the_table():
    names = {name for name, cls in vars(torch.optim).items() if isinstance(cls, type)} - {"Optimizer"}
    assert {*TABLE} == names == {cls.__name__ for cls in _RANGES}
    for name, values in TABLE.items():
        arguments = entry_arguments(get_optimizer(name))
        numbers = {key for key, argument in arguments.items() if re.search("integer|number", expected(argument.hint))}
        assert numbers == {key for key in values if not any(isinstance(v, str) for v in values[key][1])}
        assert numbers == _RANGES[getattr(torch.optim, name)].keys()


@pytest.mark.parametrize(("name", "key", "value"), [*REFUSED, *NOT_FINITE], ids=str)
def test_it_is_refused_and_named(name, key, value):
    with pytest.raises(ConfigError) as caught:
        parse_optim({"name": name, key: value})
    assert caught.value.path.split("[")[0] == f"optim.{key}"
    # and where no parser has seen it
    with pytest.raises(ConfigError) as caught:
        build_optimizers(OptimConfig(name=name, args={key: value}), nn.Linear(2, 2, bias=False))
    assert caught.value.path == f"optim.{key}"


@pytest.mark.parametrize(("name", "key", "value"), ALLOWED, ids=str)
@pytest.mark.parametrize("zero", [False, True], ids=["descending", "no gradient"])
def test_it_is_allowed_and_keeps_weights_finite(name, key, value, zero):
    needed = {"momentum": 0.9} if key == "dampening" else {}
    assert math.isfinite(trained(name, {key: value, **needed}, zero))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("SGD", {"momentum": 9}),
        ("RMSprop", {"alpha": 2}),
        ("RMSprop", {"alpha": 1}),
        ("RMSprop", {"alpha": 0, "centered": True}),
        ("ASGD", {"alpha": -3, "lr": 0.5, "lambd": 0.1}),
        ("Muon", {"momentum": 2}),
        ("Muon", {"ns_coefficients": [6.8, -4.7, 4.0]}),
        *(
            (name, {"eps": 0.0})
            for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adadelta", "RMSprop", "Muon")
        ),
        ("Adagrad", {"eps": 0.0}),
        ("Adafactor", {"eps": [1e-30, 1e-3]}),
    ],
    ids=str,
)
def test_torch_makes_nan_or_infinity_of_it(name, args):
    """The ranges are no matter of taste."""
    with pytest.raises(ConfigError, match=r"must be|diverge"):
        parse_optim({"name": name, **args})
    cls = getattr(torch.optim, name)
    try:
        ends = [trained(name, args, zero, cls) for zero in (False, True)]
    except ValueError as error:
        assert str(error).startswith("Invalid ")  # noqa: PT017 - torch has come to refuse it itself
    else:
        assert not all(map(math.isfinite, ends))


def trained(name: str, args: dict[str, Any], zero: bool, cls: Any = None) -> float:
    """The largest weight after 300 steps on a bowl, or 40 without a gradient."""
    module = nn.Embedding(2, 2, sparse=True) if name == "SparseAdam" else nn.Linear(2, 2, bias=False)
    nn.init.ones_(module.weight)
    optimizer = cls([module.weight], **args) if cls else build_optimizers({"name": name, **args}, module)["optimizer"]

    def closure():
        optimizer.zero_grad()
        loss = module.weight.square().sum() / 2
        loss.backward()
        if zero:
            module.weight.grad.zero_()
        if name == "SparseAdam":
            module.weight.grad = module.weight.grad.to_sparse()
        return loss

    for _ in range(40 if zero else 300):
        optimizer.step(closure)
    return module.weight.abs().max().item()


@pytest.mark.parametrize(
    ("block", "path", "problem"),
    [
        ({"name": "sgd", "momentum": 9}, "optim.momentum", "9.0 is out of range; must be at least 0 and below 1"),
        ({"name": "rmsprop", "alpha": 2}, "optim.alpha", "2.0 is out of range; must be at least 0 and below 1"),
        ({"name": "adam", "eps": 0}, "optim.eps", "0.0 is out of range; must be above 0"),
        ({"name": "rmsprop", "alpha": 0, "centered": True}, "optim.alpha", "with centered it must be above 0"),
        ({"name": "rprop", "step_sizes": [1, 0.5]}, "optim.step_sizes", "must be [smallest, largest]"),
        ({"name": "adafactor", "eps": [1e-30, 1e-3]}, "optim.eps", "must be null or at least 1e-22"),
        (
            {"name": "adafactor", "eps": [1e-30, 1e-3]},
            "optim.eps",
            "where others have 1e-30, torch has its root, 1e-15",
        ),
        ({"name": "lbfgs", "line_search_fn": "strong_wolf"}, "optim.line_search_fn", "did you mean 'strong_wolfe'?"),
        (
            {"name": "sgd", "param_groups": [{"match": "*", "momentum": 9}]},
            "optim.param_groups[0].momentum",
            "must be at least 0 and below 1",
        ),
        (
            {"name": "rmsprop", "centered": True, "param_groups": [{"match": "*", "alpha": 0}]},
            "optim.param_groups[0].alpha",
            "with centered",
        ),
        ({"name": "adam", "betas": ["a", 0.9]}, "optim.betas", "expected a list of 2 numbers"),
        ({"name": "sgd", "lr": 1e39}, "optim.lr", "1e+39 is beyond float32, whose largest number is 3.4e+38"),
        ({"name": "sgd", "momentum": ALMOST_1}, "optim.momentum", "is 1.0 in float32; must be at least 0 and below 1"),
    ],
)
def test_the_error_names_the_argument(block, path, problem):
    with refused(path, problem):
        parse_optim(block)


def test_adagrad_needs_no_eps_where_its_sum_does_not_begin_at_zero():
    assert math.isfinite(trained("Adagrad", {"eps": 0.0, "initial_accumulator_value": 0.1}, zero=True))


# ----------------------------------------------------------------------------- weights of half precision

# refused in float16, still allowed in it: a gradient of zero or so, divided by an eps that is 0 there
HALF: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    **dict.fromkeys(("Adam", "AdamW"), ([{}, {"eps": 1e-8}, {"foreach": True}], [{"eps": 1e-4}, {"fused": True}])),
    **dict.fromkeys(("Adamax", "NAdam", "RAdam", "RMSprop"), ([{}, {"eps": 1e-8}, {"foreach": True}], [{"eps": 1e-4}])),
    "SparseAdam": ([{}, {"eps": 1e-8}], [{"eps": 1e-4}]),
    "Adagrad": ([{}, {"fused": True}], [{"eps": 1e-4}, {"eps": 0.0, "initial_accumulator_value": 0.1}]),
    "Adadelta": ([{"eps": 1e-8}], [{}, {"eps": 1e-4}]),
    "Adafactor": ([{"eps": [1e-4, 1e-3]}], [{}, {"eps": [1e-2, 1e-3]}]),
    **dict.fromkeys(("SGD", "ASGD", "Rprop", "Muon", "NovoGrad"), ([], [{}])),
}
HALF_REFUSED = [(name, args) for name, (bad, _) in HALF.items() for args in bad]
HALF_ALLOWED = [(name, args) for name, (_, good) in HALF.items() for args in good]


def of_half(dtype: torch.dtype = torch.float16) -> nn.Module:
    return nn.Embedding(8, 8, sparse=True).to(dtype)  # large enough for a vector of any CPU; SparseAdam takes it too


@pytest.mark.parametrize(("name", "args"), HALF_REFUSED, ids=str)
def test_an_eps_that_float16_makes_0_is_refused(name, args):
    block = {"name": name, "lr": 1e-3, **args}
    with pytest.raises(ConfigError, match=r"is 0 in float16.*at least 0\.(01|0001),") as caught:
        build_optimizers(block, of_half())
    assert caught.value.path == "optim.eps"
    assert "bf16-true" in caught.value.problem
    build_optimizers(block, of_half(torch.bfloat16))
    build_optimizers(block, of_half(torch.float32))


@pytest.mark.parametrize(("name", "args"), HALF_REFUSED, ids=str)
def test_torch_makes_nan_or_infinity_of_it_in_float16(name, args):
    cls = getattr(torch.optim, name)
    stays_finite = all(math.isfinite(of_half_trained(cls, args, grad)) for grad in (0.0, 1e-5, 1e-3))
    if stays_finite and name == "Adagrad" and torch.__version__ >= "2.14":
        pytest.skip("torch has come to compute the fused Adagrad in float32 (seen in 2.15)")
    assert not stays_finite


@pytest.mark.parametrize("grad", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize(("name", "args"), HALF_ALLOWED, ids=str)
def test_float16_with_an_eps_that_it_holds(name, args, grad):
    build_optimizers({"name": name, "lr": 1e-3, **args}, of_half())
    assert math.isfinite(of_half_trained(get_optimizer(name).cls, args, grad))


def of_half_trained(cls: Any, args: dict[str, Any], grad: float) -> float:
    module = of_half()
    optimizer = cls(module.parameters(), lr=1e-3, **args)
    for _ in range(8):  # RAdam divides from its sixth step on
        module.weight.grad = torch.full_like(module.weight, grad)
        if cls is torch.optim.SparseAdam:
            module.weight.grad = module.weight.grad.to_sparse()
        optimizer.step()
    return module.weight.abs().max().item()


def test_every_optimizer_of_torch_that_steps_float16_is_in_the_table():
    assert {*HALF} - {"NovoGrad"} == {*TABLE} - {"LBFGS"}


def test_the_square_that_bfloat16_makes_0():
    block = {"name": "adafactor", "eps": [1e-22, 1e-3]}
    with pytest.raises(ConfigError, match="is 0 in bfloat16, when squared; write null, or at least 1e-18"):
        build_optimizers(block, of_half(torch.bfloat16))
    build_optimizers(block, of_half(torch.float32))


def test_a_subclass_without_eps_is_left_alone():
    class NoEps(torch.optim.Adam):
        def __init__(self, params, lr=1e-3):
            torch.optim.Optimizer.__init__(self, params, {"lr": lr})

    register_optimizer("no_eps", NoEps)
    try:
        build_optimizers({"name": "no_eps"}, of_half())
    finally:
        unregister_optimizer("no_eps")


def test_the_group_of_float16_is_named():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).half())
    block = {"name": "adam", "eps": 1e-4, "param_groups": [{"match": "1.*", "name": "head", "eps": 1e-8}]}
    with pytest.raises(ConfigError, match="1e-08 of param group 'head' is 0 in float16"):
        build_optimizers(block, module)


def test_a_default_dtype_of_float16_changes_nothing_before_there_is_a_model():
    torch.set_default_dtype(torch.float16)
    try:
        parse_optim({"name": "adam"})
    finally:
        torch.set_default_dtype(torch.float32)
