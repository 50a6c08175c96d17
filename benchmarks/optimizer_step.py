"""How long does one optimizer step take, and how much memory?

    python benchmarks/optimizer_step.py --model quartznet_15x5 --device cpu [--json FILE]

Times one step of each optimizer over real parameter shapes: interleaved in one process, in an order that is shuffled
in every round, so that whatever else the machine does affects all of them alike. Ratios are to torch's fused SGD with
momentum in the same round, which moves the same 20 bytes per parameter and so is the floor.

"ours fused" uses the C++ kernels where the package has them.

On a GPU the table also says what share of the speed of a plain copy is reached, how often a step waits for the GPU, and
how long the step takes when it is replayed from a CUDA graph ("-": it cannot be captured).

Peers are timed where they can be imported. The files of their optimizers are enough, unpacked from their wheels into a
folder that PYTHONPATH names: NeMo's nemo/core/optim/novograd.py; timm's timm/optim/nvnovograd.py and, beside it,
_types.py and _helpers.py.
"""

import argparse
import gc
import importlib
import importlib.util
import json
import platform
import random
import statistics
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from shapes import MODELS, Shapes
from steps import copy_bandwidth, replay_seconds, synchronizations, timed
from torch import Tensor
from torch.optim import Optimizer

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.kernels.cpu import library

FLOOR = "torch SGD fused"
NOVOGRAD = {"lr": 1e-6, "betas": (0.95, 0.25), "weight_decay": 1e-3}


