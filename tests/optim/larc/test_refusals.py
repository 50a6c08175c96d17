"""What LARC refuses: options, optimizers, layers and gradients."""

import pytest
import torch
from optim.larc.larc_cases import SGD, make_params

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc import LARC, larc_arguments_from_openseq2seq

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels


BAD_OPTIONS = [
    ({"trust_coefficient": -1.0}, ValueError, "larc_trust_coefficient value: -1.0"),
    ({"eps": float("nan")}, ValueError, "larc_eps value: nan"),
    ({"min_update": float("inf")}, ValueError, "larc_min_update value: inf"),
    ({"trust_coefficient": 1e60}, ValueError, r"larc_trust_coefficient value: 1e\+60"),
    ({"min_update": 1e39}, ValueError, r"larc_min_update value: 1e\+39"),
    ({"eps": 1e300}, ValueError, r"larc_eps value: 1e\+300"),
    ({"clip": "false"}, TypeError, "larc_clip value: 'false'; allowed: True, False"),
    ({"target": "gradiant"}, ValueError, "'gradiant'; did you mean 'gradient'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS, ids=lambda v: str(v)[:30])
def test_bad_options_are_refused_and_the_optimizer_stays_bare(options, error, message):
    inner = SGD(make_params(), lr=0.1)
    with pytest.raises(error, match=message):
        LARC(inner, **options)
    assert "larc" not in inner.param_groups[0]
    LARC(inner)


@pytest.mark.parametrize(
    "add",
    [
        lambda params, group: LARC(SGD([group], lr=0.1)),
        lambda params, group: LARC(SGD(params[1:], lr=0.1)).add_param_group(group),
    ],
    ids=["constructor", "add_param_group"],
)
def test_a_misspelt_option_of_a_group_is_refused(add):
    params = make_params()
    with pytest.raises(ValueError, match="'larc_trust_coeficient'; did you mean 'larc_trust_coefficient'"):
        add(params, {"params": params[:1], "larc_trust_coeficient": 0.1})


class NoLR(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


BAD_OPTIMIZERS = {
    "module": (lambda p: torch.nn.Linear(1, 1), TypeError, "wraps a torch.optim.Optimizer, not a Linear"),
    "lbfgs": (lambda p: torch.optim.LBFGS(p), TypeError, "LBFGS evaluates its closure several times"),
    "larc": (lambda p: LARC(SGD(p, lr=0.1)), ValueError, "LARC is under LARC already"),
    "wrapped": (lambda p: LARC(SGD(p, lr=0.1)).optimizer, ValueError, "SGD is under LARC already"),
    "differentiable": (lambda p: SGD(p, lr=0.1, differentiable=True), ValueError, "differentiable=True"),
    "no lr": (NoLR, ValueError, "param group 0 of NoLR has no 'lr'"),
}


@pytest.mark.parametrize("case", BAD_OPTIMIZERS)
def test_optimizers_that_cannot_be_controlled_are_refused(case):
    build, error, message = BAD_OPTIMIZERS[case]
    with pytest.raises(error, match=message):
        LARC(build(make_params()))


def test_flattened_layers_are_refused():
    params = make_params()
    params[0]._fsdp_flattened = True
    with pytest.raises(ValueError, match="LARC needs whole layers"):
        LARC(SGD(params, lr=0.1))


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_sparse_gradients_are_refused_before_anything_moves(target):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    dense = torch.nn.Parameter(torch.ones(3))
    larc = LARC(SGD([dense, *embedding.parameters()], lr=0.1), target=target)
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="LARC does not support sparse gradients"):
        larc.step()
    assert torch.equal(dense, torch.ones(3))


@pytest.mark.parametrize("options", [{}, {"larc": False}, {"foreach": True}], ids=str)
def test_sparse_gradients_of_a_later_group_of_novograd_are_refused_before_anything_moves(options):
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    dense = torch.nn.Parameter(torch.ones(3))
    larc = LARC(NovoGrad([{"params": [dense]}, {"params": [*embedding.parameters()], **options}]))
    (embedding(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        larc.step()
    assert torch.equal(dense, torch.ones(3))


@pytest.mark.parametrize("options", [{}, {"larc": False}], ids=str)
def test_a_later_group_that_fused_novograd_refuses_stops_the_first_too(options):
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]
    larc = LARC(NovoGrad([{"params": params[:1]}, {"params": params[1:], **options}], fused=True))
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="fused=True"):
        larc.step()
    assert torch.equal(params[0], torch.ones(3))
    assert not larc.state


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "larc_eta is missing"),
        ({"larc_eta": 0.1, "larc_modes": "clip"}, "'larc_modes'; did you mean 'larc_mode'"),
        ({"larc_eta": 0.1, "larc_mode": "scaled"}, "'scaled'; did you mean 'scale'"),
    ],
    ids=["missing", "misspelt", "mode"],
)
def test_wrong_openseq2seq_keys_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        larc_arguments_from_openseq2seq(params)
