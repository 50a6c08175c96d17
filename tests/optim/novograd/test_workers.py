"""Every worker equals the literal float64 reference, for every kind of layer, dtype and option of the table."""

from itertools import product

import pytest
import torch
from optim_db import DTYPES, OPTIONS, STEPS, WORKERS, assert_close, layers, set_grads
from reference import ReferenceNovoGrad

from lightning_novograd.optim import NovoGrad, novograd

# fused=True refuses complex parameters, as AdamW's does; the default takes them.
COMPLEX_CASES = [(w, t) for w in WORKERS if w != "fused" for t in (torch.complex64, torch.complex128)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("worker", "dtype"), [*product(WORKERS, DTYPES.values()), *COMPLEX_CASES], ids=str)
def test_worker_equals_reference(worker, dtype, options):
    params = layers(dtype)
    optimizer = NovoGrad(params.values(), **options, **WORKERS[worker])
    reference = ReferenceNovoGrad(list(params.values()), **options)
    half = dtype in (torch.bfloat16, torch.float16)

    for step in range(STEPS):
        set_grads(params, step)
        steps = 1 if half else step + 1
        if half:  # rounding is judged one step at a time: it would otherwise add up
            reference.adopt(list(params.values()), optimizer)
        optimizer.step()
        reference.step([param.grad for param in params.values()])
        for index, (kind, param) in enumerate(params.items()):
            where = f"{kind} after step {step}"
            state = optimizer.state.get(param)
            terms = reference.param_terms[index]
            assert_close(param, reference.params[index], dtype, f"weight of {where}", terms, steps)
            if state:
                scalar_dtype = torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32
                expected, terms = reference.exp_avgs[index], reference.exp_avg_terms[index]
                assert_close(state["exp_avg"], expected, dtype, f"first moment of {where}", terms, steps)
                for key, expected in (
                    ("exp_avg_sq", reference.exp_avg_sqs[index]),
                    ("max_exp_avg_sq", reference.max_exp_avg_sqs[index]),
                ):
                    if key in state:
                        assert state[key].dtype == scalar_dtype
                        assert_close(
                            state[key], torch.tensor(expected, dtype=torch.float64), scalar_dtype, f"{key} of {where}"
                        )
            else:
                assert param.grad is None


