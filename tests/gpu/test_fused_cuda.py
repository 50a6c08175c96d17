"""The fused CUDA worker on a GPU: values, no synchronization, CUDA graphs, GradScaler, no copies of gradients."""

import optim_db
import pytest
import torch
from optim.novograd.cuda_cases import ON_GPU
from reference import ReferenceNovoGrad

from lightning_novograd.optim import NovoGrad

pytestmark = ON_GPU


def on_device(params: dict[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    return {kind: torch.nn.Parameter(_like(param.detach())) for kind, param in params.items()}


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """On the GPU, with the same strides (`.cuda()` keeps dense layouts only)."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda").copy_(tensor)


def set_grads(params: dict[str, torch.nn.Parameter], step: int) -> None:
    for kind, grad in optim_db.grads({kind: param.detach().cpu() for kind, param in params.items()}, step).items():
        params[kind].grad = None if grad is None else _like(grad)


def moved(options: dict) -> dict:
    return {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in options.items()}


@pytest.mark.parametrize("options", optim_db.OPTIONS.values(), ids=optim_db.OPTIONS)
@pytest.mark.parametrize("dtype", optim_db.DTYPES.values(), ids=optim_db.DTYPES)
@pytest.mark.parametrize("worker", [{"fused": True}, {"foreach": True}, {}], ids=str)
def test_worker_equals_reference(worker, dtype, options):
    params = on_device(optim_db.layers(dtype))
    optimizer = NovoGrad(params.values(), **moved(options), **worker)
    reference = ReferenceNovoGrad([p.detach().cpu() for p in params.values()], **options)
    for step in range(optim_db.STEPS):
        set_grads(params, step)
        adopt(reference, params, optimizer)
        grads = {kind: None if param.grad is None else param.grad.clone() for kind, param in params.items()}
        optimizer.step()
        reference.step([None if grad is None else grad.cpu() for grad in grads.values()])
        for index, (kind, param) in enumerate(params.items()):
            optim_db.assert_close(param, reference.params[index], dtype, f"weight of {kind} after step {step}")
            if param.grad is not None:
                assert torch.equal(param.grad, grads[kind]), f"the gradient of {kind} was written"
                state = optimizer.state[param]
                assert state["exp_avg_sq"].item() == pytest.approx(reference.exp_avg_sqs[index], rel=3e-6)


def adopt(reference: ReferenceNovoGrad, params: dict[str, torch.nn.Parameter], optimizer: NovoGrad) -> None:
    """As ReferenceNovoGrad.adopt, from the GPU."""
    reference.adopt(list(params.values()), optimizer)
    reference.params = [p.cpu() for p in reference.params]
    reference.exp_avgs = [m.cpu() for m in reference.exp_avgs]


def layers_of_a_model() -> list[torch.nn.Parameter]:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(256, 64, 11), (256,), (3, 5), (1,), (1024, 1024), ()]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, device="cuda")) for shape in shapes]


def random_grads(params: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator("cuda").manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, device="cuda")


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"luc": True}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("lr", [0.05, "device"])
def test_a_step_does_not_wait_for_the_device(options, lr):
    params = layers_of_a_model()
    lr = torch.tensor(0.05, device="cuda") if lr == "device" else lr
    optimizer = NovoGrad(params, lr=lr, weight_decay=0.01, fused=True, **options)
    random_grads(params, 0)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            optimizer.zero_grad()
            random_grads(params, step)  # new tensors: the address table is uploaded again
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_equal_input_gives_equal_bits():
    results = []
    for _ in range(2):
        params = layers_of_a_model()
        optimizer = NovoGrad(params, lr=0.05, luc=True, fused=True)
        for step in range(3):
            random_grads(params, step)
            optimizer.step()
        results.append([p.detach() for p in params])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_gradient_table_is_not_overwritten_while_the_device_lags():
    """Many steps are queued, each with gradients elsewhere, before the first one runs."""
    params, expected = layers_of_a_model(), layers_of_a_model()
    optimizers = [NovoGrad(params, lr=0.05, fused=True), NovoGrad(expected, lr=0.05, foreach=True)]
    kept = []
    for ps, optimizer in zip((params, expected), optimizers, strict=True):
        torch.cuda._sleep(200_000_000)
        for step in range(20):
            random_grads(ps, step)
            kept.append([p.grad for p in ps])  # so that no gradient gets the memory of another
            optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in expected])


@pytest.mark.parametrize("grads_in_graph", [False, True], ids=["static gradients", "gradients made in the graph"])
def test_cuda_graph(grads_in_graph):
    """Replays equal eager steps; eager steps between replays do not disturb the graph's address table."""
    model, eager = (torch.nn.Linear(64, 32, device="cuda") for _ in range(2))
    eager.load_state_dict(model.state_dict())
    lr = torch.tensor(0.05, device="cuda")
    optimizer = NovoGrad(model.parameters(), lr=lr, fused=True, capturable=True)
    eager_optimizer = NovoGrad(eager.parameters(), lr=0.05, fused=True)
    x = torch.randn(16, 64, device="cuda")

    def train(module, optimizer):
        optimizer.zero_grad(set_to_none=grads_in_graph or module is eager)
        module(x).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train(model, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    if grads_in_graph:
        optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        train(model, optimizer)
    for _ in range(3):
        graph.replay()
    for _ in range(6):
        train(eager, eager_optimizer)
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    lr.fill_(0.0)
    before = [p.detach().clone() for p in model.parameters()]
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "lr is read in each replay"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_grad_scaler(dtype):
    """Scaled training equals unscaled training; an overflow skips the step and nothing else."""
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in layers_of_a_model()]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizer, plain_optimizer = (NovoGrad(ps, lr=0.05, fused=True) for ps in (params, plain))
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=1000)
    for step in range(4):
        generator = torch.Generator("cuda").manual_seed(step)
        overflow = step == 2
        for param, other in zip(params, plain, strict=True):
            other.grad = torch.randn(param.shape, generator=generator, device="cuda").to(dtype)
            param.grad = other.grad * scaler.get_scale()
        if overflow:
            params[0].grad.view(-1)[0] = torch.inf
            before = [p.detach().clone() for p in params]
        scaler.scale(torch.zeros((), device="cuda"))  # as in every iteration: makes the scale tensor
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
        else:
            plain_optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in plain])
    assert scaler.get_scale() == 2.0**9


def test_a_step_makes_no_copies_of_gradients():
    params = [torch.nn.Parameter(torch.randn(1 << 24, device="cuda"))]
    optimizer = NovoGrad(params, lr=0.05, fused=True)
    for _ in range(2):
        params[0].grad = torch.randn_like(params[0])
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
    assert torch.cuda.max_memory_allocated() - before <= 0.1 * params[0].numel()


def test_more_elements_than_32_bits_count():
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * 2 * (2**31 + 2**20) + 2**32:
        pytest.skip("needs 16 GB of free device memory")
    param = torch.nn.Parameter(torch.zeros(2**31 + 17, device="cuda", dtype=torch.float16))
    param.grad = torch.zeros_like(param)
    param.grad[-1] = 2.0
    NovoGrad([param], lr=1.0, fused=True).step()
    assert param[-1].item() == -1.0
    assert param[:-1].count_nonzero() == 0
