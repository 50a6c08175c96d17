"""From a CTC model's output to text."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from lightning_novograd.recipes.asr.text.alphabet import Alphabet


def greedy(log_probs_BTV: Tensor, lens_B: Tensor, alphabet: Alphabet) -> list[str]:
    """The most likely class of every frame, runs merged, blanks removed.

    Args:
        log_probs_BTV: scores over the alphabet and the blank (last), any monotonic scale.
        lens_B: frames that count in each row; what lies behind them is padding.
        alphabet: the characters of the classes.

    Returns:
        One text per row. There is one transfer from the device for the whole batch.

    Raises:
        ValueError: the number of classes is not that of the alphabet plus the blank.

    Example:
        >>> import torch
        >>> frames = torch.tensor([[0, 0, 2, 0, 1]])
        >>> greedy(torch.nn.functional.one_hot(frames, 3).float(), torch.tensor([5]), Alphabet("ab"))
        ['aab']
    """
    check_classes(log_probs_BTV, alphabet)
    best_BT = log_probs_BTV.argmax(dim=-1).cpu().numpy()
    lens = lens_B.cpu().numpy()
    keep_BT = (best_BT != alphabet.blank) & (np.arange(best_BT.shape[1]) < lens[:, None])
    keep_BT[:, 1:] &= best_BT[:, 1:] != best_BT[:, :-1]
    characters = "".join(np.array(alphabet.labels)[best_BT[keep_BT]].tolist())
    ends = keep_BT.sum(axis=1).cumsum().tolist()
    return [characters[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def check_classes(log_probs_BTV: Tensor, alphabet: Alphabet) -> None:
    """Whether a model's output fits the alphabet.

    Raises:
        ValueError: the number of classes is not that of the alphabet plus the blank.
    """
    if log_probs_BTV.shape[-1] != alphabet.blank + 1:
        raise ValueError(
            f"the model has {log_probs_BTV.shape[-1]} classes, the alphabet {len(alphabet)} characters and a blank"
        )


class CTCPath(NamedTuple):
    """One class for each frame of an utterance: what CTC collapses to a text, and when it is said.

    `ids_T` holds class ids, the blank among them, `log_probs_T` the natural logarithms of their probabilities.
    """

    ids_T: np.ndarray
    log_probs_T: np.ndarray


def best_paths(log_probs_BTV: Tensor, lens_B: Tensor, alphabet: Alphabet) -> list[CTCPath]:
    """The most likely class of every frame: what `greedy` collapses.

    Args:
        log_probs_BTV: log-probabilities over the alphabet and the blank (last).
        lens_B: frames that count in each row.
        alphabet: the characters of the classes.

    Raises:
        ValueError: the number of classes is not that of the alphabet plus the blank.
    """
    check_classes(log_probs_BTV, alphabet)
    best = log_probs_BTV.float().max(dim=-1)
    ids_BT, log_probs_BT = best.indices.cpu().numpy(), best.values.cpu().numpy()
    return [
        CTCPath(ids[:length], log_probs[:length])
        for ids, log_probs, length in zip(ids_BT, log_probs_BT, lens_B.tolist(), strict=True)
    ]


def runs(ids_T: np.ndarray, blank: int) -> np.ndarray:
    """The characters of a path: rows of class id, first frame, and the frame behind the last one.

    Example:
        >>> runs(np.array([0, 0, 2, 0, 1, 2]), blank=2).tolist()
        [[0, 0, 2], [0, 3, 4], [1, 4, 5]]
    """
    starts = np.flatnonzero(np.diff(ids_T, prepend=-1))
    ends = np.append(starts, len(ids_T))[1:]
    spelt = ids_T[starts] != blank
    return np.stack([ids_T[starts], starts, ends], axis=1)[spelt]
