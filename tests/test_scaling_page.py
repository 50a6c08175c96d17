"""docs/scaling.md is what benchmarks/scaling_model.py prints; its formulas against cases worked out by hand."""

import importlib
import math
import re
import sys
from dataclasses import replace

import pytest
from conftest import ROOT

MIB25 = 25 * 2**20


@pytest.fixture(scope="module")
def modules():
    """The script and what it imports from beside it; neither stays importable."""
    names = ("scaling_costs", "scaling_model")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield tuple(importlib.import_module(name) for name in names)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def costs(modules):
    return modules[0]


@pytest.fixture(scope="module")
def page(modules):
    return modules[1].page()


@pytest.fixture(scope="module")
def small(costs):
    return costs.Model("small", parameters=1_000_000, flops=1e9, tensors=10, tensor=300_000, units=5, unit=100_000)


@pytest.fixture(scope="module")
def two_buckets(costs):
    """52.4288 MB of gradients, two buckets of 25 MiB."""
    return costs.Model("two", MIB25 * 2 // 4, flops=1e9, tensors=10, tensor=4_000_000, units=5, unit=1_000_000)


@pytest.fixture(scope="module")
def machines(costs):
    """Machines of 8 ranks and 4 adapters, without latency."""
    return costs.Network(per_machine=8, inside=100e9, adapters=4, adapter=10e9, hop=0.0, tree=True)


@pytest.fixture(scope="module")
def cable(costs):
    """Machines of one rank, 1 GB/s between them, without latency."""
    return costs.Network(per_machine=1, inside=1e9, adapters=1, adapter=1e9, hop=0.0, tree=True)


def rows_of(page, heading):
    """Cells of the first table behind this heading or line."""
    lines = page[page.index(heading) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = lines[first + 2 : lines.index("", first)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


@pytest.mark.slow
def test_the_page_is_what_the_script_prints(page):
    written = (ROOT / "docs" / "scaling.md").read_text()
    assert written == page, "run: python benchmarks/scaling_model.py > docs/scaling.md"


@pytest.mark.slow
def test_conclusions_are_what_the_tables_say(page, modules):
    hours = [row for name in modules[1].MODELS for row in rows_of(page, f"| {name} | B_noise")]
    bold = sum(row[5].startswith("**") for row in hours)
    assert f"32768 is the shortest in {bold} of {len(hours)} rows" in page
    held = [float(mb) for pair in re.findall(r"(\d+) / (\d+) \|", page) for mb in pair]  # MB, NovoGrad / AdamW
    assert f"at most {max(held) / 1000:.1f} GB of a GPU's 80" in page
    # the words around the numbers: memory is no reason for ZeRO-1 and FSDP2, and the hook pays with one adapter alone
    assert max(held) < 8000
    eight, one = (float(share) for share in re.findall(r"saves (?:at most|up to) (\d+)%", re.sub(r"\s+", " ", page)))
    assert eight <= 5
    assert one >= 20


def test_an_all_reduce_takes_all_adapters_at_once(costs, machines):
    # 8 ranks in a machine: 2 * 7/8 * 8 GB = 14 GB at 100 GB/s
    assert costs.all_reduce(8e9, 8, machines) == pytest.approx(0.14)
    # 16 ranks in two machines: 2 * 15/16 * 8 GB = 15 GB at 4 * 10 GB/s
    assert costs.all_reduce(8e9, 16, machines) == pytest.approx(0.375)
    # one adapter: 15 GB at 10 GB/s; 20 adapters: 15 GB at the 100 GB/s of a GPU inside
    assert costs.all_reduce(8e9, 16, replace(machines, adapters=1)) == pytest.approx(1.5)
    assert costs.all_reduce(8e9, 16, replace(machines, adapters=20)) == pytest.approx(0.15)


def test_a_ring_through_each_adapter_sends_what_the_formulas_say(costs, small, machines):
    """Count the bytes of 4 rings over 2 machines of 8 ranks: of a rank, and through an adapter."""
    ranks, rings, size = 16, 4, 4e6
    sent, through = [0.0] * ranks, {}
    for ring in range(rings):  # enters and leaves a machine at its rank 2 * ring, where its adapter is
        order = [8 * machine + (2 * ring + i) % 8 for machine in (0, 1) for i in range(8)]
        for source, target in zip(order, order[1:] + order[:1], strict=True):
            for _ in range(2 * (ranks - 1)):  # steps of reduce-scatter and all-gather, a chunk each
                chunk = size / rings / ranks
                sent[source] += chunk
                if source // 8 != target // 8:
                    through[source // 8, ring] = through.get((source // 8, ring), 0.0) + chunk
    assert sent == [pytest.approx(costs.wire(small, ranks, "DDP"))] * ranks
    assert list(through.values()) == [pytest.approx(costs.wire(small, ranks, "DDP") / rings)] * 8
    assert max(through.values()) / machines.adapter == pytest.approx(costs.all_reduce(size, ranks, machines))


def test_latency_along_trees_and_around_rings(costs, cable):
    # 2 log2(4) = 4 messages along a tree, 2 * (4 - 1) = 6 around a ring, of 1 ms; of three all-reduces thrice
    assert costs.all_reduce(0.0, 4, replace(cable, hop=1e-3)) == pytest.approx(0.004)
    assert costs.all_reduce(0.0, 4, replace(cable, hop=1e-3, tree=False)) == pytest.approx(0.006)
    assert costs.all_reduce(0.0, 4, replace(cable, hop=1e-3, tree=False), messages=3) == pytest.approx(0.018)


def test_bytes_that_a_rank_sends(costs, small):
    # S = 4 MB; n = 2: DDP sends 2 * 1/2 S, bf16 half of that; ZeRO-1 1/2 S more, in broadcasts; FSDP2 3 * 1/2 S
    sent = [costs.wire(small, 2, engine) for engine in costs.ENGINES]
    assert sent == [4e6, 2e6, 6e6, 6e6]


def test_memory(costs, small):
    # 4 MB each of weights, gradients, buckets and NovoGrad's state
    assert costs.memory(small, 8, "DDP", 4.0) == 16e6
    assert costs.memory(small, 8, "DDP, bucket view", 4.0) == 12e6
    # 12 MB, and of AdamW's 8 MB half; with 8 ranks the largest tensor's 300,000 * 8 bytes, more than an eighth
    assert costs.memory(small, 2, "ZeRO-1", 8.0) == 16e6
    assert costs.memory(small, 8, "ZeRO-1", 8.0) == 14.4e6
    # an eighth of 12 MB, and two gathered blocks of 0.4 MB
    assert costs.memory(small, 8, "FSDP2", 4.0) == 1.5e6 + 0.8e6


def test_steps_worked_out_by_hand(costs, two_buckets, cable):
    """30 ms of computing, 20 of them backward; with 2 ranks and 1 GB/s an all-reduce of a bucket takes 26.2144 ms."""
    taken = [costs.step(0.030, two_buckets, 2, engine, cable) for engine in costs.ENGINES]
    assert taken == [
        pytest.approx(0.0624288),  # 30 + (26.2144 - 20) + 26.2144
        pytest.approx(0.0431072),  # 30 + 13.1072: the first bucket is hidden, the last one is halved too
        pytest.approx(0.1148576),  # DDP's 62.4288, and 52.4288 of broadcasts
        pytest.approx(0.0786432),  # 3 * 26.2144: sending is all that counts, the first block's 2 * 2 ms included
    ]
    # 1 ms a message: 2 more in each of DDP's two all-reduces, 10 in the broadcasts of ten tensors
    late = replace(cable, hop=1e-3)
    assert costs.step(0.030, two_buckets, 2, "DDP", late) == pytest.approx(0.0664288)
    assert costs.step(0.030, two_buckets, 2, "ZeRO-1", late) == pytest.approx(0.0664288 + 0.0524288 + 0.010)
    # three buckets, 10 ms: 6.6667 of the first two's 2 * 28.2144 are hidden
    three = replace(two_buckets, parameters=MIB25 * 3 // 4)
    assert costs.step(0.010, three, 2, "DDP", late) == pytest.approx(0.0879765, abs=1e-7)
    # where computing is long: the last bucket of DDP, and FSDP2's first block (a gather and a scatter of 2 ms)
    assert costs.step(1.0, two_buckets, 2, "DDP", cable) == pytest.approx(1.0262144)
    assert costs.step(1.0, two_buckets, 2, "FSDP2", cable) == pytest.approx(1.004)


def test_limits(costs, small, two_buckets):
    infinite = costs.Network(per_machine=8, inside=math.inf, adapters=1, adapter=math.inf, hop=0.0, tree=True)
    for engine in costs.ENGINES:
        for model in (small, two_buckets):
            assert costs.wire(model, 1, engine) == 0
            assert costs.step(0.1, model, 1, engine, costs.RAILS) == 0.1
            assert costs.step(0.1, model, 512, engine, infinite) == 0.1
            for network in (costs.RAILS, costs.ONE, costs.ETHERNET):
                taken = [costs.step(0.001, model, ranks, engine, network) for ranks in (1, 2, 8, 16, 64, 512)]
                assert taken == sorted(taken)
                assert taken[0] < taken[1]
            assert costs.step(0.001, model, 64, engine, costs.RAILS) < costs.step(0.001, model, 64, engine, costs.ONE)


@pytest.mark.parametrize("work", [0.030, 3.0], ids=["all buckets", "the last bucket"])
def test_the_bandwidth_that_is_enough(costs, two_buckets, cable, work):
    late = replace(cable, hop=1e-4)
    least = costs.enough(work, two_buckets, 8, late)
    taken = costs.step(work, two_buckets, 8, "DDP", replace(late, inside=least, adapter=least))
    assert taken == pytest.approx(1.1 * work)


def test_no_bandwidth_makes_up_for_latency(costs, two_buckets, cable):
    assert costs.enough(0.010, two_buckets, 8, replace(cable, hop=1.0)) == math.inf
    assert costs.enough(0.010, two_buckets, 1, cable) == 0


def test_a_gpu_with_few_utterances_is_used_less_well(costs):
    gpu = costs.GPU(utilization=0.5, half=2.0, peak=1e12)
    # 1 GFLOP each, 0.5 TFLOP/s: 6 utterances take 12 ms, and 4 ms are lost; with 2 half of the speed is
    assert gpu.seconds(1e9, 6) == pytest.approx(0.016)
    assert gpu.seconds(1e9, 2) == pytest.approx(0.008)


def test_hours_follow_the_noise_scale(costs, small):
    """On one GPU that is always used alike: 1 GFLOP an utterance at 1 TFLOP/s is 1 ms."""
    gpu = costs.GPU(utilization=1.0, half=0.0, peak=1e12)
    # a batch of 256: 400 epochs of 281,241 utterances are 112,496.4 s
    for noise in (1.0, 256.0, 1e6):
        assert costs.hours(small, 1, 256, noise, gpu) == pytest.approx(112_496.4 / 3600)
    # a batch of 512 at B_noise 256: (1 + 256/512) / (1 + 256/256) = 0.75 of the steps, each twice as long
    assert costs.hours(small, 1, 512, 256.0, gpu) == pytest.approx(1.5 * 112_496.4 / 3600)
    # two GPUs for it, with a network that costs nothing
    free = replace(costs.RAILS, inside=math.inf, hop=0.0)
    assert costs.doubled(small, 2, 512, 256.0, gpu, free) == pytest.approx(1 / 0.75)


def test_where_a_large_batch_begins_to_pay(costs, small):
    # a GPU with half = 8: 32 utterances take 40 units, 16 take 24; 40 (1 + N/32) = 24 (1 + N/16) at N = 64
    gpu = costs.GPU(utilization=0.5, half=8.0)
    assert costs.pays_from(small, 1, 32, gpu) == pytest.approx(64)
    for noise, sooner in ((63, False), (65, True)):
        assert (costs.hours(small, 1, 32, noise, gpu) < costs.hours(small, 1, 16, noise, gpu)) is sooner
    # one that is always used alike gains nothing from a batch
    assert costs.pays_from(small, 1, 32, replace(gpu, half=0.0)) == math.inf
