"""What LARC's two targets bound: target update every optimizer's step, target gradient that of SGD only."""

import warnings

import pytest
import torch

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc.optimizer import LARC

pytestmark = pytest.mark.usefixtures("kernels")  # each test with and without the C++ kernels

SGD = torch.optim.SGD
STEPS = 20
TRUST = 0.01
# Learning rates at which some steps are within the bound and some are not.
OPTIMIZERS = {
    "sgd_momentum": lambda params: SGD(params, lr=1e-3, momentum=0.9, weight_decay=1e-2),
    "sgd_nesterov": lambda params: SGD(params, lr=1e-3, momentum=0.9, nesterov=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.005, momentum=0.5),
    "novograd": lambda params: NovoGrad(params, lr=0.02, betas=(0.9, 0.5), weight_decay=1e-2),
    "novograd_averaging": lambda params: NovoGrad(params, lr=0.1, betas=(0.9, 0.5), grad_averaging=True, amsgrad=True),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def make_params(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes_and_scales = [((6, 4), 1.0), ((3, 2, 5), 0.3), ((8,), 2.0), ((5, 5), 0.05)]
    return [
        torch.nn.Parameter((scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype))
        for shape, scale in shapes_and_scales
    ]


def set_grads(params, step):
    """Gradients whose size changes from step to step, with an outlier."""
    generator = torch.Generator().manual_seed(step)
    for index, p in enumerate(params):
        size = 100.0 if (step + index) % 7 == 3 else 0.3 + (step % 3)
        p.grad = (size * torch.randn(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)


def norms(tensors):
    return torch.stack([t.detach().double().norm() for t in tensors])


def steps_of(optimizer, params, steps=STEPS):
    """Per step: the norms of all layers before it, and of what it changed them by."""
    for step in range(steps):
        set_grads(params, step)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        yield norms(before), norms(p - b for p, b in zip(params, before, strict=True))


# --- target update ---------------------------------------------------------------------------------------------------


@every_optimizer
def test_update_with_clip_bounds_every_step_of_every_layer(name):
    params = make_params()
    larc = LARC(OPTIMIZERS[name](params), trust_coefficient=TRUST, target="update")
    at_bound = []
    for weight_norms, step_norms in steps_of(larc, params):
        assert (step_norms <= TRUST * weight_norms * (1 + 1e-9)).all()
        at_bound.append(step_norms >= TRUST * weight_norms * (1 - 1e-5))
    # the bound binds for some steps and not for others: else the test would show nothing
    assert 0.05 < torch.stack(at_bound).double().mean() < 0.95

    params = make_params()
    bare = OPTIMIZERS[name](params)
    assert any((step > 2 * TRUST * weight).any() for weight, step in steps_of(bare, params))


@every_optimizer
def test_update_bounds_float32_up_to_the_rounding_of_the_weights(name):
    params = make_params(torch.float32)
    larc = LARC(OPTIMIZERS[name](params), trust_coefficient=TRUST, target="update")
    for weight_norms, step_norms in steps_of(larc, params):
        assert (step_norms <= (TRUST * (1 + 1e-6) + torch.finfo(torch.float32).eps) * weight_norms).all()


@every_optimizer
def test_update_leaves_steps_within_the_bound_exactly_alone(name):
    params, others = make_params(), make_params()
    larc, bare = LARC(OPTIMIZERS[name](params), trust_coefficient=100.0, target="update"), OPTIMIZERS[name](others)
    for _ in zip(steps_of(larc, params), steps_of(bare, others), strict=True):
        for p, other in zip(params, others, strict=True):
            assert torch.equal(p, other)
    [(_, factors)] = larc.factors
    assert (factors == 1).all()


@every_optimizer
@pytest.mark.parametrize("lr_factor", [1.0, 0.1])
def test_update_without_clip_sets_the_length_of_every_step(name, lr_factor):
    params = make_params()
    larc = LARC(OPTIMIZERS[name](params), trust_coefficient=TRUST, clip=False, eps=0.0, target="update")
    larc.param_groups[0]["lr"] *= lr_factor
    lr = larc.param_groups[0]["lr"]
    for weight_norms, step_norms in steps_of(larc, params):
        torch.testing.assert_close(step_norms, lr * TRUST * weight_norms, rtol=1e-8, atol=0)


@pytest.mark.parametrize("clip", [True, False], ids=["clip", "scale"])
def test_both_targets_are_the_same_around_plain_sgd(clip):
    params, others = make_params(), make_params()
    for target, layers in (("gradient", params), ("update", others)):
        larc = LARC(SGD(layers, lr=0.1), trust_coefficient=TRUST, clip=clip, eps=1e-3, min_update=1e-4, target=target)
        for _ in steps_of(larc, layers):
            pass
    torch.testing.assert_close(params, others, rtol=1e-10, atol=1e-12)


def test_update_around_novograd_is_its_own_luc():
    params, others = make_params(), make_params()
    settings = {"lr": 0.02, "betas": (0.9, 0.5), "weight_decay": 1e-2}
    larc = LARC(NovoGrad(params, **settings), trust_coefficient=TRUST, eps=1e-8, target="update")
    luc = NovoGrad(others, **settings, luc=True, luc_trust=TRUST, luc_eps=1e-8)
    for _ in zip(steps_of(larc, params), steps_of(luc, others), strict=True):
        torch.testing.assert_close(params, others, rtol=1e-10, atol=1e-12)


def test_min_update_keeps_the_factor_from_vanishing():
    params, others = make_params(), make_params()
    larc = LARC(SGD(params, lr=0.1), trust_coefficient=1e-9, min_update=0.25, target="update")
    bare = SGD(others, lr=0.1)
    for (_, controlled), (_, free) in zip(steps_of(larc, params, 1), steps_of(bare, others, 1), strict=True):
        torch.testing.assert_close(controlled, 0.25 * free)


@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("clip", [True, False], ids=["clip", "scale"])
@pytest.mark.parametrize(("min_update", "factor"), [(0.0, 1.0), (0.25, 0.25)])
def test_zero_weights_can_leave_zero(target, clip, min_update, factor):
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    weight.grad = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    larc = LARC(SGD([weight], lr=0.5, weight_decay=0.1), clip=clip, min_update=min_update, target=target)
    larc.step()
    torch.testing.assert_close(weight.detach(), -0.5 * factor * weight.grad)


@pytest.mark.parametrize("clip", [True, False], ids=["clip", "scale"])
def test_a_zero_gradient_is_not_decayed_by_target_gradient_and_is_by_target_update(clip):
    moved = {}
    for target in ("gradient", "update"):
        weight = torch.nn.Parameter(torch.full((4,), 2.0, dtype=torch.float64))
        weight.grad = torch.zeros_like(weight)
        LARC(SGD([weight], lr=0.5, weight_decay=0.01), 0.001, clip, eps=0.0, target=target).step()
        moved[target] = float((weight.detach() - 2).norm())
    assert moved["gradient"] == 0
    assert moved["update"] == pytest.approx(0.001 * 4 * (1 if clip else 0.5))


# --- target gradient around optimizers that normalize ----------------------------------------------------------------


def forced_gradient(optimizer, **options):
    with pytest.warns(UserWarning, match="does not bound the steps of NovoGrad"):
        return LARC(optimizer, target="gradient", **options)


def largest_relative_difference(params, others):
    return float((norms(p - o for p, o in zip(params, others, strict=True)) / norms(others)).max())


@pytest.mark.parametrize(
    ("betas", "options"),
    [
        # beta2 = 0: every gradient is divided by its own norm, so not even a factor that changes matters
        ((0.9, 0.0), {"trust_coefficient": 1e-3}),
        # beta2 > 0: a factor that is the same at every step cancels; min_update holds it at 1/100
        ((0.95, 0.98), {"trust_coefficient": 0.0, "min_update": 0.01}),
    ],
    ids=["changing factor", "constant factor"],
)
def test_gradient_leaves_a_novograd_run_unchanged(betas, options):
    params, others = make_params(), make_params()
    larc = forced_gradient(NovoGrad(params, lr=0.02, betas=betas), **options)
    bare = NovoGrad(others, lr=0.02, betas=betas)
    factors = []
    for _ in zip(steps_of(larc, params), steps_of(bare, others), strict=True):
        factors.append(larc.factors[0][1])
        assert largest_relative_difference(params, others) < 1e-6
    factors = torch.stack(factors)
    assert factors.max() < 0.7
    if betas[1] == 0:
        assert (factors.max(dim=0).values > 50 * factors.min(dim=0).values).all()
    assert largest_relative_difference(params, make_params()) > 0.1  # there was a run to change


def test_gradient_does_not_bound_the_steps_of_novograd():
    params = make_params()
    larc = forced_gradient(NovoGrad(params, lr=0.02, betas=(0.95, 0.98)), trust_coefficient=TRUST)
    assert any((step > 3 * TRUST * weight).any() for weight, step in steps_of(larc, params))


AUTO = {
    "SGD": "gradient",
    "ASGD": "gradient",
    "NovoGrad": "update",
    **dict.fromkeys(
        ("Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop"),
        "update",
    ),
}


@pytest.mark.parametrize(("name", "target"), AUTO.items())
def test_auto_picks_the_target_that_bounds_the_steps(name, target):
    cls = NovoGrad if name == "NovoGrad" else getattr(torch.optim, name)

    def build():
        own_decay = {"lambd": 0.0} if name == "ASGD" else {}  # it is no part of the gradient
        return cls([torch.nn.Parameter(torch.full((2, 2), 0.5))], lr=10.0, **own_decay)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        larc = LARC(build(), trust_coefficient=TRUST)
    assert larc.target == target
    assert repr(larc).startswith(f"LARC(target='{target}', optimizer={name} (")
    [weight] = larc.param_groups[0]["params"]
    weight.grad = torch.ones(2, 2)
    larc.step()
    assert float((weight.detach() - 0.5).norm()) <= TRUST * (1 + 1e-4)
    if target == "update":
        with pytest.warns(UserWarning, match=f"does not bound the steps of {name}"):
            LARC(build(), target="gradient")


def test_every_torch_optimizer_has_been_thought_of():
    classes = {
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    }
    # LBFGS is refused; SparseAdam has sparse gradients only
    assert classes - {"Optimizer", "LBFGS", "SparseAdam"} == AUTO.keys() - {"NovoGrad"}
