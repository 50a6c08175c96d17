"""What a step of QuartzNet and Jasper costs on 8, 64 and 512 GPUs, on paper: docs/scaling.md is what this prints.

Parameters and FLOPs are counted on the real models, CPU seconds are measured; what GPUs and networks do is assumed, and
said.

python benchmarks/scaling_model.py > docs/scaling.md
python benchmarks/scaling_model.py --measure     # CPU seconds of forward, CTC and backward, for MEASURED
"""

import argparse
import math
import textwrap
import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from scaling_costs import (
    ASSUMED,
    BUCKET,
    ENGINES,
    EPOCHS,
    ETHERNET,
    FRAMES,
    GPU,
    LOSS,
    MODELS,
    ONE,
    RAILS,
    UTTERANCES,
    Model,
    Network,
    all_reduce,
    buckets,
    build,
    count,
    doubled,
    enough,
    hours,
    memory,
    pays_from,
    step,
    wire,
)

from lightning_novograd.recipes.asr.training.loss import ctc_loss

GPUS = (8, 64, 512)
PER_GPU = 64  # utterances of a GPU in a step of the tables
UTILIZATIONS = (0.10, 0.35, 0.60)  # by which the conclusions are tried
# s of CPU of one utterance, forward, CTC and backward, one thread of an AMD EPYC with AVX-512, 2026-11-22
MEASURED = {"quartznet_15x5": 1.24, "jasper_10x5dr": 13.62}
PER_RANK = 8  # utterances of such a thread in a step
MEMORY = ("DDP", "DDP, bucket view", "ZeRO-1", "FSDP2")
NOISES = (1024, 8192, 32768)
BATCHES = (512, 2048, 8192, 32768, 131072)
LARGE = 32768


def paragraph(text: str) -> list[str]:
    """Its lines, and an empty one."""
    return [*textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False), ""]


