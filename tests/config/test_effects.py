"""What an optimizer would ignore or could only fail with in its first step is refused in the block."""

from typing import Any

import pytest
import torch
from mistakes import refused
from torch import nn

from lightning_novograd import build_optimizers, register_optimizer
from lightning_novograd.config import parse_optim
from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.registry import available_optimizers, get_optimizer, unregister_optimizer

ONE_CYCLE = {"name": "OneCycleLR", "max_lr": 0.1, "max_steps": 10}
# name: arguments that do nothing alone, and what makes them work
NEEDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "NovoGrad luc_trust": ({"luc_trust": 0.1}, {"luc": True}),
    "NovoGrad luc_eps": ({"luc_eps": 1e-3}, {"luc": True}),
    "SGD": ({"dampening": 0.5}, {"momentum": 0.9}),
    "Adam": ({"decoupled_weight_decay": True}, {"weight_decay": 0.1}),
    "NAdam": ({"decoupled_weight_decay": True}, {"weight_decay": 0.1}),
    "RAdam": ({"decoupled_weight_decay": True}, {"weight_decay": 0.1}),
}
CASES = [
    pytest.param(case.split()[0], alone, switch, id=case) for case, (alone, switch) in NEEDS.items()
]  # NovoGrad has two
WITH_DIFFERENTIABLE = [
    name for name in available_optimizers() if "differentiable" in entry_arguments(get_optimizer(name))
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def weights_after(block: dict[str, Any], steps: int = 3) -> torch.Tensor:
    module = net()
    optimizer = build_optimizers(block, module)["optimizer"]
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(("name", "alone", "switch"), CASES)
def test_what_needs_another_argument_is_refused_without_it(name, alone, switch):
    (key, value), needed = *alone.items(), next(iter(switch))
    problem = f"has no effect without {needed}; give {needed} too, or remove it"
    rule = {"match": "0.*"}
    with refused(f"optim.{key}", problem):
        parse_optim({"name": name, **alone})
    with refused(f"optim.param_groups[0].{key}", problem):
        parse_optim({"name": name, "param_groups": [{**rule, **alone}]})
    with refused(f"optim.param_groups[0].optimizer.{key}", problem):
        parse_optim({"name": name, **switch, "param_groups": [{**rule, "optimizer": {"name": name, **alone}}]})
    # where it is given, the two may stand in either place, and the argument has the effect that it lacks alone
    parse_optim({"name": name, **alone, **switch})
    parse_optim({"name": name, **switch, "param_groups": [{**rule, **alone}]})
    parse_optim({"name": name, **alone, "param_groups": [{**rule, **switch}]})
    parse_optim({"name": name, "param_groups": [{**rule, **alone, **switch}]})
    assert not torch.equal(weights_after({"name": name, **switch}), weights_after({"name": name, **switch, **alone}))
    cls = get_optimizer(name).cls
    assert cls([nn.Parameter(torch.ones(1))], **alone).defaults[key] == value


@pytest.mark.parametrize(
    "block",
    [
        {"name": "novograd", "luc": False, "luc_trust": 0.1},
        {"name": "sgd", "momentum": 0.0, "dampening": 0.5},
        {"name": "sgd", "dampening": 0},
        {"name": "adam", "decoupled_weight_decay": False},
        {"name": "sgd", "dampening": 0.5, "sched": ONE_CYCLE},
        {"name": "sgd", "dampening": 0.5, "param_groups": [{"match": "0.*", "sched": ONE_CYCLE}]},
        {"name": "sgd", "param_groups": [{"match": "0.*", "dampening": 0.5, "sched": ONE_CYCLE}]},
        {"name": "adamw", "lr": 0.1},
    ],
    ids=str,
)
def test_what_is_switched_off_in_so_many_words_or_switched_on_by_a_schedule_is_as_written(block):
    parse_optim(block)


def test_a_schedule_that_leaves_the_momentum_alone_switches_nothing_on():
    with refused("optim.dampening", "has no effect without momentum"):
        parse_optim({"name": "sgd", "dampening": 0.5, "sched": {**ONE_CYCLE, "cycle_momentum": False}})


def test_classes_of_others_say_what_their_arguments_need_or_inherit_it():
    class Mine(torch.optim.SGD):
        def __init__(self, params, alpha=0.0, beta=0.0, **kwargs):
            super().__init__(params, **kwargs)

    class Always(torch.optim.SGD):
        def __init__(self, params, lr=0.1, dampening=0.1):
            super().__init__(params, lr, momentum=0.9, dampening=dampening)

    register_optimizer("mine", Mine)
    register_optimizer("mine_too", Mine, needs={"beta": "alpha"})
    try:
        with refused("optim.dampening", "0.5 has no effect without momentum"):
            parse_optim({"name": "mine", "dampening": 0.5})
        with refused("optim.beta", "0.5 has no effect without alpha; give alpha too, or remove it"):
            parse_optim({"name": "mine_too", "beta": 0.5})
        parse_optim({"name": "mine_too", "beta": 0.5, "alpha": 0.5})
        with refused("optim.dampening", "0.5 has no effect without momentum"):
            parse_optim({"name": "mine_too", "dampening": 0.5})
        register_optimizer("always", Always)
        parse_optim({"name": "always", "dampening": 0.5})
    finally:
        unregister_optimizer("mine")
        unregister_optimizer("always")
        unregister_optimizer("mine_too")


@pytest.mark.parametrize("name", WITH_DIFFERENTIABLE)
def test_a_differentiable_step_is_refused(name):
    problem = "true has autograd run through the step, which torch refuses for the parameters of a module; remove it"
    rule = {"match": "0.*"}
    with refused("optim.differentiable", problem):
        parse_optim({"name": name, "differentiable": True})
    with refused("optim.param_groups[0].differentiable", problem):
        parse_optim({"name": name, "param_groups": [{**rule, "differentiable": True}]})
    with refused("optim.param_groups[0].optimizer.differentiable", problem):
        parse_optim({"name": "sgd", "param_groups": [{**rule, "optimizer": {"name": name, "differentiable": True}}]})
    parse_optim({"name": name, "differentiable": False})
    module = net()
    optimizer = get_optimizer(name).cls(module.parameters(), differentiable=True)
    module(torch.ones(2, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        optimizer.step()
