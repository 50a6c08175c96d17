"""What the tests of the fused CUDA worker share, on a GPU, in Triton's interpreter and without Triton."""

from typing import Any

import pytest
import torch

from lightning_novograd.optim.novograd import functional, probe

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def forget_launches(patch: pytest.MonkeyPatch) -> None:
    """As in a process in which nothing was launched yet."""
    patch.setattr(probe, "_problems", {})
    patch.setattr(probe, "_warned", set())


def look_like_cuda(patch: pytest.MonkeyPatch) -> None:
    """What asks for the type of device is told "cuda"; nothing is known of kernels yet."""
    patch.setattr(functional, "_device_types", lambda params: {"cuda"})
    forget_launches(patch)


def interpret(patch: pytest.MonkeyPatch) -> None:
    """Layers on a CPU go to the CUDA worker, which cuts them into small chunks."""
    from lightning_novograd.optim.novograd import cuda

    patch.setattr(functional, "_fused_worker", lambda device: cuda.fused_cuda_novograd)
    patch.setattr(cuda, "_plans", type(cuda._plans)())
    patch.setattr(cuda, "CHUNK", 512)
    patch.setattr(cuda, "BLOCK", 256)


def count_plans(patch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets longer with every plan of launches that is made."""
    from lightning_novograd.optim.novograd import cuda

    made: list[int] = []
    plan = cuda._Plan
    patch.setattr(cuda, "_Plan", lambda *args: made.append(1) or plan(*args))
    return made


def count_probes(patch: pytest.MonkeyPatch) -> list[probe.Kind]:
    """The kinds of the probe's steps."""
    kinds: list[probe.Kind] = []
    step = probe._step
    patch.setattr(probe, "_step", lambda kind: kinds.append(kind) or step(kind))
    return kinds


def break_launches(patch: pytest.MonkeyPatch, error: Exception) -> None:
    """The last of the kernels raises `error` when it is launched."""
    from lightning_novograd.optim.kernels.cuda import novograd as kernels

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    patch.setattr(kernels.update, "run", fail)