def bullet(text: str) -> list[str]:
    """Its lines as an item of a list."""
    options = {"initial_indent": "- ", "subsequent_indent": "  "}
    return textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False, **options)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Its lines, and an empty one."""
    names = list(header)
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(row)} |" for row in rows), ""]


def share(work: float, taken: float) -> str:
    """Of a step in ms, how much is computing."""
    return f"{1000 * taken:.1f} ({work / taken:.0%})"


def assumptions() -> list[str]:
    """What the page rests on."""
    percent = " / ".join(f"{ASSUMED[name].utilization:.0%}" for name in MODELS)
    gpu = ASSUMED[MODELS[0]]
    rows = [
        ("GPU", f"H100, {gpu.peak / 1e12:.0f} TFLOP/s in bf16, dense"),
        ("utilization: share of that, QuartzNet / Jasper", f"{percent}; half with {gpu.half:.0f} utterances on a GPU"),
        (f"within a machine of {RAILS.per_machine}", f"NVLink, {RAILS.inside / 1e9:.0f} of 450 GB/s"),
        (
            "between machines",
            f"{RAILS.adapters} InfiniBand adapters a machine, {RAILS.adapter / 1e9:.0f} of 50 GB/s (400 Gb/s) each: "
            f"{RAILS.bandwidth(512) / 1e9:.0f} GB/s of bus bandwidth",
        ),
        ("latency of an all-reduce", f"2 log2(n) messages of {RAILS.hop * 1e6:.0f} us"),
        ("weights, gradients", "float32 (autocast computes in bf16)"),
    ]
    return [
        *paragraph(
            "Printed by `python benchmarks/scaling_model.py`; a test compares. **Counted**: parameters and FLOPs "
            "(torch's `FlopCounterMode`, forward; backward is twice that). **Measured**: CPU seconds of an utterance, "
            "one thread; no GPU was. **Assumed**: everything about GPUs and networks, above all the utilization of a "
            "GPU; below is how the conclusions move with it. `python benchmarks/ddp_scaling.py` measures the "
            "efficiency of a few ranks on the machine at hand."
        ),
        *table(("assumed", ""), rows),
        *paragraph(
            "NCCL lays a ring through each adapter, all at once, as long as NVLink keeps up (NVIDIA/nccl issue 412): "
            "a GPU sends 2 (n - 1) / n of the gradients, and an eighth of that passes each adapter. An all-reduce of "
            "S bytes takes 2 (n - 1) / n S / bus bandwidth (nccl-tests, doc/PERFORMANCE.md). NCCL's developers expect "
            "46 to 48 GB/s of such an adapter, 370 of NVLink and up to 396 between machines (nccl-tests issues 290, "
            "212 and 319). Users report 331 GB/s on 4 machines (ZiyanIshani/vpbenchmarking), 350 on 8 (uccl issue "
            "205), 216 to 231 where something is amiss (nccl issue 2409), and more where NVLink's switches add. "
            f"The pessimistic case is one adapter for the whole machine, {ONE.bandwidth(512) / 1e9:.0f} GB/s."
        ),
        *paragraph(
            "DDP's all-reduces hide behind the backward pass but for the last bucket, of "
            f"{BUCKET / 2**20:.0f} MiB; bf16 is `distributed.comm_hook`, which halves all of them. ZeRO-1 is torch's "
            "`ZeroRedundancyOptimizer` behind DDP, which sends every tensor once the optimizer has stepped, 3 S in "
            "all; DeepSpeed's sends 2 S (gradients scattered, weights gathered), and its flattened partitions are "
            "refused here (docs/numerics.md). FSDP2 gathers weights twice and scatters gradients once, behind "
            "all of the computation but for one block."
        ),
    ]


def of_model(m: Model) -> list[str]:
    """Time, bytes and memory of a step."""
    work = ASSUMED[m.name].seconds(m.flops, PER_GPU)
    times = (
        (f"{n}", f"{n * PER_GPU}", f"{1000 * work:.1f}", *(share(work, step(work, m, n, e, RAILS)) for e in ENGINES))
        for n in GPUS
    )
    sent = ((f"{n}", *(f"{wire(m, n, e) / 1e6:.0f}" for e in ENGINES)) for n in GPUS)
    held = (
        (f"{n}", *(" / ".join(f"{memory(m, n, e, state) / 1e6:.0f}" for state in (4.0, 8.0)) for e in MEMORY))
        for n in GPUS
    )
    return [
        f"## {m.name}: a step of {PER_GPU} utterances on each GPU",
        "",
        *table(("GPUs", "global batch", "computing, ms", *(f"{e}, ms (of it computing)" for e in ENGINES)), times),
        *table(("GPUs", *(f"{e}, MB sent" for e in ENGINES)), sent),
        *paragraph(
            "MB of weights, gradients, buckets and optimizer on each GPU, NovoGrad (4 bytes a parameter) / AdamW (8). "
            "With `distributed.gradient_as_bucket_view=true` gradients lie in DDP's buckets; by default (the other "
            "columns of DDP and ZeRO-1) they have 4 bytes a parameter of their own besides."
        ),
        *table(("GPUs", *MEMORY), held),
    ]


def cases(models: list[Model]) -> list[tuple[Model, GPU, int]]:
    """Models, utilizations and utterances a GPU by which conclusions are tried."""
    return [
        (m, gpu, utterances)
        for m in models
        for gpu in sorted({ASSUMED[m.name], *map(GPU, UTILIZATIONS)}, key=lambda gpu: gpu.utilization)
        for utterances in (8, PER_GPU)
    ]


def saving(m: Model, gpu: GPU, utterances: int, network: Network) -> float:
    """Share of a step under DDP that gradients in bf16 save, on the most GPUs."""
    work = gpu.seconds(m.flops, utterances)
    plain, bf16 = (step(work, m, GPUS[-1], engine, network) for engine in ENGINES[:2])
    return 1 - bf16 / plain


def networks(models: list[Model]) -> list[str]:
    """Which network is enough, by utilization."""
    most, rows = GPUS[-1], []
    for m, gpu, utterances in cases(models):
        work = gpu.seconds(m.flops, utterances)
        cells = [share(work, step(work, m, most, "DDP", n)) for n in (RAILS, ONE)]
        bf16 = share(work, step(work, m, most, "DDP, bf16", ONE))
        least = f"{enough(work, m, most, RAILS) / 1e9:.0f}"
        rows.append((m.name, f"{gpu.utilization:.0%}", f"{utterances}", f"{1000 * work:.1f}", least, *cells, bf16))
    header = ("model", "utilization", "utterances a GPU", "computing, ms", "enough, GB/s", "DDP, 8 adapters, ms")
    return [
        f"## Which network is enough: {most} GPUs",
        "",
        *paragraph(
            f"Enough: the bus bandwidth between machines with which a step under DDP takes {LOSS:.0%} longer than its "
            "computing. In brackets how much of the step is computing."
        ),
        *table((*header, "DDP, 1 adapter, ms", "DDP, bf16, 1 adapter, ms"), rows),
    ]


def processors(models: list[Model]) -> list[str]:
    """The same on CPUs, of which the seconds are measured."""
    rows = []
    for m in models:
        work = MEASURED[m.name] * PER_RANK
        for n in GPUS:
            taken = step(work, m, n, "DDP", ETHERNET)
            epoch = UTTERANCES / (n * PER_RANK) * taken / 3600
            lone = all_reduce(4.0 * m.parameters, n, ETHERNET, buckets(m))
            cells = f"{work:.1f}", f"{lone:.2f}", f"{taken:.1f} ({work / taken:.1%})", f"{epoch:.1f}"
            rows.append((m.name, f"{n}", f"{n * PER_RANK}", *cells))
    header = ("model", "ranks", "global batch", "computing, s, measured", "all-reduce, s")
    return [
        "## The same on CPUs, from measured seconds",
        "",
        *paragraph(
            f"Ranks of one thread with {PER_RANK} utterances each, {ETHERNET.per_machine} in a machine, over gloo. "
            f"Assumed: {ETHERNET.adapter / 1e9:.0f} GB/s within and between machines (10 Gb/s Ethernet), "
            f"2 (n - 1) messages of {ETHERNET.hop * 1e6:.0f} us, and cores that do not slow each other down "
            "(two did, by up to 9 %: benchmarks/results/ddp_scaling_epyc2_2026-11-22.md)."
        ),
        *table((*header, "DDP, s (of it computing)", "an epoch of LibriSpeech, h"), rows),
    ]


def thresholds(gpu: GPU) -> list[tuple[GPU, Network]]:
    """What the point is tried by from which a large batch pays."""
    return [*((replace(gpu, half=h), RAILS) for h in (2.0, 8.0, 32.0)), (gpu, ONE)]


def noise(models: list[Model]) -> list[str]:
    """Where a large batch stops paying."""
    lines = [
        f"## Where a global batch of {LARGE} stops paying",
        "",
        *paragraph(
            "Steps to a given loss are S_min (1 + B_noise / B) for the gradient noise scale B_noise (arXiv 1812.06162; "
            "`GradientNoiseScale` measures it, docs/large_batch.md). Hours under DDP with eight adapters, where a "
            f"batch of 256 needs {EPOCHS} epochs of LibriSpeech; in brackets how many utterances a GPU has. "
            "Shortest in bold."
        ),
    ]
    for m in models:
        rows = []
        for n, scale in ((n, scale) for n in GPUS for scale in NOISES):
            taken = [hours(m, n, b, scale, ASSUMED[m.name]) for b in BATCHES]
            marks = ["**" if t == min(taken) else "" for t in taken]
            cells = (f"{k}{t:.2f}{k} ({b // n})" for b, t, k in zip(BATCHES, taken, marks, strict=True))
            rows.append((f"{n} GPUs", f"{scale}", *cells))
        lines += table((m.name, "B_noise", *(f"B = {b}" for b in BATCHES)), rows)
    rows = [
        (
            m.name,
            f"{gpu.utilization:.0%}",
            *(f"{pays_from(m, GPUS[-1], LARGE, *c) / 1000:.0f}" for c in thresholds(gpu)),
        )
        for m, gpu, utterances in cases(models)
        if utterances == PER_GPU
    ]
    return [
        *lines,
        *paragraph(
            f"B_noise, in thousands, from which {GPUS[-1]} GPUs are done sooner with {LARGE} than with "
            f"{LARGE // 2}, by utilization, by the utterances with which a GPU reaches half of it, and by adapters of "
            "a machine:"
        ),
        *table(("model", "utilization", "half with 2", "half with 8", "half with 32", "half with 8, 1 adapter"), rows),
    ]


def conclusions(models: list[Model]) -> list[str]:
    """What follows, in numbers of the tables."""
    tried, most = cases(models), GPUS[-1]

    def cheap(network: Network) -> int:
        works = ((m, g.seconds(m.flops, u)) for m, g, u in tried)
        return sum(step(work, m, most, "DDP", network) <= (1 + LOSS) * work for m, work in works)

    def hook(network: Network) -> str:
        saved, (m, g, u) = max(((saving(*case, network), case) for case in tried), key=lambda pair: pair[0])
        return f"{saved:.0%} of a step ({m.name}, utilization {g.utilization:.0%}, {u} utterances a GPU)"

    def longer(m: Model, engine: str) -> float:
        work = ASSUMED[m.name].seconds(m.flops, PER_GPU)
        return max(step(work, m, n, engine, RAILS) / step(work, m, n, "DDP", RAILS) - 1 for n in GPUS)

    least = [enough(ASSUMED[m.name].seconds(m.flops, PER_GPU), m, most, RAILS) / 1e9 for m in models]
    held = max(memory(m, n, e, 8.0) for m in models for n in GPUS for e in MEMORY) / 1e9
    extra = {e: max(longer(m, e) for m in models) for e in ("ZeRO-1", "FSDP2")}
    times = [[hours(m, n, b, s, ASSUMED[m.name]) for b in BATCHES] for m in models for n in GPUS for s in NOISES]
    best = sum(min(row) == row[BATCHES.index(LARGE)] for row in times)
    most_gpus = [[hours(m, most, b, s, ASSUMED[m.name]) for b in BATCHES] for m in models for s in NOISES]
    ratios = [row[BATCHES.index(LARGE)] / min(row) for row in most_gpus]
    assumed = [pays_from(m, most, LARGE, ASSUMED[m.name]) / 1000 for m in models]
    variants = [pays_from(m, most, LARGE, *c) / 1000 for m, g, u in tried for c in thresholds(g) if u == PER_GPU]
    fast = {s: [doubled(m, most, LARGE, s, ASSUMED[m.name]) for m in models] for s in NOISES}
    gains = ", ".join(f"{min(pair):.2f} (B_noise {s})" for s, pair in fast.items())
    lone = max(
        all_reduce(4.0 * m.parameters, most, ETHERNET, buckets(m)) / (MEASURED[m.name] * PER_RANK) for m in models
    )
    return [
        "What follows:",
        "",
        *bullet(
            f"With eight adapters a machine a step under DDP takes at most {LOSS:.0%} longer than its computing in "
            f"{cheap(RAILS)} of {len(tried)} cases, and `distributed.comm_hook=bf16` saves at most {hook(RAILS)}. With "
            f"one adapter it is {cheap(ONE)} of {len(tried)}, and the hook saves up to {hook(ONE)}: it pays where "
            "GPUs are fast, have few utterances each and share an adapter."
        ),
        *bullet(
            f"With {PER_GPU} utterances a GPU and the utilization assumed, {least[0]:.1f} (QuartzNet) or "
            f"{least[1]:.1f} GB/s (Jasper) between machines are enough; both grow about in proportion to utilization."
        ),
        *bullet(
            f"Weights, gradients, buckets and optimizer are at most {held:.1f} GB of a GPU's 80: neither model needs "
            f"ZeRO-1 or FSDP2. ZeRO-1 lengthens a step by up to {extra['ZeRO-1']:.0%} (a broadcast for each tensor), "
            f"FSDP2 by {extra['FSDP2']:.1%}."
        ),
        *bullet(
            f"On CPUs an all-reduce takes at most {lone:.0%} of the time of computing, of which backward is two thirds."
        ),
        *bullet(
            f"{LARGE} is the shortest in {best} of {len(times)} rows; on {most} GPUs it takes {min(ratios):.1f} to "
            f"{max(ratios):.1f} times as long as the best. There it is done sooner than {LARGE // 2} where B_noise is "
            f"above {assumed[0]:.0f} (QuartzNet) or {assumed[1]:.0f} thousand (Jasper), {min(variants):.0f} to "
            f"{max(variants):.0f} thousand in all variants: it depends most on what a GPU reaches with few "
            "utterances, which only a GPU can tell."
        ),
        *bullet(
            f"Where GPUs grow with the batch, {most} with {LARGE} are {gains} times as fast as {most // 2} with "
            f"{LARGE // 2}: the last doubling is worth its GPUs only where B_noise is of the order of the batch."
        ),
    ]


def page() -> str:
    """The page."""
    models = [count(name) for name in MODELS]
    rows = [
        (
            m.name,
            f"{m.parameters / 1e6:.1f} M",
            f"{m.flops / 1e9:.0f}",
            f"{4 * m.parameters / 1e6:.0f}",
            f"{MEASURED[m.name]:.2f} ({m.flops / MEASURED[m.name] / 1e9:.0f} GFLOP/s)",
        )
        for m in models
    ]
    header = ("model", "parameters", "GFLOP an utterance", "MB of gradients", "CPU s an utterance, measured")
    lines = ["# How far Jasper and QuartzNet scale, on paper", "", *assumptions()]
    lines += [f"## The models, with utterances of {FRAMES / 100:.1f} s", "", *table(header, rows)]
    for m in models:
        lines += of_model(m)
    lines += [*networks(models), *processors(models), *noise(models), *conclusions(models)]
    return "\n".join([*lines, ""])


def measure(name: str, batch: int = 4, frames: int = 800, repeats: int = 2) -> float:
    """CPU seconds of one utterance of FRAMES frames: forward, CTC and backward, one thread."""
    torch.set_num_threads(1)
    network = build(name)
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