class WithoutCppKernel(NovoGrad):
    """The fused CPU worker as it is without the C++ kernels."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        load, library.load = library.load, lambda: None
        try:
            return super().step(closure)
        finally:
            library.load = load


Make = Callable[[list[Tensor]], Optimizer]
# Bytes per float32 parameter that an optimizer must move, where we know it.
MINIMAL_BYTES = {"torch SGD fused": 20, "torch AdamW fused": 28, "torch AdamW foreach": 28}


def optimizers(device: str) -> dict[str, Make]:
    """Constructors of everything that can be timed here; peers that are not installed are left out."""
    found: dict[str, Make] = {
        FLOOR: lambda params: torch.optim.SGD(params, lr=1e-6, momentum=0.95, weight_decay=1e-3, fused=True),
        "torch AdamW fused": lambda params: torch.optim.AdamW(params, lr=1e-6, fused=True),
        "torch AdamW foreach": lambda params: torch.optim.AdamW(params, lr=1e-6, foreach=True),
        "ours fused": lambda params: NovoGrad(params, **NOVOGRAD, fused=True),
        "ours fused, no C++": lambda params: WithoutCppKernel(params, **NOVOGRAD, fused=True),
        "ours foreach": lambda params: NovoGrad(params, **NOVOGRAD, foreach=True),
        "ours single": lambda params: NovoGrad(params, **NOVOGRAD, foreach=False, fused=False),
    }
    peers = {
        "pytorch_optimizer": ("pytorch_optimizer", "NovoGrad"),
        "timm": ("timm.optim.nvnovograd", "NvNovoGrad"),
        "NeMo": ("nemo.core.optim.novograd", "Novograd"),
    }
    if device == "cuda":
        del found["ours fused, no C++"]
        peers["apex"] = ("apex.optimizers", "FusedNovoGrad")
    for name, (module, cls) in peers.items():
        if _importable(module):
            optimizer = getattr(importlib.import_module(module), cls)
            found[name] = lambda params, optimizer=optimizer: optimizer(params, **NOVOGRAD)
    return found


def _importable(module: str) -> bool:
    """Whether all parents of `module` exist and so does it; what goes wrong inside of them is not hidden."""
    parts = module.split(".")
    return all(importlib.util.find_spec(".".join(parts[: i + 1])) is not None for i in range(len(parts)))


def main() -> None:
    arguments = parse_arguments()
    device = torch.device(arguments.device)
    shapes = MODELS[arguments.model]()
    num_params = sum(map(prod, shapes))
    makes = optimizers(arguments.device)
    unknown = set(arguments.optimizers or ()) - set(makes)
    if unknown:
        raise SystemExit(f"not available here: {', '.join(sorted(unknown))}; available: {', '.join(makes)}")
    chosen = {name: makes[name] for name in makes if name in (arguments.optimizers or makes) or name == FLOOR}

    params = parameters(shapes, device)
    built: dict[str, Optimizer] = {name: make(params) for name, make in chosen.items()}
    memory = {name: extra_bytes(optimizer, params) for name, optimizer in built.items()}
    seconds: dict[str, list[float]] = {name: [] for name in built}
    order = list(built)
    rng = random.Random(0)
    gc.disable()
    for _ in range(arguments.repeats):
        rng.shuffle(order)
        for name in order:
            seconds[name].append(timed(built[name].step, device))
        gc.collect()

    copy_gb_per_s = copy_bandwidth(device)
    waits: dict[str, int] = {}
    replays: dict[str, float | None] = {}
    if device.type == "cuda":
        waits = {name: synchronizations(optimizer) for name, optimizer in built.items()}
        for name, make in chosen.items():  # last: a capture that fails may leave traces
            replay = replay_seconds(make, params, arguments.repeats)
            replays[name] = replay and statistics.median(replay)

    rows = []
    for name in chosen:
        median = statistics.median(seconds[name])
        gb_per_s = MINIMAL_BYTES.get(name, 20) * num_params / median / 1e9
        rows.append(
            {
                "optimizer": name,
                "median_ms": median * 1e3,
                "quartiles_ms": [q * 1e3 for q in quartiles(seconds[name])],
                "ratio_to_sgd": statistics.median(a / b for a, b in zip(seconds[name], seconds[FLOOR], strict=True)),
                "gb_per_s": gb_per_s,
                "percent_of_copy": 100 * gb_per_s / copy_gb_per_s,
                "state_bytes_per_parameter": state_bytes(built[name]) / num_params,
                "extra_bytes_per_parameter": memory[name] / num_params,
                "synchronizations": waits.get(name),
                "replay_ms": replay * 1e3 if (replay := replays.get(name)) else None,
            }
        )
    result = {
        "model": arguments.model,
        "parameters": num_params,
        "tensors": len(shapes),
        "repeats": arguments.repeats,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpp_kernel": device.type == "cpu" and library.load() is not None,
        "copy_gb_per_s": copy_gb_per_s,
        "rows": rows,
    }
    print(as_markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="quartznet_15x5")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=31, help="rounds; each times every optimizer once")
    parser.add_argument("--optimizers", nargs="+", metavar="NAME", help="these and the floor; all are held at once")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def parameters(shapes: Shapes, device: torch.device) -> list[Tensor]:
    """All optimizers share them and their gradients: how long a step takes does not depend on the values."""
    generator = torch.Generator(device).manual_seed(0)
    params: list[Tensor] = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.randn(shape, generator=generator, device=device) * 0.05)
        param.grad = torch.randn(shape, generator=generator, device=device) * 1e-3
        params.append(param)
    return params


def extra_bytes(optimizer: Optimizer, params: list[Tensor]) -> int:
    """The most that a step, after the ones that set the state up, holds beyond what was there before it."""
    grads = [param.grad for param in params]
    for _ in range(3):
        optimizer.step()
    device = params[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        optimizer.step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))
    return peak


def state_bytes(optimizer: Optimizer) -> int:
    states = [*optimizer.state.values(), *optimizer.param_groups]
    values = [value for state in states for key, value in state.items() if key != "params"]
    flat = [tensor for value in values for tensor in (value if isinstance(value, list | tuple) else [value])]
    return sum(tensor.numel() * tensor.element_size() for tensor in flat if isinstance(tensor, Tensor))


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']}: {result['parameters'] / 1e6:.2f} M float32 parameters in {result['tensors']} tensors; "
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}; {result['repeats']} rounds; "
        f"copy {result['copy_gb_per_s']:.0f} GB/s" + ("; C++ kernel built" if result["cpp_kernel"] else ""),
        "",
        "| optimizer | median ms | quartiles | ratio to SGD fused | GB/s | state B/param | extra B/param |",
        "|---|---|---|---|---|---|---|",
    ]
    on_gpu = any(row["synchronizations"] is not None for row in result["rows"])
    if on_gpu:
        lines[-2] += " % of copy | waits | graph replay ms |"
        lines[-1] += "---|---|---|"
    for row in result["rows"]:
        low, high = row["quartiles_ms"]
        lines.append(
            f"| {row['optimizer']} | {row['median_ms']:.3g} | {low:.3g} to {high:.3g} | {row['ratio_to_sgd']:.2f} | "
            f"{row['gb_per_s']:.0f} | {row['state_bytes_per_parameter']:.2f} | {row['extra_bytes_per_parameter']:.3f} |"
        )
        if on_gpu:
            replay = "-" if row["replay_ms"] is None else f"{row['replay_ms']:.3g}"
            lines[-1] += f" {row['percent_of_copy']:.0f} | {row['synchronizations']} | {replay} |"
    return "\n".join(lines)


if __name__ == "__main__":
    main()
