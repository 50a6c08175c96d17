"""From a CTC model's output to text."""

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
    if log_probs_BTV.shape[-1] != alphabet.blank + 1:
        raise ValueError(
            f"the model has {log_probs_BTV.shape[-1]} classes, the alphabet {len(alphabet)} characters and a blank"
        )
    best_BT = log_probs_BTV.argmax(dim=-1).cpu().numpy()
    lens = lens_B.cpu().numpy()
    keep_BT = (best_BT != alphabet.blank) & (np.arange(best_BT.shape[1]) < lens[:, None])
    keep_BT[:, 1:] &= best_BT[:, 1:] != best_BT[:, :-1]
    characters = "".join(np.array(alphabet.labels)[best_BT[keep_BT]].tolist())
    ends = keep_BT.sum(axis=1).cumsum().tolist()
    return [characters[start:end] for start, end in zip([0, *ends], ends, strict=False)]
