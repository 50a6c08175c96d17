"""Whether the fused CUDA worker runs on a GPU: found out once per process, in a step on tensors of the probe's own.

Triton compiles the kernels when they are first launched, for which it needs a C compiler, a GPU that it knows and a
folder to write to. What is missing shows only then; here it shows before any tensor of a training has changed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._triton import has_triton, has_triton_package

from lightning_novograd.log import every_rank_logger
from lightning_novograd.optim.kernels.cuda.tables import NO_STEP_BEFORE_CAPTURE, is_capturing
from lightning_novograd.optim.norms import accumulation_dtype
from lightning_novograd.optim.novograd.foreach import multi_tensor_novograd
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.options import Options

log = every_rank_logger(__name__)


class Kind(NamedTuple):
    """Steps that launch the same kernels."""

    device: torch.device
    dtype: torch.dtype
    luc: bool


# Why the worker cannot make steps of a kind; None: it can.
_problems: dict[Kind, str | None] = {}
_warned: set[str] = set()


def may_launch(params: list[Tensor], luc: bool) -> bool:
    """Whether the fused CUDA worker can step these layers; the first time that it cannot, one warning says why.

    Args:
        params: real CUDA layers.
        luc: whether the learning rate is clipped.

    Raises:
        RuntimeError: in a CUDA graph's capture, where the first step must not be.

    """
    problem = problem_of(params, luc)
    if problem is not None and problem not in _warned:
        _warned.add(problem)
        log.warning(
            "NovoGrad's fused CUDA worker cannot be used: %s. The slower foreach worker steps instead.", problem
        )
    return problem is None


def require_launch(params: list[Tensor], luc: bool) -> None:
    """Raise if the fused CUDA worker cannot step these layers; arguments are those of `may_launch`."""
    problem = problem_of(params, luc)
    if problem is not None:
        raise RuntimeError(f"`fused=True` asks for NovoGrad's fused CUDA worker, but {problem}; leave `fused` unset")


def problem_of(params: list[Tensor], luc: bool) -> str | None:
    """Why the fused CUDA worker cannot step these layers, or None; arguments are those of `may_launch`."""
    for device, dtype in set(map(attrgetter("device", "dtype"), params)):
        kind = Kind(device, dtype, luc)
        if kind not in _problems:
            if is_capturing(device):
                raise RuntimeError(NO_STEP_BEFORE_CAPTURE)
            _problems[kind] = _first_launch(kind)
        if _problems[kind] is not None:
            return _problems[kind]
    return None


def _first_launch(kind: Kind) -> str | None:
    """Why a step of this kind fails, or None."""
    try:
        if not has_triton_package():
            return "Triton is not installed"
        if kind.device.type == "cuda" and not has_triton():
            return f"Triton does not support {torch.cuda.get_device_name(kind.device)}"
        with _patient(), torch.inference_mode(False), torch.no_grad():
            _step(kind)
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernels
    except Exception as error:  # compilers, drivers, file systems: whatever it is, there is another worker
        lines = str(error).strip().splitlines()
        return f"its kernels fail on {kind.device}: {type(error).__name__}: {lines[0] if lines else ''}".rstrip(": .")
    return None


def _step(kind: Kind) -> None:
    """Make a step and compare it with that of the foreach worker."""
    from lightning_novograd.optim.novograd import cuda  # needs Triton

    options = Options(
        lr=0.5, beta1=0.9, beta2=0.5, eps=1e-8, weight_decay=0.1, grad_averaging=False, amsgrad=False, luc=kind.luc,
        luc_trust=0.1, luc_eps=1e-8, maximize=False, capturable=False, differentiable=False,
    )  # fmt: skip
    stepped, expected = _layers(kind, cuda.CHUNK + 5), _layers(kind, cuda.CHUNK + 5)
    cuda.fused_cuda_novograd(stepped, options)
    multi_tensor_novograd(expected, options)
    # Both compute in float32 and round once: they may differ by that rounding and by some of float32's.
    tolerance = torch.finfo(kind.dtype).eps + 1e-5
    for tensors in ("params", "exp_avgs", "exp_avg_sqs"):
        (actual,), (right,) = getattr(stepped, tensors), getattr(expected, tensors)
        if not torch.allclose(actual, right, rtol=tolerance, atol=1e-5):
            raise RuntimeError("wrong values")


def _layers(kind: Kind, size: int) -> Layers:
    """One small layer before its first step: a whole chunk and a rest."""
    values = torch.linspace(-1, 1, size, dtype=torch.float32, device=kind.device).to(kind.dtype)
    scalar = torch.zeros((), dtype=accumulation_dtype(kind.dtype), device=kind.device)
    return Layers([values.clone()], [values.flip(0)], [torch.zeros_like(values)], [scalar], [])


@contextmanager
def _patient() -> Iterator[None]:
    """Inside, waiting for the GPU is no error: the probe reads its values back, once."""
    mode = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else 0
    if not mode:
        yield
        return
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
