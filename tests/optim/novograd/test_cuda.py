"""The fused CUDA worker as far as no GPU is needed: its values in Triton's interpreter, its code for real GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from optim.novograd.cuda_cases import look_like_cuda
from torch import Tensor

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.kernels.cuda import tables
from lightning_novograd.optim.kernels.cuda.tables import AddressTable, ChunkTable
from lightning_novograd.optim.novograd import functional, probe
from lightning_novograd.optim.novograd.options import Options

CPU = torch.device("cpu")


@pytest.mark.parametrize("cases", ["interpreted_cuda.py", "interpreted_choice.py"])
def test_cases_in_the_interpreter(cases):
    """Triton interprets all kernels of a process or none, so the cases run in a process of their own."""
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", cases],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-2000:]
    assert re.search(r"\d+ passed", result.stdout)
    assert "skipped" not in result.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["unscaled", "grad-scaler"])
def test_compiles_for_gpus_with_wide_loads(capability, dtype, scaled, tmp_path, monkeypatch):
    triton = pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    from triton.backends.compiler import GPUTarget

    from lightning_novograd.optim.kernels.cuda import novograd as kernels
    from lightning_novograd.optim.novograd import cuda

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {
        "ELEMENT": cuda._ELEMENTS[dtype],
        "CHUNK": cuda.CHUNK,
        "BLOCK": cuda.BLOCK,
        "LR_ON_DEVICE": scaled,
        "AMSGRAD": True,
        "sq_norms": None,
    }
    if not scaled:
        constants |= {"grad_scale": None, "found_inf": None}
    types = dict.fromkeys(("table", "sizes", "first_chunks", "layer_of_chunk"), "*i64")
    types |= dict.fromkeys(("partial_sums", "factors", "grad_scale", "found_inf"), "*fp32")
    types |= dict.fromkeys(("num_layers", "num_chunks"), "i32")
    types["lr"] = "*fp32" if scaled else "fp32"

    def ptx(kernel):
        used = {name: value for name, value in constants.items() if name in kernel.arg_names}
        signature = {name: "constexpr" if name in used else types.get(name, "fp32") for name in kernel.arg_names}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=used)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": cuda.WARPS})
        assert compiled.asm["cubin"]
        return compiled.asm["ptx"]

    assert "ld.global.v4.b32" in ptx(kernels.grad_norms)
    assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(re.findall(r"\w\w\.global\.v4\.b32", ptx(kernels.update)))
    assert "ld.global.v4.b32" in ptx(kernels.luc_norms)
    assert "atom" not in "".join(map(ptx, (kernels.second_moments, kernels.clip_step_sizes)))


def test_an_address_table_is_uploaded_when_an_address_changed():
    addresses = AddressTable(2, 3, CPU)
    first = addresses.holding([1, 2, 3, 4, 5, 6], capturable=False)
    assert first.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert addresses.holding([1, 2, 3, 4, 5, 6], capturable=False) is first
    second = addresses.holding([1, 2, 3, 4, 5, 7], capturable=False)
    assert second.tolist() == [[1, 2, 3], [4, 5, 7]]
    assert first.tolist() == [[1, 2, 3], [4, 5, 6]], "a graph may still read the old table"


def test_a_captured_table_is_written_from_memory_set_aside_before():
    addresses = AddressTable(1, 2, CPU)
    addresses.holding([1, 2], capturable=True)
    assert addresses._captured_holding([1, 2]).tolist() == [[1, 2]], "known addresses need no new table"
    with pytest.raises(RuntimeError, match="run one step outside of a capture"):
        addresses._captured_holding([3, 4])
    addresses._spare = host, table = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)
    assert addresses._captured_holding([3, 4]) is table
    assert host.tolist() == table.tolist() == [[3, 4]]
    assert addresses._spare is None
    assert addresses.holding([3, 4], capturable=True) is not table, "only a replay fills a captured table"


@pytest.mark.parametrize(
    ("sizes", "first_chunks", "layer_of_chunk"),
    [
        pytest.param([1, 4, 5], [0, 1, 2, 4], [0, 1, 2, 2], id="whole and partial chunks"),
        pytest.param([0, 3, 0], [0, 0, 1, 1], [1], id="layers without elements"),
        pytest.param([0], [0, 0], [], id="no elements at all"),
        pytest.param([], [0], [], id="no layers"),
    ],
)
def test_chunk_table(sizes, first_chunks, layer_of_chunk):
    table = ChunkTable(sizes, 4, CPU)
    assert table.sizes.tolist() == sizes
    assert table.first_chunks.tolist() == first_chunks
    assert table.layer_of_chunk.tolist() == layer_of_chunk
    assert table.num_chunks == len(layer_of_chunk)


def test_chunk_table_counts_beyond_32_bits():
    table = ChunkTable([2**33 + 1], 2**20, CPU)
    assert table.num_chunks == 2**13 + 1


@pytest.fixture
def as_on_cuda(monkeypatch):
    look_like_cuda(monkeypatch)


def with_gradient() -> torch.nn.Parameter:
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    return param


def test_without_triton_the_default_is_foreach_and_one_warning(as_on_cuda, monkeypatch, caplog):
    monkeypatch.setattr(probe, "has_triton_package", lambda: False)
    params = [with_gradient() for _ in range(3)]
    for param in params[:2]:
        NovoGrad([param]).step()
    NovoGrad([params[2]], foreach=True).step()
    assert torch.equal(params[0], params[2])
    assert [record.getMessage() for record in caplog.records] == [
        "NovoGrad's fused CUDA worker cannot be used: Triton is not installed. The slower foreach worker steps instead."
    ]
    param = with_gradient()
    with pytest.raises(
        RuntimeError, match=r"`fused=True` asks for .* but Triton is not installed; leave `fused` unset"
    ):
        NovoGrad([param], fused=True).step()
    assert (param == 1).all()


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("refused", ["no kernels", "capture"])
def test_a_later_group_that_cannot_step_leaves_the_first_as_it_was(refused, fused, as_on_cuda, monkeypatch):
    """The second group's layers seem to lie on a GPU."""
    params = [torch.nn.Parameter(torch.ones(3)), with_gradient()]
    params[0].grad = torch.ones(3)
    monkeypatch.setattr(functional, "_device_types", lambda ps: {"cuda"} if len(ps[0]) == 5 else {"cpu"})
    monkeypatch.setattr(probe, "has_triton_package", lambda: False)
    monkeypatch.setattr(probe, "is_capturing", lambda device: refused == "capture")
    optimizer = NovoGrad([{"params": params[:1]}, {"params": params[1:]}], fused=fused)
    if (refused, fused) == ("no kernels", None):
        optimizer.step()  # by foreach
        assert all((param != 1).all() for param in params)
        return
    with pytest.raises(
        RuntimeError, match="run one step outside" if refused == "capture" else "Triton is not installed"
    ):
        optimizer.step()
    assert all((param == 1).all() for param in params)