@pytest.mark.parametrize("worker", WORKERS)
def test_state_is_one_moment_like_the_layer_and_one_number(worker):
    params = layers(torch.float32)
    optimizer = NovoGrad(params.values(), amsgrad=True, **WORKERS[worker])
    for step in range(3):
        set_grads(params, step)
        optimizer.step()
    for param in params.values():
        state = optimizer.state[param]
        assert set(state) == {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert state["exp_avg"].shape == param.shape
        assert state["exp_avg"].dtype == param.dtype
        assert state["exp_avg_sq"].shape == state["max_exp_avg_sq"].shape == ()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("options", [{}, {"luc": True}, {"maximize": True, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("worker", WORKERS)
def test_gradients_are_not_written(worker, options, dtype):
    params = layers(dtype)
    optimizer = NovoGrad(params.values(), lr=0.1, **options, **WORKERS[worker])
    set_grads(params, 2)
    before = {kind: (param.grad, param.grad.clone(), param.grad._version) for kind, param in params.items()}
    optimizer.step()
    for kind, (grad, values, version) in before.items():
        assert params[kind].grad is grad
        assert torch.equal(grad, values), kind
        assert grad._version == version


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.1}, {"luc": True}], ids=str)
@pytest.mark.parametrize("worker", WORKERS)
def test_a_bad_gradient_touches_its_own_layer_alone(worker, options, bad):
    def train(spoil: bool) -> dict[str, torch.nn.Parameter]:
        params = layers(torch.float32)
        optimizer = NovoGrad(params.values(), lr=0.1, **options, **WORKERS[worker])
        for step in range(4):
            set_grads(params, step)
            if spoil and step == 1:
                params["depthwise"].grad[3, 0, 2] = bad
            optimizer.step()
        return params

    clean, spoiled = train(False), train(True)
    assert not spoiled["depthwise"].isfinite().all()
    for kind, param in clean.items():
        assert kind == "depthwise" or torch.equal(param, spoiled[kind]), kind


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("worker", WORKERS)
def test_a_layer_that_never_saw_a_gradient_stays(worker, eps):
    param = torch.nn.Parameter(torch.randn(4, 3))
    before = param.detach().clone()
    optimizer = NovoGrad([param], lr=0.1, eps=eps, amsgrad=True, **WORKERS[worker])
    for _ in range(3):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("weight", [0.0, 2.0])
@pytest.mark.parametrize("worker", WORKERS)
def test_luc_without_eps_leaves_a_layer_without_momentum_alone(worker, weight):
    param = torch.nn.Parameter(torch.full((4, 3), weight))
    param.grad = torch.zeros_like(param)
    NovoGrad([param], lr=0.1, luc=True, luc_eps=0.0, **WORKERS[worker]).step()
    assert torch.equal(param.detach(), torch.full((4, 3), weight))


@pytest.mark.parametrize("worker", WORKERS)
def test_a_large_half_precision_gradient_keeps_the_layer_learning(worker):
    """A float16 sum of squares overflows from norm 256 on."""
    param = torch.nn.Parameter(torch.zeros(100, 100, dtype=torch.float16))
    optimizer = NovoGrad([param], lr=1.0, betas=(0.5, 0.5), **WORKERS[worker])
    param.grad = torch.full_like(param, 100.0)  # norm 1e4
    optimizer.step()
    assert optimizer.state[param]["exp_avg_sq"].item() == pytest.approx(1e8, rel=1e-3)
    torch.testing.assert_close(param.detach(), torch.full_like(param, -0.01))


@pytest.mark.parametrize("worker", WORKERS)
def test_float32_gradients_of_bfloat16_parameters(worker):
    param = torch.nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    if not hasattr(param, "grad_dtype"):
        pytest.skip("needs a torch in which gradients may have a dtype of their own")
    param.grad_dtype = torch.float32
    param.grad = torch.full((8, 8), 2.0, dtype=torch.float32)
    reference = ReferenceNovoGrad([param], lr=0.1)
    optimizer = NovoGrad([param], lr=0.1, **WORKERS[worker])
    optimizer.step()
    reference.step([param.grad])
    assert_close(param, reference.params[0], torch.bfloat16, "weight")


@pytest.mark.parametrize("worker", WORKERS)
def test_one_optimizer_for_parameters_of_several_dtypes(worker):
    params = {
        f"{kind}-{name}": param
        for name, dtype in DTYPES.items()
        for kind, param in layers(dtype, ["matrix", "conv", "vector"]).items()
    }
    alone = {name: layers(dtype, ["matrix", "conv", "vector"]) for name, dtype in DTYPES.items()}
    together = NovoGrad(params.values(), lr=0.1, weight_decay=0.01, **WORKERS[worker])
    separate = [NovoGrad(ps.values(), lr=0.1, weight_decay=0.01, **WORKERS[worker]) for ps in alone.values()]
    for step in range(3):
        for (name, own), optimizer in zip(alone.items(), separate, strict=True):
            set_grads(own, step)
            optimizer.step()
            for kind, param in own.items():
                params[f"{kind}-{name}"].grad = param.grad
        together.step()
    for name, own in alone.items():
        for kind, param in own.items():
            assert torch.equal(param, params[f"{kind}-{name}"]), (kind, name)


@pytest.mark.parametrize("worker", WORKERS)
def test_groups_keep_their_own_options(worker):
    params = layers(torch.float64, ["matrix", "conv", "vector", "depthwise"])
    first, second = [params["matrix"], params["conv"]], [params["vector"], params["depthwise"]]
    options = [{"lr": 0.1, "luc": True, "luc_trust": 0.5}, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.5, 0.0)}]
    optimizer = NovoGrad(
        [{"params": first, **options[0]}, {"params": second, **options[1]}], eps=1e-3, **WORKERS[worker]
    )
    references = [ReferenceNovoGrad(ps, eps=1e-3, **o) for ps, o in zip((first, second), options, strict=True)]
    for step in range(STEPS):
        set_grads(params, step)
        optimizer.step()
        for ps, reference in zip((first, second), references, strict=True):
            reference.step([p.grad for p in ps])
            for param, expected in zip(ps, reference.params, strict=True):
                assert_close(param, expected, torch.float64, f"step {step}")


