"""resume=auto: which checkpoint, and whether the config is that of the run."""

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.common.checkpoints.reading import UnreadableError
from lightning_novograd.recipes.common.data.sampler import GlobalBatchSampler
from lightning_novograd.recipes.common.data.steps import GlobalBatch
from lightning_novograd.recipes.common.folder import claimed_folder
from lightning_novograd.recipes.common.restart import newest as newest_file
from lightning_novograd.recipes.common.restart import resume as resume_file
from lightning_novograd.recipes.common.restart.newest import (
    check_same_batch,
    check_same_run,
    newest_checkpoint,
    set_torn_aside,
)

ELEMENTS = 10000


def save(path, step, epochs=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: {} for name in resume_file._NEEDED} | {
        "state_dict": {"weight": torch.full((ELEMENTS,), 1.0 * step)}
    }
    content |= {"global_step": step, "loops": {"fit_loop": {"epoch_progress": {"current": {"processed": epochs}}}}}
    torch.save(content, path)
    return path


@pytest.fixture
def run_dir(tmp_path):
    kept = tmp_path / "checkpoints"
    save(kept / "last.ckpt", 12, 2)
    save(kept / "epoch001-dev_wer0.5000.ckpt", 12, 2)
    save(kept / "step0000016.ckpt", 16, 2)
    save(kept / "epoch002-dev_wer0.4000.ckpt", 18, 3)  # of a process that was killed before it wrote last.ckpt
    torch.save({"averaged": [], "global_step": 99}, kept / "average.ckpt")
    return tmp_path


def test_the_furthest_is_taken_behind_which_nothing_of_its_moment_is_missing(run_dir):
    kept = run_dir / "checkpoints"
    found = newest_checkpoint(run_dir)
    assert (found.path.name, found.torn) == ("step0000016.ckpt", ())
    assert found.content["state_dict"]["weight"][0] == 16
    # the end of an epoch is behind a checkpoint of its last step
    save(kept / "last.ckpt", 16, 3)
    assert newest_checkpoint(run_dir).path.name == "last.ckpt"
    save(run_dir / "hpc_ckpt_1.ckpt", 17, 3)
    assert newest_checkpoint(run_dir).path.name == "hpc_ckpt_1.ckpt"


@pytest.mark.parametrize("reads", ["read_resumed", "read_checkpoint"])
def test_a_checkpoint_that_this_machine_cannot_read_is_not_passed_over(run_dir, monkeypatch, reads):
    """Other ranks may read it, and would go on from another one."""

    def refused(path, **_):
        raise UnreadableError(f"checkpoint {path} cannot be read: Stale file handle")

    monkeypatch.setattr(newest_file, reads, refused)
    with pytest.raises(UnreadableError, match="Stale file handle"):
        newest_checkpoint(run_dir)


