"""What a step of QuartzNet and Jasper costs on 8, 64 and 512 GPUs, on paper: docs/scaling.md is what this prints.

Parameters and FLOPs are counted on the real models; what GPUs and networks do is assumed, and said.

python benchmarks/scaling_model.py > docs/scaling.md
python benchmarks/scaling_model.py --measure     # CPU seconds of forward, CTC and backward, for MEASURED
"""

import argparse
import math
import textwrap
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.training.loss import ctc_loss

MODELS = ("quartznet_15x5", "jasper_10x5dr")
FRAMES = 1230  # of a mean utterance of LibriSpeech, 12.3 s
UTTERANCES = 281_241  # of its 960 hours
GPUS = (8, 64, 512)
PER_GPU = 64  # utterances of a GPU in a step of the tables
# s of CPU of one utterance, forward, CTC and backward, one thread of an AMD EPYC with AVX-512, 2026-11-22
MEASURED = {"quartznet_15x5": 1.24, "jasper_10x5dr": 13.62}

# Assumed, not measured: eight H100 in a machine, one 400 Gb/s adapter for each
PEAK = 989e12  # FLOP/s, bf16, dense
UTILIZATION = {"quartznet_15x5": 0.03, "jasper_10x5dr": 0.35}  # depthwise convolutions wait for memory
HALF = 8  # utterances of a GPU with which it reaches half of that
INSIDE, BETWEEN = 450e9, 50e9  # bytes/s of a GPU, within a machine and between machines
HOP = 10e-6  # s of one message; a collective of n GPUs takes 2 log2(n)
BUCKET = 25e6  # bytes; the last one is sent when the backward pass is over
EFFICIENCY = 0.8  # of the bandwidth that a collective reaches


@dataclass(frozen=True)
class Model:
    """What is counted."""

    name: str
    parameters: int
    flops: float  # of an utterance, forward and backward
    unit: int  # parameters of the largest block


@cache
def count(name: str) -> Model:
    """Count on a model without memory."""
    path = Path(__file__).resolve().parent.parent / "conf" / "model" / f"{name}.yaml"
    with torch.device("meta"):
        network = JasperCTC.from_config(yaml.safe_load(path.read_text()))
        with FlopCounterMode(display=False) as counter:
            network.encode_features(torch.randn(1, 64, FRAMES), torch.full((1,), FRAMES))
    sizes = [sum(p.numel() for p in block.parameters()) for block in network.encoder.encoder]
    # twice as many in the backward pass; torch 2.13 counts those of grouped convolutions without their groups
    return Model(name, sum(p.numel() for p in network.parameters()), 3.0 * counter.get_total_flops(), max(sizes))


def compute(model: Model, per_gpu: float) -> float:
    """Seconds of forward and backward; a GPU with little to do is used less well."""
    return model.flops * per_gpu / (PEAK * UTILIZATION[model.name] * per_gpu / (per_gpu + HALF))


def ring(size: float, gpus: int) -> float:
    """Seconds of an all-reduce of `size` bytes: 2 (n - 1) / n of them leave each GPU, over the slowest link."""
    bandwidth = (INSIDE if gpus <= 8 else BETWEEN) * EFFICIENCY
    return 2 * (gpus - 1) / gpus * size / bandwidth + 2 * math.log2(gpus) * HOP


def step(model: Model, gpus: int, per_gpu: float, engine: str) -> float:
    """Seconds of a step: what of the communication does not hide behind the computation is added to it."""
    work, size = compute(model, per_gpu), 4.0 * model.parameters
    backward = work * 2 / 3
    if engine == "DDP, bf16":
        size /= 2
    if engine.startswith("DDP"):
        last = min(size, BUCKET)
        return work + max(0.0, ring(size - last, gpus) - backward) + ring(last, gpus)
    half = ring(size, gpus) / 2  # a reduce-scatter or an all-gather
    if engine == "ZeRO-1":  # the weights are gathered once the optimizer has stepped
        return work + max(0.0, half - backward) + half
    first = ring(4.0 * model.unit, gpus) / 2
    return work + max(0.0, 3 * half - work) + first  # FSDP2: gathered twice, scattered once, block by block


