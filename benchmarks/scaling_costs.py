"""What a step costs: computing, what ranks send each other, and memory. benchmarks/scaling_model.py prints it."""

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from lightning_novograd.recipes.asr.model.jasper import JasperCTC

MODELS = ("quartznet_15x5", "jasper_10x5dr")
FRAMES = 1230  # of a mean utterance of LibriSpeech, 12.3 s
UTTERANCES = 281_241  # of its 960 hours
EPOCHS = 400  # that a batch of 256 takes
BUCKET = 25 * 2**20  # bytes of float32 gradients, torch's default; the last one is sent when the backward pass is over
LOSS = 0.1  # of its computing, that a step may take longer
ENGINES = ("DDP", "DDP, bf16", "ZeRO-1", "FSDP2")


@dataclass(frozen=True)
class Model:
    """What is counted."""

    name: str
    parameters: int
    flops: float  # of an utterance, forward and backward
    tensors: int
    tensor: int  # parameters of the largest tensor
    units: int  # that FSDP2 gathers one by one: blocks and decoder
    unit: int  # parameters of the largest block


@dataclass(frozen=True)
class GPU:
    """What a GPU computes. Assumed: an H100 with torch's kernels."""

    utilization: float  # share of the peak with a lot to do
    half: float = 8.0  # utterances with which it reaches half of that
    peak: float = 989e12  # FLOP/s, bf16, dense

    def seconds(self, flops: float, utterances: float) -> float:
        """Of so many utterances."""
        return flops * (utterances + self.half) / (self.peak * self.utilization)


@dataclass(frozen=True)
class Network:
    """What ranks are linked by; bytes/s are those that collectives reach."""

    per_machine: int  # ranks
    inside: float  # bytes/s of a rank to the others of its machine
    adapters: int  # of a machine
    adapter: float  # bytes/s of each
    hop: float  # s of one message
    tree: bool  # whether short messages go along a tree (NCCL) or around a ring (gloo)

    def bandwidth(self, ranks: int) -> float:
        """Bus bandwidth: each adapter carries a ring of its own with its share of the bytes, all at once."""
        return self.inside if ranks <= self.per_machine else min(self.inside, self.adapters * self.adapter)

    def latency(self, ranks: int) -> float:
        """Seconds of an empty reduce-scatter, all-gather or broadcast."""
        return self.hop * (math.log2(ranks) if self.tree else ranks - 1)


RAILS = Network(per_machine=8, inside=370e9, adapters=8, adapter=46e9, hop=10e-6, tree=True)
ONE = replace(RAILS, adapters=1)
ETHERNET = Network(per_machine=64, inside=1e9, adapters=1, adapter=1e9, hop=50e-6, tree=False)
ASSUMED = {"quartznet_15x5": GPU(0.03), "jasper_10x5dr": GPU(0.35)}  # depthwise convolutions wait for memory


def build(name: str) -> JasperCTC:
    """The model of this name in conf/."""
    path = Path(__file__).resolve().parent.parent / "conf" / "model" / f"{name}.yaml"
    return JasperCTC.from_config(yaml.safe_load(path.read_text()))


@cache
def count(name: str) -> Model:
    """Count on a model without memory."""
    with torch.device("meta"):
        network = build(name)
        with FlopCounterMode(display=False) as counter:
            network.encode_features(torch.randn(1, 64, FRAMES), torch.full((1,), FRAMES))
    tensors = [p.numel() for p in network.parameters()]
    units = [sum(p.numel() for p in block.parameters()) for block in network.encoder.encoder]
    # twice as many in the backward pass; torch 2.13 counts those of grouped convolutions without their groups
    flops = 3.0 * counter.get_total_flops()
    return Model(name, sum(tensors), flops, len(tensors), max(tensors), len(units) + 1, max(units))


def half(size: float, ranks: int, network: Network, messages: int = 1) -> float:
    """Seconds of a reduce-scatter or an all-gather of `size` bytes: each rank sends (n - 1) / n of them."""
    return (ranks - 1) / ranks * size / network.bandwidth(ranks) + messages * network.latency(ranks)


def all_reduce(size: float, ranks: int, network: Network, messages: int = 1) -> float:
    """Seconds of an all-reduce: a reduce-scatter and an all-gather."""
    return 2 * half(size, ranks, network, messages)


