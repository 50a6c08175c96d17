"""The mean of checkpoints: of what, which ones, and when there is none."""

import shutil
from pathlib import Path

import pytest
import torch

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.weights import source
from lightning_novograd.recipes.asr.weights.average import average, write_average
from lightning_novograd.recipes.asr.weights.run_folder import best_checkpoints, last_checkpoints

BLOCK = {"filters": 8, "kernel": 11, "stride": 2, "residual": False}
MODEL = {"labels": ["a", "b"], "encoder": {"jasper": [BLOCK]}}


def save(folder: Path, name: str, epoch: int, weight: torch.Tensor, step: int | None = None, **content) -> Path:
    path = folder / "checkpoints" / name
    path.parent.mkdir(exist_ok=True)
    step = 10 * (epoch + 1) if step is None else step
    weights = {"model.w": weight, "model.count": torch.tensor(step)}
    plain = {"hyper_parameters": {"model": MODEL}, "state_dict": weights, "epoch": epoch, "global_step": step}
    torch.save({**plain, "optimizer_states": [1], **content}, path)
    return path


def test_floats_are_averaged_and_integers_are_those_of_the_newest(tmp_path):
    paths = [save(tmp_path, f"{i}.ckpt", i, torch.tensor([float(i), 1.0])) for i in (1, 5, 0)]
    found = average(paths)
    assert found["state_dict"]["model.w"].tolist() == [2.0, 1.0]
    assert found["state_dict"]["model.count"].item() == 60
    assert found["averaged"] == ["1.ckpt", "5.ckpt", "0.ckpt"]
    assert (found["epoch"], found["hyper_parameters"]) == (5, {"model": MODEL})
    assert "optimizer_states" not in found


def test_the_mean_is_computed_in_float64_and_keeps_its_type(tmp_path):
    """A sum in float16 would overflow, one in float32 would lose the ones."""
    values = {torch.float16: [60000.0] * 3, torch.float32: [2.0**24, 1.0, 1.0]}
    for dtype, numbers in values.items():
        paths = [save(tmp_path, f"{i}.ckpt", i, torch.tensor(v, dtype=dtype)) for i, v in enumerate(numbers)]
        mean = average(paths)["state_dict"]["model.w"]
        assert mean.dtype == dtype
        assert mean == torch.tensor(sum(numbers) / 3, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"hyper_parameters": {"model": {**MODEL, "labels": ["b", "a"]}}}, "are of different models: there is no"),
        ({"state_dict": {"model.w": torch.ones(3)}}, "are of different models (model.w): there is no average of them"),
        ({"state_dict": {}}, "are of different models (model.w): there is no average of them"),
        ({"state_dict": None}, "is no checkpoint of train.py: it lacks state_dict"),
        ({"global_step": None}, "is no checkpoint of train.py: it lacks global_step"),
    ],
)
def test_different_models_have_no_mean(tmp_path, content, problem):
    one = save(tmp_path, "1.ckpt", 1, torch.ones(2))
    other = save(tmp_path, "0.ckpt", 0, torch.ones(2), **content)
    with pytest.raises(DataError) as error:
        average([other, one])
    assert str(other) in str(error.value)
    assert problem in str(error.value)


def run_in(folder: Path) -> Path:
    """Epochs 0 to 4, of which some are kept twice or inside an epoch."""
    for epoch in range(5):
        save(folder, f"epoch={epoch:03d}.ckpt", epoch, torch.tensor(float(epoch)))
    save(folder, "step=0000045.ckpt", 4, torch.tensor(-1.0), step=45)
    names = {f"/was/there/epoch={epoch:03d}.ckpt": torch.tensor(wer) for epoch, wer in ((1, 0.3), (4, 0.2), (0, 0.9))}
    state = {"monitor": "dev_wer", "best_model_path": "/was/there/epoch=004.ckpt", "best_k_models": names}
    save(folder, "last.ckpt", 4, torch.tensor(4.0), callbacks={"a": state})
    return folder


def test_the_best_are_those_by_dev_wer(tmp_path):
    run = run_in(tmp_path)
    assert [path.name for path in best_checkpoints(run)] == ["epoch=004.ckpt", "epoch=001.ckpt", "epoch=000.ckpt"]
    (run / "checkpoints" / "epoch=001.ckpt").unlink()
    assert [path.name for path in best_checkpoints(run)] == ["epoch=004.ckpt", "epoch=000.ckpt"]