def wire(model: Model, gpus: int, engine: str) -> float:
    """Bytes that leave a GPU in a step."""
    share = (gpus - 1) / gpus * 4.0 * model.parameters
    return {"DDP": 2.0, "DDP, bf16": 1.0, "ZeRO-1": 2.0, "FSDP2": 3.0}[engine] * share


def memory(model: Model, gpus: int, engine: str, state: float) -> float:
    """Bytes of weights, gradients and `state` bytes a parameter of optimizer on a GPU; activations come on top."""
    size = 4.0 * model.parameters
    optimizer = state * model.parameters
    if engine == "FSDP2":
        return (2 * size + optimizer) / gpus + 2 * 4.0 * model.unit
    return 2 * size + (optimizer / gpus if engine == "ZeRO-1" else optimizer)


def hours(model: Model, gpus: int, batch: int, noise: float, epochs: float = 400.0) -> float:
    """Of a training whose steps are S_min (1 + noise / batch), where a batch of 256 takes `epochs`."""
    least = epochs * UTTERANCES / 256 / (1 + noise / 256)
    return least * (1 + noise / batch) * step(model, gpus, batch / gpus, "DDP") / 3600


ENGINES = ("DDP", "DDP, bf16", "ZeRO-1", "FSDP2")
NOISES = (1024, 8192, 32768)
BATCHES = (512, 2048, 8192, 32768, 131072)


