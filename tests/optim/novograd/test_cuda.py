"""The fused CUDA worker as far as no GPU is needed: its values in Triton's interpreter, its code for real GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_novograd.optim.kernels.cuda.tables import AddressTable, ChunkTable

CPU = torch.device("cpu")


def test_values_in_the_interpreter():
    """Triton interprets all kernels of a process or none, so the cases run in a process of their own."""
    pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")
    cases = Path(__file__).with_name("interpreted_cuda.py")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(cases)],
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
