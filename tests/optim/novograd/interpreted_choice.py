"""When the fused CUDA worker is taken and when its tables are made, in Triton's interpreter, on the CPU.

Run by test_cuda.py in a process of its own, as interpreted_cuda.py is.
"""

import re
from contextlib import nullcontext

import pytest
import torch
from optim.novograd.cuda_cases import break_launches, count_plans, count_probes, interpret, look_like_cuda

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.kernels.cuda import novograd as kernels
from lightning_novograd.optim.novograd import cuda, probe


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    interpret(monkeypatch)


@pytest.fixture
def as_on_cuda(monkeypatch):
    look_like_cuda(monkeypatch)


@pytest.mark.parametrize("first", [torch.complex64, torch.float32], ids=str)
def test_tables_are_made_once_also_where_the_first_layer_is_complex(first, monkeypatch):
    made = count_plans(monkeypatch)
    params = [torch.randn(3, 4, dtype=first), torch.randn(5)]
    optimizer = NovoGrad(params)
    for _ in range(4):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert len(made) == 1
    assert len(cuda._plans) == 1


def test_tables_that_a_graph_reads_stay_when_others_follow(monkeypatch):
    params = [torch.randn(5), torch.randn(5)]
    optimizer = NovoGrad(params)

    def step(frozen: bool) -> cuda._Plan:
        params[0].grad, params[1].grad = torch.ones(5), None if frozen else torch.ones(5)
        optimizer.step()
        (plan,) = cuda._plans.values()
        return plan

    first = step(frozen=False)
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "is_capturing", lambda device: True)
        assert step(frozen=False) is first
    second, third = step(frozen=True), step(frozen=False)
    assert second.captured == third.captured == [first], "and the second, which no graph reads, is dropped"


@pytest.fixture
def defaults(request):
    """Defaults in force that are no business of the optimizer's."""
    if request.param == "float64":
        torch.set_default_dtype(torch.float64)
    elif request.param == "set":
        torch.set_default_device("meta")
    try:
        with torch.device("meta") if request.param == "context" else nullcontext():
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize("luc", [False, True])
@pytest.mark.parametrize("defaults", ["float64", "set", "context"], indirect=True)
def test_defaults_in_force_do_not_change_where_things_lie(defaults, luc, as_on_cuda):
    params = [torch.ones(600, device="cpu", dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)]
    optimizer = NovoGrad(params, lr=torch.tensor(0.5, device="cpu"), luc=luc, luc_trust=1.0)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert list(probe._problems.values()) == [None] * 3
    (plan,) = cuda._plans.values()
    for group in plan.groups:
        tables = [group.addresses._table, group.chunks.sizes, group.chunks.first_chunks, group.chunks.layer_of_chunk]
        assert all(table.device.type == "cpu" and table.dtype == torch.int64 for table in tables)
    for state in optimizer.state.values():
        assert all(value.device.type == "cpu" for value in state.values())
    assert all((param < 1).all() for param in params)


def test_the_probe_runs_once_and_leaves_no_trace(as_on_cuda, monkeypatch, caplog):
    steps = count_probes(monkeypatch)
    params = [torch.randn(600), torch.randn(3, dtype=torch.float16)]
    for _ in range(2):
        optimizer = NovoGrad(params)
        for param in params:
            param.grad = torch.ones_like(param)
        with torch.inference_mode(False):
            optimizer.step()
            optimizer.step()
    cpu = torch.device("cpu")
    assert sorted(steps, key=str) == sorted(
        [(cpu, torch.float32, False), (cpu, torch.float16, False)], key=lambda kind: str(probe.Kind(*kind))
    )
    assert len(cuda._plans) == 1, "that of the optimizer that is left"
    assert not caplog.records


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (RuntimeError("Failed to find C compiler.\nSet CC."), "RuntimeError: Failed to find C compiler"),
        (PermissionError(13, "Permission denied", "/cache"), "PermissionError: [Errno 13] Permission denied: '/cache'"),
        (ImportError("libtriton.so: failed to map segment"), "ImportError: libtriton.so: failed to map segment"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failing_launch_means_foreach_and_one_warning(broken, reason, as_on_cuda, monkeypatch, caplog):
    break_launches(monkeypatch, broken)
    foreach = torch.ones(600)
    foreach.grad = torch.ones(600)
    NovoGrad([foreach], foreach=True).step()
    for _ in range(2):
        param = torch.ones(600)
        param.grad = torch.ones(600)
        NovoGrad([param]).step()
        assert torch.equal(param, foreach)
    (record,) = caplog.records
    assert record.name == "lightning_novograd.optim.novograd.probe"
    assert reason in record.getMessage()

    param = torch.ones(600)
    param.grad = torch.ones(600)
    with pytest.raises(
        RuntimeError, match=r"`fused=True` asks for NovoGrad's fused CUDA worker, but .*" + re.escape(reason)
    ):
        NovoGrad([param], fused=True).step()
    assert (param == 1).all()


def test_wrong_values_are_a_failure_too(as_on_cuda, monkeypatch, caplog):
    monkeypatch.setattr(kernels.update, "run", lambda *args, **kwargs: None)
    param = torch.ones(600)
    param.grad = torch.ones(600)
    NovoGrad([param]).step()
    assert (param != 1).all()
    assert "wrong values" in caplog.text
