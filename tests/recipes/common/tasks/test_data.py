"""Batches of examples."""

import torch
from tiny_task import PointData, Points

from lightning_novograd.recipes.common.tasks.data import TaskData


def data(**changes) -> TaskData:
    settings = PointData(batch_size=8, eval_batch_size=4)
    return TaskData(settings.sets(0), settings, **changes)


def test_an_epoch_has_every_example_once():
    batches = list(data().train_dataloader())
    assert [batch.size for batch in batches] == [8] * 5
    assert sorted(place for batch in batches for place in batch.places) == sorted(f"train:{i}" for i in range(40))
    points = Points(40, 1)
    for batch in batches:
        chosen = [int(place.removeprefix("train:")) for place in batch.places]
        assert torch.equal(batch.inputs, points.points[chosen])
        assert torch.equal(batch.targets, points.signs[chosen])
        assert batch.weight == 1.0


def test_the_order_is_the_seeds():
    def places(seed):
        return [batch.places for batch in data(seed=seed).train_dataloader()]

    assert places(1) == places(1) != places(2)


def test_evaluations_are_whole_and_in_order():
    for loader, split, size in ((data().val_dataloader(), "dev", 10), (data().test_dataloader(), "test", 9)):
        batches = list(loader)
        assert [place for batch in batches for place in batch.places] == [f"{split}:{i}" for i in range(size)]
        assert max(batch.size for batch in batches) <= 4


def test_examples_that_do_not_fill_a_step_are_a_shorter_one():
    batches = list(data(batch_size=16, last="keep").train_dataloader())
    assert [batch.size for batch in batches] == [16, 16, 8]
