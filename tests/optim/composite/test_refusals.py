"""What a Composite cannot be made of."""

import pytest
import torch
from optim.composite.composites import SGD, AdamW
from optim.larc.larc_cases import make_params

from lightning_novograd.optim import LARC, Composite, NovoGrad

REFUSED = {
    "nothing": (lambda ps: [], ValueError, "empty list of optimizers"),
    "module": (lambda ps: [torch.nn.Linear(1, 1)], TypeError, r"not of a Linear \(part 0\)"),
    "class": (lambda ps: [SGD(ps[:1]), AdamW], TypeError, r"not of a type \(part 1\)"),
    "lbfgs": (lambda ps: [torch.optim.LBFGS(ps)], TypeError, "LBFGS evaluates its closure several times"),
    "twice": (
        lambda ps: [SGD(ps[:2]), AdamW(ps[1:])],
        ValueError,
        r"^a parameter of shape \(2, 3, 2\) is number 1 of param group 0 \(SGD\) and number 0 of .* 1 \(AdamW\);",
    ),
    "twice, named": (
        lambda ps: [SGD([("head.weight", ps[0])]), NovoGrad([{"params": ps[1:]}, {"params": ps[:1]}])],
        ValueError,
        r"^'head.weight' is number 0 of param group 0 \(SGD\) and number 0 of param group 2 \(NovoGrad\)",
    ),
    "itself": (
        lambda ps: [SGD(ps)] * 2,
        ValueError,
        r"param group 0 \(SGD#0\) and number 0 of param group 1 \(SGD#1\)",
    ),
    "larc and what is in it": (lambda ps: [o := SGD(ps), LARC(o)], ValueError, "belongs to one optimizer"),
    "in larc": (
        lambda ps: [AdamW(ps[:1]), LARC(Composite([SGD(ps[1:])]))],
        ValueError,
        r"part 1 of the Composite, LARC\(Composite\(SGD\)\), holds one itself; put the LARC around the parts",
    ),
}


def named(parts):
    """The parts that the groups of those that are optimizers name."""
    optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
    return [group.get("optimizer") for part in optimizers for group in part.param_groups]


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_no_trace_left(case):
    build, error, message = REFUSED[case]
    parts = build(make_params())
    before = named(parts)
    with pytest.raises(error, match=message):
        Composite(parts)
    assert named(parts) == before


def test_a_composite_among_the_parts_gives_its_parts():
    ps = make_params()
    inner = Composite([SGD(ps[:1], lr=0.1), AdamW(ps[1:2])])
    outer = Composite([inner, SGD(ps[2:], lr=0.1)])
    assert [type(part) for part in outer.optimizers] == [SGD, AdamW, SGD]
    assert [group["optimizer"] for group in outer.param_groups] == ["SGD#0", "AdamW", "SGD#2"]


def test_a_parameter_of_another_part_is_not_added():
    ps = make_params()
    composite = Composite([SGD(ps[:1], lr=0.1), AdamW(ps[1:2])])
    with pytest.raises(ValueError, match=r"number 0 of param group 1 \(AdamW\) and number 1 of param group 2 \(SGD\)"):
        composite.add_param_group({"params": iter([ps[2], ps[1]])})
    with pytest.raises(ValueError, match="more than one parameter group"):
        composite.add_param_group({"params": ps[:1]})
    assert len(composite.param_groups) == 2


def test_larc_is_not_put_around_a_part_under_larc():
    ps = make_params()
    with pytest.raises(ValueError, match="this LARC is under LARC already"):
        LARC(Composite([AdamW(ps[:1]), LARC(SGD(ps[1:]))]))
    with pytest.raises(ValueError, match="is under LARC already"):
        LARC(Composite([inner := SGD(ps[:1]), AdamW(ps[1:])]), LARC(inner).target)


def test_larc_warns_of_a_part_that_undoes_target_gradient():
    ps = make_params()
    with pytest.warns(UserWarning, match="does not bound the steps of AdamW"):
        LARC(Composite([SGD(ps[:1]), AdamW(ps[1:])]), target="gradient")


def test_sparse_gradients_are_refused_by_the_part_that_gets_them():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    composite = Composite([SGD(embedding.parameters(), lr=0.1), NovoGrad([torch.nn.Parameter(torch.ones(2))])])
    embedding(torch.tensor([1])).sum().backward()
    composite.step()
    composite = Composite([NovoGrad(embedding.parameters())])
    with pytest.raises(RuntimeError, match="NovoGrad does not support sparse gradients"):
        composite.step()
