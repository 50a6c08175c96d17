"""When the fused CUDA worker is taken on a GPU, and what surrounds it: defaults in force, a tensor lr, captures."""

from contextlib import nullcontext

import pytest
import torch
from optim.novograd.cuda_cases import ON_GPU, break_launches, count_plans, count_probes, forget_launches

from lightning_novograd.optim import LARC, NovoGrad

pytestmark = ON_GPU

WORKERS = [{"fused": True}, {"foreach": True}, {"foreach": False, "fused": False}, {}]


@pytest.fixture
def unknown(monkeypatch):
    forget_launches(monkeypatch)


def layers(device="cuda", dtype=torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = [(64, 32, 5), (64,), (300, 100), ()]
    values = [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes]
    return [torch.nn.Parameter(value.to(device, dtype)) for value in values]


def set_grads(params: list[torch.nn.Parameter], seed: int = 1) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    for param in params:
        grad = torch.randn(param.shape, generator=generator, dtype=torch.float32, device="cpu")
        param.grad = grad.to(param)


@pytest.mark.parametrize("luc", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_default_is_fused_after_one_probe(dtype, luc, unknown, monkeypatch, caplog):
    from lightning_novograd.optim.novograd import cuda

    probes, steps = count_probes(monkeypatch), []
    fused = cuda.fused_cuda_novograd
    monkeypatch.setattr(cuda, "fused_cuda_novograd", lambda *args: steps.append(args) or fused(*args))
    params = layers(dtype=dtype)
    optimizer = NovoGrad(params, luc=luc)
    for step in range(3):
        set_grads(params, step)
        optimizer.step()
    assert len(probes) == 1
    assert len(steps) == 1 + 3, "the probe's and the optimizer's"
    assert not caplog.records


def test_a_failing_launch_means_foreach_and_one_warning(unknown, monkeypatch, caplog):
    break_launches(monkeypatch, RuntimeError("Failed to find C compiler."))
    params, others = layers(), layers()
    optimizers = [NovoGrad(params), NovoGrad(others, foreach=True)]
    for step in range(3):
        for ps, optimizer in zip((params, others), optimizers, strict=True):
            set_grads(ps, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
    (record,) = caplog.records
    assert "Failed to find C compiler" in record.getMessage()
    with pytest.raises(RuntimeError, match="Failed to find C compiler; leave `fused` unset"):
        NovoGrad(params, fused=True).step()


def test_the_first_step_may_be_one_in_which_waiting_is_an_error(unknown):
    params = layers()
    set_grads(params)
    optimizer = NovoGrad(params)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        assert torch.cuda.get_sync_debug_mode() == 2
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("worker", WORKERS, ids=str)
@pytest.mark.parametrize("default", ["cuda", "meta", "float64", "context"])
def test_defaults_in_force_do_not_matter(default, worker, unknown):
    expected, params = layers(), layers()
    set_grads(expected)
    set_grads(params)
    NovoGrad(expected, lr=0.1, **worker).step()
    if default == "float64":
        torch.set_default_dtype(torch.float64)
    elif default != "context":
        torch.set_default_device(default)
    try:
        with torch.device("meta") if default == "context" else nullcontext():
            NovoGrad(params, lr=0.1, **worker).step()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(params, expected, strict=True))


@pytest.mark.parametrize("luc", [False, True])
@pytest.mark.parametrize("worker", WORKERS, ids=str)
@pytest.mark.parametrize("home", ["cpu", "cuda:1"])
def test_a_tensor_lr_from_elsewhere_is_moved_without_waiting(home, worker, luc):
    if home == "cuda:1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    lr = torch.tensor(0.1, device=home)
    params, expected = layers(), layers()
    optimizer = NovoGrad(params, lr=lr, luc=luc, **worker)
    expected_optimizer = NovoGrad(expected, lr=0.1, luc=luc, **worker)
    for step, value in enumerate((0.1, 0.1, 0.03)):
        lr.fill_(value)
        expected_optimizer.param_groups[0]["lr"] = value
        set_grads(params, step)
        set_grads(expected, step)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected_optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in expected])


def test_tables_are_made_once_where_the_first_layer_is_complex(monkeypatch):
    made = count_plans(monkeypatch)
    params = [torch.nn.Parameter(torch.ones(5, device="cuda", dtype=torch.complex64)), *layers()]
    optimizer = NovoGrad(params)
    for _ in range(4):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert len(made) == 1


@pytest.mark.parametrize("known", [False, True], ids=["before any launch", "after another's step"])
@pytest.mark.parametrize("worker", [{"fused": True}, {}], ids=str)
def test_a_first_step_in_a_capture_is_refused_and_spoils_nothing(worker, known, unknown):
    params = layers()
    set_grads(params)
    if known:
        NovoGrad(params, capturable=True, **worker).step()
    before = [param.detach().clone() for param in params]
    optimizer = NovoGrad(params, capturable=True, **worker)
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="run one step outside of a capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_steps_with_other_layers_between_replays():
    """They make new tables; the graph goes on to read those that it was captured with."""
    params, expected = layers(), layers()
    optimizer = NovoGrad(params, lr=0.1, fused=True, capturable=True)
    expected_optimizer = NovoGrad(expected, lr=0.1, fused=True)
    for ps in (params, expected):
        set_grads(ps)
    grads = [param.grad for param in params]
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    params[2].grad = None
    optimizer.step()
    params[2].grad = grads[2]
    spoiled = [
        torch.full((1 << 12,), -1, dtype=torch.int64, device="cuda") for _ in range(100)
    ]  # freed memory is reused
    graph.replay()
    for frozen in (False, False, True, False):
        held, expected[2].grad = expected[2].grad, None if frozen else expected[2].grad
        expected_optimizer.step()
        expected[2].grad = held
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in expected])
    assert spoiled


@pytest.mark.parametrize("worker", WORKERS, ids=str)
@pytest.mark.parametrize("luc", [False, True])
def test_weight_decay_of_zero_does_not_touch_infinite_weights(luc, worker):
    params = layers()
    for param in params:
        with torch.no_grad():
            param.view(-1)[0] = torch.inf
    optimizer = NovoGrad(params, lr=0.1, luc=luc, **worker)
    for step in range(2):
        set_grads(params, step)
        optimizer.step()
    for param in params:
        assert optimizer.state[param]["exp_avg"].isfinite().all()
        assert param.view(-1)[0] == torch.inf
        assert param.isinf().sum() == 1
        assert not param.isnan().any()


def test_larc_does_not_wait_for_the_device():
    for make in (
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda params: NovoGrad(params, lr=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    ):
        params = layers()
        larc = LARC(make(params))
        set_grads(params)
        larc.step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            larc.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
