"""A Composite on a GPU: its parts in one CUDA graph, and unscaled in their own steps."""

import pytest
import torch

from lightning_novograd.optim import Composite, NovoGrad

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def layers() -> list[torch.nn.Parameter]:
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = [(64, 32, 5), (64,), (300, 100), (7,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).cuda()) for shape in shapes]


def build(params: list[torch.nn.Parameter], **options: bool) -> Composite:
    return Composite([NovoGrad(params[:2], lr=0.05, **options), torch.optim.AdamW(params[2:], lr=0.01, **options)])


def test_a_captured_step_equals_the_parts_steps():
    params, expected = layers(), layers()
    captured, eager = build(params, capturable=True), build(expected)
    for ps in (params, expected):
        for p in ps:
            p.grad = torch.ones_like(p)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        captured.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for _ in range(3):
        graph.replay()
    for _ in range(4):
        for part in eager.optimizers:
            part.step()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in expected])


def test_a_part_that_is_not_capturable_is_refused_in_a_capture():
    params = layers()
    composite = Composite([NovoGrad(params[:2], capturable=True), torch.optim.AdamW(params[2:])])
    for p in params:
        p.grad = torch.ones_like(p)
    composite.step()
    torch.cuda.synchronize()
    with (
        pytest.raises(RuntimeError, match="AdamW but param_groups' capturable is False"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        composite.step()
    torch.cuda.synchronize()


@pytest.mark.parametrize("overflow", [False, True])
def test_fused_parts_unscale_and_skip_on_the_device(overflow):
    params, expected = layers(), layers()
    composite, plain = build(params, fused=True), build(expected, fused=True)
    assert composite._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    for p, e in zip(params, expected, strict=True):
        p.grad, e.grad = scaler.scale(torch.ones_like(p)), torch.ones_like(e)
    if overflow:
        params[3].grad[0] = torch.inf
    else:
        plain.step()
    scaler.step(composite)
    scaler.update()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in expected])
