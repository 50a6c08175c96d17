"""What the data module makes of a global batch: the weights of its micro-batches, and limits that would cut one."""

from types import SimpleNamespace

import pytest
import speech_files
import torch

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.text.alphabet import Alphabet


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """14 utterances with texts of unequal lengths."""
    return str(speech_files.write_corpus(tmp_path_factory.mktemp("corpus"), "train", 14))


@pytest.fixture
def batches(manifest):
    """The micro-batches of 2 utterances that a rank is given in an epoch."""

    def deal(accumulate: int, *, limit=None, fast_dev_run=False, world_size=1, rank=0, **options):
        config = DataConfig.from_mapping({"name": "manifest", "train": manifest, "dev": manifest})
        data = SpeechDataModule(config, Alphabet(speech_files.LABELS), batch_size=2, **options)
        data.setup("fit")
        data.trainer = SimpleNamespace(
            callbacks=[],
            accumulate_grad_batches=accumulate,
            overfit_batches=0.0,
            limit_train_batches=limit,
            fast_dev_run=fast_dev_run,
            world_size=world_size,
            global_rank=rank,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        return list(data.train_dataloader())

    return deal


def test_a_shorter_last_step_is_kept_where_it_is_wanted(batches):
    assert [batch.weight for batch in batches(3)] == [1.0] * 6
    # and 2 utterances: Lightning divides their loss by 3
    assert [batch.weight for batch in batches(3, last="keep")] == [1.0] * 6 + [3.0]
    # 6 of 8 utterances on two ranks: 2 micro-batches each, of 1 and 2
    last = [batch for rank in (0, 1) for batch in batches(2, last="keep", world_size=2, rank=rank)[2:]]
    assert sorted(batch.weight for batch in last) == pytest.approx([2 / 3] * 2 + [4 / 3] * 2)


@pytest.mark.parametrize(("reduction", "total"), [("mean_batch", 1.0), ("mean_volume", 1.0), ("sum", 4.0)])
def test_micro_batches_count_as_the_reduction_says(batches, reduction, total):
    dealt = batches(2, reduction=reduction)
    assert len(dealt) == 6
    for step in (dealt[:2], dealt[2:4], dealt[4:]):
        assert sum(batch.weight for batch in step) / 2 == pytest.approx(total)
        counts = [2.0, 2.0] if reduction != "mean_volume" else [float(batch.target_lens_B.sum()) for batch in step]
        assert [batch.weight for batch in step] == pytest.approx([2 * total * n / sum(counts) for n in counts])


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (3, "3 takes 3 of 6 batches, and a global batch has 2; nearest that work: 2 and 4"),
        (0.2, "0.2 takes 1 of 6 batches, and a global batch has 2; nearest that work: 2"),
        (2, None),
        (0.4, None),
        (99, None),
        (1.0, None),
        (None, None),
    ],
)
def test_a_limit_cuts_no_global_batch(batches, limit, message):
    """Lightning would make a step of the rest, of a loss that is too small."""
    if message is None:
        assert len(batches(2, limit=limit)) == 6
        return
    with pytest.raises(ConfigError) as error:
        batches(2, limit=limit)
    assert (error.value.path, error.value.problem) == ("trainer.limit_train_batches", message)
    assert len(batches(2, limit=limit, fast_dev_run=True)) == 6, "a trial is no step"
