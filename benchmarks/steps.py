"""What is measured of an optimizer's step, on a CPU and on a GPU."""

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds until `work` is done, on the device too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def copy_bandwidth(device: torch.device) -> float:
    """GB/s, read plus written, of the fastest of ten copies of 256 MB."""
    source = torch.ones(64_000_000, device=device)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source), device) for _ in range(10))
    return 2 * source.numel() * source.element_size() / best / 1e9


def synchronizations(optimizer: Optimizer) -> int:
    """How often a step waits for the GPU, as far as torch knows; call it after the steps that set the state up."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def replay_seconds(make: Callable[[list[Tensor]], Optimizer], params: list[Tensor], repeats: int) -> list[float] | None:
    """Seconds of each replay of a step that was captured in a CUDA graph; None if it cannot be captured.

    Args:
        make: makes the optimizer, of which a new one is captured.
        params: CUDA parameters, with gradients that stay where they are.
        repeats: replays.

    """
    device = params[0].device
    optimizer = make(params)
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.step()
        torch.cuda.current_stream(device).wait_stream(side)
        with torch.cuda.graph(graph):
            optimizer.step()
    except (RuntimeError, AssertionError):  # not every optimizer can be captured
        torch.cuda.synchronize(device)
        return None
    return [timed(graph.replay, device) for _ in range(repeats + 3)][3:]
