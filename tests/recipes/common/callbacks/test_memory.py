"""How much memory a run takes, stage by stage."""

import sys
from types import SimpleNamespace

import pytest
import torch

from lightning_novograd.recipes.common.callbacks import memory
from lightning_novograd.recipes.common.callbacks.memory import PeakMemory, describe_peaks, peak_memory_mb

CPU = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))


def test_a_peak_stays_when_the_memory_is_free_again():
    before = peak_memory_mb()
    torch.ones((before + 100) << 18)  # MB of float32, more than there ever was
    assert peak_memory_mb() >= before + 100


def test_stages_in_the_order_of_a_run(monkeypatch):
    peaks = iter([300, 500, 900])
    monkeypatch.setattr(memory, "peak_memory_mb", lambda: next(peaks))
    noted = PeakMemory()
    noted.on_fit_start(CPU, None)
    noted.on_fit_end(CPU, None)
    assert noted.stages == {"program": 300, "data": 500, "training": 900}
    assert describe_peaks(noted.stages) == "300 MB the program, 500 MB with its data, 900 MB in training"


def test_tensors_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 20)
    noted = PeakMemory()
    noted.on_fit_end(SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0))), None)
    assert noted.stages["gpu"] == 3
    assert describe_peaks({"gpu": 3}) == "3 MB on the GPU"


@pytest.mark.parametrize(("platform", "expected"), [("linux", 2048), ("darwin", 2)])
def test_the_unit_is_the_systems(monkeypatch, platform, expected):
    import resource

    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2 << 20))
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory_mb() == expected


def test_a_system_that_does_not_say(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mb() is None
    assert PeakMemory().stages == {}
    assert describe_peaks({}) == ""
