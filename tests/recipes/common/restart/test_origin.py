"""Ranks that would go on from different checkpoints do not train."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.common.restart.origin import SameOrigin

A, B = Path("run/checkpoints/step0000006.ckpt"), Path("run/checkpoints/step0000002.ckpt")
LAST = Path("last.ckpt")


def rank(number: int, broadcast) -> SimpleNamespace:
    """What of a Trainer matters here."""
    return SimpleNamespace(world_size=2, global_rank=number, strategy=SimpleNamespace(broadcast=broadcast))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((A, 6), (A, 6), None),
        ((None,), (None,), None),
        ((A, 6), (Path("elsewhere") / A.name, 6), None),
        ((A, 6), (B, 2), r"rank 0 goes on from step0000006.ckpt \(.* 6\), and rank 1 goes on from step0000002.ckpt"),
        (
            (A, 6),
            (None,),
            r"rank 0 goes on from step0000006.ckpt \(.* 6\), and rank 1 begins anew: it does",
        ),
        ((None,), (A, 6), r"rank 0 begins anew, and rank 1 goes on from"),
        ((LAST, 6), (LAST, 4), r"last.ckpt \(optimizer step 6\), .* last.ckpt \(optimizer step 4\)"),
    ],
)
def test_the_first_rank_says_where_all_go_on(first, second, said):
    told = []
    SameOrigin(*first).setup(rank(0, lambda value: told.append(value) or value), None, "fit")
    trainer, second = rank(1, lambda value: told[0]), SameOrigin(*second)
    second.setup(trainer, None, "validate")
    if said is None:
        second.setup(trainer, None, "fit")
        return
    with pytest.raises(DataError, match=said):
        second.setup(trainer, None, "fit")