def paragraph(text: str) -> str:
    """Its lines."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def page() -> str:
    """The page."""
    lines = ["# How far Jasper and QuartzNet scale, on paper", ""]
    lines += [
        paragraph(
            "Printed by `python benchmarks/scaling_model.py`; a test compares. **Counted**: parameters and FLOPs "
            "(torch's `FlopCounterMode`, forward; backward is twice that). **Measured**: CPU seconds of an utterance, "
            "one thread. **Assumed**, on paper: everything about GPUs and networks. `python benchmarks/ddp_scaling.py` "
            "measures the efficiency of a few ranks on the machine at hand."
        ),
        "",
        "| assumed | |",
        "|---|---|",
        f"| GPU | H100, {PEAK / 1e12:.0f} TFLOP/s in bf16, dense |",
        f"| share of that, QuartzNet / Jasper | {UTILIZATION[MODELS[0]]:.0%} / {UTILIZATION[MODELS[1]]:.0%};"
        f" half with {HALF} utterances on a GPU |",
        f"| within a machine of 8 | NVLink, {INSIDE / 1e9:.0f} GB/s a GPU |",
        f"| between machines | InfiniBand, {BETWEEN / 1e9:.0f} GB/s (400 Gb/s) a GPU |",
        f"| reached by a collective | {EFFICIENCY:.0%}, and 2 log2(n) messages of {HOP * 1e6:.0f} us |",
        "| weights, gradients | float32 (autocast computes in bf16) |",
        "",
        paragraph(
            "A ring all-reduce sends 2 (n - 1) / n of the gradients from each GPU, and hides behind the backward pass "
            f"but for its last bucket of {BUCKET / 1e6:.0f} MB. ZeRO-1 scatters gradients behind it and then gathers "
            "weights; FSDP2 gathers weights twice and scatters gradients once, behind all of the computation "
            "but for the first "
            "block."
        ),
        "",
        f"## The models, with utterances of {FRAMES / 100:.1f} s",
        "",
        "| model | parameters | GFLOP an utterance | MB of gradients | CPU s an utterance, measured |",
        "|---|---|---|---|---|",
    ]
    models = [count(name) for name in MODELS]
    lines += [
        f"| {m.name} | {m.parameters / 1e6:.1f} M | {m.flops / 1e9:.0f} | {4 * m.parameters / 1e6:.0f} |"
        f" {MEASURED[m.name]:.2f} ({m.flops / MEASURED[m.name] / 1e9:.0f} GFLOP/s) |"
        for m in models
    ]
    for m in models:
        lines += ["", f"## {m.name}: a step of {PER_GPU} utterances on each GPU", ""]
        lines += [
            "| GPUs | global batch | computing, ms | " + " | ".join(f"{e}, ms (of it computing)" for e in ENGINES)
        ]
        lines[-1] += " |"
        lines += ["|---|---|---|" + "---|" * len(ENGINES)]
        for gpus in GPUS:
            work = compute(m, PER_GPU)
            cells = [f"{1000 * t:.1f} ({work / t:.0%})" for t in (step(m, gpus, PER_GPU, e) for e in ENGINES)]
            lines.append(f"| {gpus} | {gpus * PER_GPU} | {1000 * work:.1f} | {' | '.join(cells)} |")
        lines += [
            "",
            "| GPUs | " + " | ".join(f"{e}, MB sent" for e in ENGINES) + " |",
            "|---|" + "---|" * len(ENGINES),
        ]
        for gpus in GPUS:
            lines.append(f"| {gpus} | " + " | ".join(f"{wire(m, gpus, e) / 1e6:.0f}" for e in ENGINES) + " |")
        lines += [
            "",
            "MB of weights, gradients and optimizer on each GPU, NovoGrad (4 bytes a parameter) / AdamW (8):",
            "",
        ]
        kinds = ("DDP", "ZeRO-1", "FSDP2")
        lines += ["| GPUs | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
        for gpus in GPUS:
            cells = [" / ".join(f"{memory(m, gpus, e, s) / 1e6:.0f}" for s in (4.0, 8.0)) for e in kinds]
            lines.append(f"| {gpus} | {' | '.join(cells)} |")
    lines += ["", "## Where a global batch of 32768 stops to pay", ""]
    lines += [
        paragraph(
            "Steps to a given loss are S_min (1 + B_noise / B) for the gradient noise scale B_noise (arXiv 1812.06162; "
            "`GradientNoiseScale` measures it, docs/large_batch.md). Hours under DDP, where a batch of 256 needs 400 "
            "epochs of LibriSpeech; in brackets how many utterances a GPU has. Shortest in bold."
        )
    ]
    for m in models:
        lines += ["", f"| {m.name} | B_noise | " + " | ".join(f"B = {b}" for b in BATCHES) + " |"]
        lines += ["|---|---|" + "---|" * len(BATCHES)]
        for gpus in GPUS:
            for noise in NOISES:
                taken = [hours(m, gpus, b, noise) for b in BATCHES]
                cells = [
                    f"{'**' if t == min(taken) else ''}{t:.2f}{'**' if t == min(taken) else ''} ({b // gpus})"
                    for b, t in zip(BATCHES, taken, strict=True)
                ]
                lines.append(f"| {gpus} GPUs | {noise} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *CONCLUSIONS, ""])


CONCLUSIONS = [
    "What follows from these assumptions:",
    "",
    "- All-reduces hide behind the backward pass at all three sizes: `distributed.comm_hook` saves bytes and no time;",
    "  it pays where the network is tens of times slower than assumed here.",
    "- Weights, gradients and optimizer are at most 5.3 GB of a GPU's 80: neither model needs ZeRO-1 or FSDP2.",
    "- A batch beyond B_noise buys hardly fewer steps, whatever the number of GPUs; one far below it leaves GPUs with",
    "  too little to do. 32768 is in no row the shortest: with 512 GPUs it takes 1.1 to 4 times as long as the best,",
    "  and comes near only where B_noise is as large itself.",
]


def measure(name: str, batch: int = 4, frames: int = 800, repeats: int = 2) -> float:
    """CPU seconds of one utterance of FRAMES frames: forward, CTC and backward, one thread."""
    torch.set_num_threads(1)
    path = Path(__file__).resolve().parent.parent / "conf" / "model" / f"{name}.yaml"
    network = JasperCTC.from_config(yaml.safe_load(path.read_text()))
    lens_B, targets_BU = torch.full((batch,), frames), torch.ones(batch, 60, dtype=torch.long)
    best = math.inf
    for _ in range(repeats):
        network.zero_grad()
        start = time.process_time()
        log_probs_BTV, out_lens_B = network.encode_features(torch.randn(batch, 64, frames), lens_B)
        ctc_loss(log_probs_BTV, out_lens_B, targets_BU, torch.full((batch,), 60), network.alphabet.blank).backward()
        best = min(best, time.process_time() - start)
    return best / batch * FRAMES / frames


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="print CPU seconds instead of the page")
    if parser.parse_args().measure:
        for chosen in MODELS:
            print(chosen, round(measure(chosen), 2))
    else:
        print(page(), end="")