def test_a_run_without_a_checkpoint_begins_anew(tmp_path):
    (tmp_path / "metrics.csv").touch()
    assert newest_checkpoint(tmp_path) is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """A bit of the weights, which torch.load does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("damage", [cut, empty, flip])
def test_damaged_ones_are_passed_over(run_dir, caplog, damage, monkeypatch):
    kept = run_dir / "checkpoints"
    for expected in ("last.ckpt", "epoch002-dev_wer0.4000.ckpt", "epoch001-dev_wer0.5000.ckpt"):
        newest = newest_checkpoint(run_dir).path
        damage(newest)
        caplog.clear()
        found = newest_checkpoint(run_dir)
        assert found.path.name == expected
        assert newest in found.torn
        assert any(
            str(newest) in line and line.endswith("the checkpoint before it is taken") for line in caplog.messages
        )
    with monkeypatch.context() as other_rank:
        other_rank.setenv("RANK", "1")
        set_torn_aside(found.torn)
        assert (kept / "last.ckpt").exists()
    set_torn_aside(found.torn)
    assert (kept / "last.ckpt.torn").exists()
    assert not (kept / "last.ckpt").exists()
    damage(found.path)
    with pytest.raises(DataError, match=r"no checkpoint in .* is whole \(epoch001-dev_wer0\.5000\.ckpt\); choose"):
        newest_checkpoint(run_dir)


def test_a_checkpoint_that_is_named_is_compared_with_its_checksums_too(run_dir):
    path = run_dir / "checkpoints" / "last.ckpt"
    resume_file.read_resumed(path)
    flip(path)
    with pytest.raises(DataError, match=r"last\.ckpt is damaged: the checksum of .* does not fit$"):
        resume_file.read_resumed(path)


def test_another_config_is_another_run(tmp_path, caplog, monkeypatch):
    path = tmp_path / "checkpoints" / "step0000007.ckpt"
    began = {"model": {"filters": 8}, "seed": 1, "data": {"batch_size": 4}, "trainer": {"devices": 1}, "num_samples": 3}
    check_same_run(tmp_path, {"seed": 2}, path, RunSettings.identity)  # nothing to compare with
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(began), tmp_path / ".hydra" / "config.yaml")
    check_same_run(
        tmp_path, OmegaConf.create({**began, "num_samples": 0, "resume": "auto"}), path, RunSettings.identity
    )
    assert not caplog.messages
    OmegaConf.save(OmegaConf.create({**began, "init_from": "${oc.env:HOME}"}), tmp_path / ".hydra" / "config.yaml")
    check_same_run(tmp_path, OmegaConf.create({**began, "init_from": "${oc.env:HOME}"}), path, RunSettings.identity)
    assert not caplog.messages, "what both refer to is the same"
    OmegaConf.save(OmegaConf.create(began), tmp_path / ".hydra" / "config.yaml")
    check_same_run(
        tmp_path, {**began, "data": {"batch_size": 2}, "trainer": {"devices": 2}}, path, RunSettings.identity
    )
    assert caplog.messages == [
        "the run goes on with another config than it began with: data.batch_size was 4 and is 2; "
        "trainer.devices was 1 and is 2"
    ]
    for changes, said in (
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"model": {"filters": 16}}, r"model\.filters was 8 and is 16"),
        ({"data": {"batch_size": 4, "train": "b"}}, r"data\.train was None and is 'b'"),
    ):
        with pytest.raises(
            ConfigError, match=rf"^resume: .* holds a run of another config: {said}; resume_from={path} "
        ):
            check_same_run(tmp_path, {**began, **changes}, path, RunSettings.identity)
    monkeypatch.setenv("RANK", "1")
    check_same_run(tmp_path, {**began, "seed": 2}, path, RunSettings.identity)
    assert not HydraConfig.initialized()


def kept(folder, config):
    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / ".hydra" / "config.yaml")


FROM = "/a/train.json"
WEIGHED = ["/a/b.json", {"manifest_filepath": FROM, "weight": 0.5}]


@pytest.mark.parametrize(
    ("before", "now", "is_refused"),
    [
        ({"name": "manifest", "train": FROM}, {"train": "/b/train.json"}, False),
        ({"name": "manifest", "test": FROM}, {"test": None}, True),
        ({"name": "manifest", "test": None}, {"test": FROM}, True),
        ({"name": "manifest", "train": WEIGHED}, {"train": ["c", {"manifest_filepath": "d", "weight": 0.5}]}, False),
        ({"name": "manifest", "train": WEIGHED}, {"train": ["c", {"manifest_filepath": "d", "weight": 0.6}]}, True),
        ({"name": "manifest", "train": WEIGHED}, {"train": ["c"]}, True),
        ({"name": "fsdd", "root": "/a"}, {"root": "/b"}, False),
        ({"name": "an4", "root": None}, {"root": "/b"}, False),
        ({"name": "librispeech", "train": ["train-clean-100"]}, {"train": ["train-clean-360"]}, True),
        ({"name": "librispeech", "dev": "dev-clean"}, {"dev": "dev-other"}, True),
        ({"augment": {"noise": {"manifest": FROM}}}, {"augment": {"noise": {"manifest": "b"}}}, False),
        ({"augment": {"noise": {"manifest": None}}}, {"augment": {"noise": {"manifest": "b"}}}, True),
        ({"batch_size": 32}, {"batch_size": 16}, False),  # its global batch is compared
        ({"batch_sizes": 32}, {"batch_sizes": 16}, True),
    ],
)
def test_a_corpus_that_has_moved_is_the_same(tmp_path, caplog, before, now, is_refused):
    kept(tmp_path, {"data": before})
    if is_refused:
        with pytest.raises(ConfigError, match="holds a run of another config"):
            check_same_run(tmp_path, {"data": {**before, **now}}, tmp_path, RunSettings.identity)
        return
    check_same_run(tmp_path, {"data": {**before, **now}}, tmp_path, RunSettings.identity)
    assert caplog.messages[0].startswith("the run goes on with another config than it began with: data.")


def position(delivered=3, **kwargs):
    sampler = GlobalBatchSampler([1.0] * 64, **{"batch_size": 4, "world_size": 2, **kwargs})
    sampler.delivered = delivered
    return {"loops": {"fit_loop": {"state_dict": {"combined_loader": [sampler.state_dict()]}}}}


def test_another_global_batch_is_another_run(tmp_path):
    """However it is said: the learning rate is for the one that the run began with."""
    path = tmp_path / "last.ckpt"
    for same in (GlobalBatch(4, 2), GlobalBatch(8), GlobalBatch(2, 1, 4)):
        check_same_batch(path, position(), same)
    check_same_batch(path, {"loops": {"fit_loop": {}}}, GlobalBatch(3))
    way = "large_batch.global_batch_size=8 keeps it"
    for delivered, all_the_same in ((3, ""), (8, f", resume_from={path} resume=null goes on all the same")):
        with pytest.raises(ConfigError) as error:
            check_same_batch(path, position(delivered), GlobalBatch(4))
        assert str(error.value) == (
            f"resume: {path} is of a global batch of 8 utterances (4 x 2 ranks x 1 accumulated), not of 4 utterances "
            f"(4 x 1 ranks x 1 accumulated); {way}{all_the_same}"
        )
    with pytest.raises(ConfigError, match=r"data\.batch_seconds=40 keeps it"):
        check_same_batch(path, position(batch_seconds=20.0), GlobalBatch(20.0, by_seconds=True))
    kept(tmp_path, {"data": {"batch_size": 4}, "large_batch": {"global_batch_size": None}})
    check_same_run(
        tmp_path, {"data": {"batch_size": 4}, "large_batch": {"global_batch_size": 8}}, path, RunSettings.identity
    )


def test_a_folder_with_a_run_is_claimed(run_dir):
    with pytest.raises(ConfigError, match="holds a run already"), claimed_folder(run_dir, None):
        pass
    with claimed_folder(run_dir, None, "auto"):
        pass