def test_the_function_takes_what_the_class_gathers():
    params, grads, exp_avgs = torch.ones(3), torch.tensor([3.0, 0.0, 4.0]), torch.zeros(3)
    exp_avg_sq = torch.tensor(0.0)
    novograd(
        [params],
        [grads],
        [exp_avgs],
        [exp_avg_sq],
        [],
        amsgrad=False,
        grad_averaging=False,
        luc=False,
        luc_trust=1e-3,
        luc_eps=1e-8,
        beta1=0.9,
        beta2=0.5,
        lr=0.1,
        weight_decay=0.0,
        eps=0.0,
        maximize=False,
    )
    torch.testing.assert_close(exp_avg_sq, torch.tensor(25.0))
    torch.testing.assert_close(params, torch.tensor([0.94, 1.0, 0.92]))


@pytest.mark.parametrize(("second_moment", "maximum"), [(torch.nan, 4.0), (1.0, torch.nan)])
@pytest.mark.parametrize("worker", WORKERS)
def test_a_second_moment_that_is_not_a_number_stays_one_under_amsgrad(worker, second_moment, maximum):
    """Python's max would drop it, and hide that the layer is lost."""
    param = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = NovoGrad([param], lr=0.1, amsgrad=True, **WORKERS[worker])
    optimizer.state[param] = {
        "exp_avg": torch.zeros(4, 3),
        "exp_avg_sq": torch.tensor(second_moment),
        "max_exp_avg_sq": torch.tensor(maximum),
    }
    param.grad = torch.ones(4, 3)
    optimizer.step()
    assert optimizer.state[param]["max_exp_avg_sq"].isnan()
    assert param.isnan().all()


@pytest.mark.parametrize("worker", WORKERS)
def test_weight_decay_of_zero_does_not_touch_infinite_weights(worker):
    """0 * inf is not a number."""
    param = torch.nn.Parameter(torch.tensor([1.0, torch.inf, 2.0]))
    optimizer = NovoGrad([param], lr=0.1, **WORKERS[worker])
    param.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].isfinite().all()
    assert param.tolist()[1] == torch.inf


@pytest.mark.parametrize("weight_decay", [1.0, 1.5])
@pytest.mark.parametrize("worker", WORKERS)
def test_a_large_weight_decay_counts(worker, weight_decay):
    params = layers(torch.float64, ["matrix", "conv", "vector"])
    optimizer = NovoGrad(params.values(), lr=0.1, weight_decay=weight_decay, **WORKERS[worker])
    reference = ReferenceNovoGrad(list(params.values()), lr=0.1, weight_decay=weight_decay)
    for step in range(3):
        set_grads(params, step)
        optimizer.step()
        reference.step([param.grad for param in params.values()])
    for param, expected in zip(params.values(), reference.params, strict=True):
        assert_close(param, expected, torch.float64, "weight")


@pytest.mark.parametrize("options", [{}, {"luc": True}, {"amsgrad": True, "weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("worker", WORKERS)
def test_a_gradient_of_zeros_without_memory_is_one_of_zeros(worker, dtype, options):
    """As torch makes it in forward-mode differentiation."""
    pairs = [layers(dtype, ["matrix", "conv", "vector"]) for _ in range(2)]
    optimizers = [NovoGrad(params.values(), lr=0.1, **options, **WORKERS[worker]) for params in pairs]
    for step in range(4):
        for params, optimizer in zip(pairs, optimizers, strict=True):
            set_grads(params, step)
            if step in (0, 2):
                zeros = torch.zeros if params is pairs[0] else torch._efficientzerotensor
                params["vector"].grad = zeros(params["vector"].shape, dtype=dtype)
            optimizer.step()
    for kind, param in pairs[0].items():
        torch.testing.assert_close(param, pairs[1][kind])