def broadcasts(size: float, ranks: int, network: Network, messages: int) -> float:
    """Seconds in which each rank in turn sends its part of `size` bytes to all others."""
    return 0.0 if ranks == 1 else size / network.bandwidth(ranks) + messages * network.latency(ranks)


def buckets(model: Model) -> int:
    """All-reduces of a step under DDP."""
    return math.ceil(4 * model.parameters / BUCKET)


def step(work: float, model: Model, ranks: int, engine: str, network: Network) -> float:
    """Seconds of a step: what of the communication does not hide behind the `work` seconds of computing is added."""
    size, backward = 4.0 * model.parameters, work * 2 / 3
    if engine == "FSDP2":  # gathered twice, scattered once, block by block; the first block has nothing to hide behind
        first = 2 * half(4.0 * model.unit, ranks, network)
        return work + max(0.0, 3 * half(size, ranks, network, model.units) - first - work) + first
    last = min(size, BUCKET)
    if engine == "DDP, bf16":  # as many buckets, of half the bytes
        size, last = size / 2, last / 2
    hidden = all_reduce(size - last, ranks, network, buckets(model) - 1)
    ddp = work + max(0.0, hidden - backward) + all_reduce(last, ranks, network)
    # torch's ZeroRedundancyOptimizer sends each tensor once the optimizer has stepped
    return ddp + broadcasts(size, ranks, network, model.tensors) if engine == "ZeRO-1" else ddp


def enough(work: float, model: Model, ranks: int, network: Network, loss: float = LOSS) -> float:
    """Bus bandwidth, bytes/s, with which a step under DDP takes this share longer than its computing."""
    if ranks == 1:
        return 0.0
    sent, latency = 2 * (ranks - 1) / ranks, 2 * network.latency(ranks)
    size, late = 4.0 * model.parameters, loss * work
    of_all = (late + work * 2 / 3 - buckets(model) * latency) / (sent * size)
    of_last = (late - latency) / (sent * min(size, BUCKET))
    return 1 / min(of_all, of_last) if min(of_all, of_last) > 0 else math.inf


def wire(model: Model, ranks: int, engine: str) -> float:
    """Bytes that a rank sends in a step, on average."""
    share = (ranks - 1) / ranks * 4.0 * model.parameters
    return {"DDP": 2.0, "DDP, bf16": 1.0, "ZeRO-1": 3.0, "FSDP2": 3.0}[engine] * share


def memory(model: Model, ranks: int, engine: str, state: float) -> float:
    """Bytes of weights, gradients, buckets and `state` bytes a parameter of optimizer; activations come on top."""
    size = 4.0 * model.parameters
    if engine == "FSDP2":
        return (2 * size + state * model.parameters) / ranks + 2 * 4.0 * model.unit
    if engine == "ZeRO-1":  # it deals out whole tensors
        return 3 * size + state * max(model.parameters / ranks, model.tensor)
    return (2 if engine == "DDP, bucket view" else 3) * size + state * model.parameters


def hours(model: Model, gpus: int, batch: int, noise: float, gpu: GPU, network: Network = RAILS) -> float:
    """Of a training under DDP whose steps are S_min (1 + noise / batch), where a batch of 256 takes EPOCHS."""
    least = EPOCHS * UTTERANCES / 256 / (1 + noise / 256)
    work = gpu.seconds(model.flops, batch / gpus)
    return least * (1 + noise / batch) * step(work, model, gpus, "DDP", network) / 3600


def pays_from(model: Model, gpus: int, batch: int, gpu: GPU, network: Network = RAILS) -> float:
    """Noise scale above which a training with `batch` is over sooner than with half of it, on the same GPUs."""
    whole, less = (step(gpu.seconds(model.flops, b / gpus), model, gpus, "DDP", network) for b in (batch, batch / 2))
    return (whole - less) * batch / (2 * less - whole) if whole < 2 * less else math.inf


def doubled(model: Model, gpus: int, batch: int, noise: float, gpu: GPU, network: Network = RAILS) -> float:
    """How many times as fast a training is with `gpus` and `batch` as with half of both."""
    return hours(model, gpus // 2, batch // 2, noise, gpu, network) / hours(model, gpus, batch, noise, gpu, network)