def test_a_probe_without_memory_says_nothing_about_the_kernels(as_on_cuda, monkeypatch):
    def fail(kind):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(probe, "has_triton_package", lambda: True)
    monkeypatch.setattr(probe, "_step", fail)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            NovoGrad([with_gradient()]).step()
    assert not probe._problems


@pytest.mark.parametrize("fused", [None, True])
def test_no_probe_in_a_capture(fused, as_on_cuda, monkeypatch):
    param = with_gradient()
    monkeypatch.setattr(probe, "_first_launch", pytest.fail)
    monkeypatch.setattr(probe, "is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="run one step outside of a capture"):
        NovoGrad([param], fused=fused).step()
    assert not probe._problems


def test_the_probe_may_wait_where_waiting_is_an_error(monkeypatch):
    modes = [2]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with probe._patient():
        assert modes == [2, "default"]
    assert modes == [2, "default", 2]


def test_nothing_is_pinned_in_a_capture(monkeypatch):
    known = AddressTable(1, 2, CPU)
    known.holding([1, 2], capturable=True)
    known._spare = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)
    monkeypatch.setattr(tables, "is_capturing", lambda device: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda *args: pytest.fail("pinned"))
    assert known.holding([1, 2], capturable=True).tolist() == [[1, 2]]
    assert known.holding([3, 4], capturable=True).tolist() == [[3, 4]]
    for make in (lambda: ChunkTable([5], 4, CPU), lambda: known.holding([5, 6], capturable=True)):
        with pytest.raises(RuntimeError, match="run one step outside of a capture"):
            make()


CUDA = [torch.device("cuda", index) for index in range(2)]


def lr_at_hand(lr: float | Tensor, *devices: torch.device) -> float | Tensor:
    """What workers get for parameters on these devices."""
    options = Options(
        amsgrad=False, grad_averaging=False, luc=False, luc_trust=0.02, luc_eps=1e-8, beta1=0.95, beta2=0.5, lr=lr,
        weight_decay=0.1, eps=1e-8, maximize=False, capturable=False, differentiable=False,
    )  # fmt: skip
    return functional._with_lr_at_hand(options, [SimpleNamespace(device=device) for device in devices]).lr


def test_a_tensor_lr_comes_to_the_layers_without_a_synchronization(monkeypatch):
    on_cpu, elsewhere = torch.tensor([0.25]), torch.empty((), device="meta")
    moves = []
    monkeypatch.setattr(Tensor, "to", lambda lr, *args, **kwargs: moves.append((args, kwargs)) or lr)
    assert lr_at_hand(0.25, *CUDA) == 0.25
    assert lr_at_hand(on_cpu, CPU).data_ptr() == on_cpu.data_ptr()
    for devices in ([CUDA[0]], CUDA, [CPU, CUDA[0]]):
        lr = lr_at_hand(on_cpu, *devices)
        assert isinstance(lr, float)
        assert lr == 0.25
    assert lr_at_hand(elsewhere, torch.device("meta")) is elsewhere
    assert not moves, "a number is no copy"
    assert lr_at_hand(elsewhere, CUDA[1], CUDA[1]) is elsewhere
    assert moves == [((CUDA[1],), {"non_blocking": True})], "one for all layers"