def test_the_last_are_epochs_in_a_row_with_the_newest_weights_of_each(tmp_path):
    run = run_in(tmp_path)
    save(run, "average.ckpt", 9, torch.tensor(0.0))
    names = ["last.ckpt", *(f"epoch=00{epoch}.ckpt" for epoch in (3, 2, 1, 0))]
    assert [path.name for path in last_checkpoints(run)] == names
    (run / "checkpoints" / "epoch=002.ckpt").unlink()
    assert [path.name for path in last_checkpoints(run)] == names[:2]
    save(run, "other.ckpt", "five", torch.tensor(0.0), step=60)
    with pytest.raises(DataError, match=r"other\.ckpt is no checkpoint of train\.py: it lacks epoch or global_step"):
        last_checkpoints(run)


def test_what_went_another_way_or_ended_inside_an_epoch_is_none_of_the_last_epochs(tmp_path):
    run = run_in(tmp_path)
    save(run, "epoch=007.ckpt", 7, torch.tensor(7.0))
    save(run, "average_step0000080.ckpt", 3, torch.tensor(7.0), step=49, averaged=["a.ckpt"])
    names = ["last.ckpt", *(f"epoch=00{epoch}.ckpt" for epoch in (3, 2, 1, 0))]
    assert [path.name for path in last_checkpoints(run)] == names
    for is_last, processed, counts in ((False, 3, False), (True, 3, True), (False, 4, True)):
        epoch = {"epoch_progress": {"current": {"ready": 4, "processed": processed}}}
        loops = {"fit_loop": {**epoch, "epoch_loop.batch_progress": {"is_last_batch": is_last}}}
        save(run, "step0000045.ckpt", 3, torch.tensor(-1.0), step=45, loops=loops)
        assert (last_checkpoints(run)[1].name == "step0000045.ckpt") == counts
    (run / "checkpoints" / "last.ckpt").unlink()  # a run that was killed: its newest are its last
    assert last_checkpoints(run)[0].name == "epoch=007.ckpt"


def test_the_mean_is_written_whole(tmp_path):
    out = tmp_path / "checkpoints" / "average.ckpt"
    assert [path.name for path in write_average(run_in(tmp_path), "last", 2)] == ["last.ckpt", "epoch=003.ckpt"]
    assert torch.load(out, weights_only=True)["state_dict"]["model.w"] == 3.5
    write_average(tmp_path, "best", 2)
    assert torch.load(out, weights_only=True)["state_dict"]["model.w"] == 2.5


def test_a_run_that_ends_with_fewer_epochs_averages_those(tmp_path, caplog):
    assert len(write_average(run_in(tmp_path), "best", 5)) == 3
    assert "there are only 3 epochs to average, not checkpoint.average=5" in caplog.text
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(DataError, match="has kept none of its last epochs: there is nothing to average"):
        write_average(tmp_path, "last", 5)


@pytest.mark.parametrize(
    ("which", "keep"), [("best", "checkpoint.save_top_k=6"), ("last", "checkpoint.average=6")], ids=["best", "last"]
)
def test_who_asks_for_more_is_told_how_to_keep_them(tmp_path, which, keep):
    run = run_in(tmp_path)
    (run / ".hydra").mkdir()
    (run / ".hydra" / "config.yaml").write_text("{}")
    with pytest.raises(DataError) as error:
        source.load_average(run, which, 6)
    kept = {"best": 3, "last": 5}[which]
    assert str(error.value) == f"{run} has kept {kept} {which} epochs, not 6: train with {keep}"


@pytest.mark.parametrize(
    ("name", "which", "error", "problem"),
    [
        ("x.nemo", None, DataError, "x.nemo is one file: there is nothing to average"),
        ("run", "a.ckpt", ConfigError, "--average: is of the best or the last epochs, not of --checkpoint a.ckpt"),
        ("lost", None, DataError, "run folder lost does not exist"),
    ],
)
def test_what_cannot_be_averaged(name, which, error, problem):
    with pytest.raises(error) as caught:
        source.load_average(name, which, 2)
    assert str(caught.value) == problem
