"""Loaders: the options of torch's, whose workers are let go of, and a position."""

import pytest

from lightning_novograd.recipes.common.data import loader as loader_file
from lightning_novograd.recipes.common.data.loader import BatchLoader, ResumableLoader
from lightning_novograd.recipes.common.data.sampler import EvalBatchSampler, GlobalBatchSampler

DURATIONS = [1.0, 3.0, 2.0, 5.0, 4.0]


class Keys:
    """Each item is what it was looked up by."""

    def __getitem__(self, key):
        return key


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0, False, False)),
        ({"num_workers": 1}, (1, False, True)),
        ({"num_workers": 2, "pin_memory": True}, (2, True, True)),
    ],
)
def test_options_are_torchs(options, expected):
    loader = BatchLoader(Keys(), EvalBatchSampler(DURATIONS, 2), list, **options)
    inner = loader._loader
    assert (inner.num_workers, inner.pin_memory, inner.persistent_workers) == expected
    loader.close()
    assert loader._loader is not inner
    assert (loader._loader.num_workers, loader._loader.pin_memory, loader._loader.persistent_workers) == expected


@pytest.mark.parametrize(("cores", "devices", "expected"), [(1, 1, 1), (2, 1, 2), (2, 4, 1), (64, 8, 8), (96, 1, 8)])
def test_as_many_workers_as_fit_the_machine(monkeypatch, cores, devices, expected):
    monkeypatch.setattr(loader_file, "workers", lambda: cores)
    assert loader_file.fitting_workers(devices) == expected


def test_torch_does_not_warn_of_what_fits(recwarn):
    loader = BatchLoader(Keys(), EvalBatchSampler(DURATIONS, 2), list, num_workers=None)
    assert loader._loader.num_workers == loader_file.fitting_workers()
    assert not [w for w in recwarn.list if "worker" in str(w.message)]


def test_items_are_looked_up_by_epoch_and_index():
    loader = BatchLoader(Keys(), EvalBatchSampler(DURATIONS, 2), tuple)
    assert list(loader) == [((0, 3), (0, 4)), ((0, 1), (0, 2)), ((0, 0),)]
    assert len(loader) == 3


def test_the_position_counts_what_was_delivered():
    def make():
        return ResumableLoader(Keys(), GlobalBatchSampler(DURATIONS, 2, seed=1), list, num_workers=0)

    loader = make()
    batches = iter(loader)
    first = next(batches)
    assert {epoch for epoch, _ in first} == {0}
    assert (loader.state_dict()["epoch"], loader.state_dict()["delivered"]) == (0, 1)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    rest = list(batches)
    assert len(rest) == 1
    assert (loader.sampler.epoch, loader.sampler.delivered) == (1, 0)
    assert list(resumed) == rest
    assert {epoch for batch in loader for epoch, _ in batch} == {1}


@pytest.mark.parametrize(
    ("threads", "sleeps"),
    [
        ({"1": "python) (x) R", "2": "pt_gloo_runloop) S"}, True),
        ({"1": "python) S", "2": "pt_gloo_runloop) S", "3": "pt_gloo_runloop) R"}, False),
        ({"1": "python) S", "2": "pt_gloo_runloop) D"}, False),
        ({"1": "python) R"}, True),
    ],
)
def test_which_of_gloos_threads_may_have_the_interpreters_registry(tmp_path, monkeypatch, threads, sleeps):
    for number, rest in threads.items():
        (tmp_path / number).mkdir()
        (tmp_path / number / "stat").write_text(f"{number} ({rest} 1 1 1\n")
    (tmp_path / "4").mkdir()  # has ended
    monkeypatch.setattr(loader_file, "TASKS", tmp_path)
    assert loader_file.gloo_sleeps() == sleeps


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("DataLoader worker (pid 26679) is killed by signal: Killed. "),
            "a worker of a data loader (process 26679) was ended by the signal Killed; by hand, or by the system",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7, 9) exited unexpectedly"),
            "a worker of a data loader (process 7, 9) has ended unexpectedly; by hand, or by the system",
        ),
        (RuntimeError("CUDA out of memory"), None),
        (OSError("DataLoader worker (pid 7) is killed by signal: Killed. "), None),
    ],
)
def test_what_torch_says_of_a_lost_worker(error, said):
    lost = loader_file.lost_worker(error)
    assert lost is None if said is None else str(lost).startswith(said)
