"""Checkpoints of strangers that training goes on from: no callback deletes a file that is not of the run."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from tiny_fit import BLOCK, PACKAGES, loader, module_of

from lightning_novograd.errors import DataError
from lightning_novograd.training.checkpoint.files import _is_below


def trainer_of(package, folder: Path, epochs: int):
    keep = package.callbacks.ModelCheckpoint(
        dirpath=folder, filename="{epoch}", monitor="epoch", mode="max", save_top_k=1
    )
    return package.Trainer(
        max_epochs=epochs,
        logger=False,
        callbacks=[keep],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(package, folder: Path, epochs: int, **more):
    trainer = trainer_of(package, folder, epochs)
    net = module_of(package)
    net.optim_config = BLOCK
    trainer.fit(net, loader(), **more)
    return trainer


def changed(checkpoint: Path, out: Path, **changes) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    [state] = [state for key, state in content["callbacks"].items() if "ModelCheckpoint" in key]
    state.update(changes)
    if changes.get("dirpath", 0) is None:
        del state["dirpath"]
    torch.save(content, out)
    return out


# the paths that the state of a stranger names; {} is a folder that is not the run's
PATHS = {
    "protocol": "local://{}",
    "protocol of a file": "file://{}",
    "chain": "simplecache::file://{}",
    "upward": "FOLDER/../victim",
    "the folder itself": "FOLDER/.",
    "no text": 3,
}


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed.*", "ignore:.*resumes at step.*"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`.*"),
]
KEYS = ["kth_best_model_path", "last_model_path", "best_k_models"]


@pytest.mark.parametrize(
    ("package", "path", "key"),
    [*((pl, path, key) for path in PATHS.values() for key in KEYS), (pytorch_lightning, PATHS["protocol"], KEYS[0])],
)
def test_nothing_else_is_deleted(package, path, key, tmp_path):
    folder, victim = tmp_path / "run", tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("x")
    fit(package, folder, 1)
    path = path.format(victim).replace("FOLDER", str(folder)) if isinstance(path, str) else path
    low = torch.tensor(-9.0)
    best = {path: low} if key == "best_k_models" else {str(folder / "epoch=0.ckpt"): low}
    state = {"best_k_models": best, "kth_value": low, "best_model_score": low, "dirpath": None}
    state |= {key: path} if key != "best_k_models" else {}
    hostile = changed(folder / "epoch=0.ckpt", tmp_path / "hostile.ckpt", **state)
    with pytest.raises(DataError, match="which is in no checkpoint folder of this run") as caught:
        fit(package, folder, 3, ckpt_path=hostile, weights_only=True)
    assert "\n" not in str(caught.value)
    assert 'hostile.ckpt: the state of "ModelCheckpoint' in str(caught.value)
    assert (victim / "thesis.tex").exists()
    assert (folder / "epoch=0.ckpt").exists()


@PACKAGES
def test_a_web_address_is_not_read_as_the_best_checkpoint(package, tmp_path):
    fit(package, tmp_path / "run", 1)
    state = {"best_model_path": "https://example.org/x.ckpt", "dirpath": "elsewhere"}
    hostile = changed(tmp_path / "run" / "epoch=0.ckpt", tmp_path / "hostile.ckpt", **state)
    with pytest.raises(DataError, match=r"names 'https://example\.org/x\.ckpt'"):
        fit(package, tmp_path / "new", 3, ckpt_path=hostile, weights_only=True)


@PACKAGES
def test_a_run_goes_on_where_it_was_and_elsewhere(package, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    fit(package, folder, 1)
    last = changed(folder / "epoch=0.ckpt", tmp_path / "last.ckpt")
    fit(package, tmp_path / "new", 2, ckpt_path=last, weights_only=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["epoch=1.ckpt"]
    monkeypatch.chdir(tmp_path)
    trainer = fit(package, Path("run"), 2, ckpt_path=last, weights_only=True)
    assert [path.name for path in folder.iterdir()] == ["epoch=1.ckpt"]  # the one before is deleted
    assert Path(trainer.checkpoint_callback.best_model_path) == folder / "epoch=1.ckpt"


@PACKAGES
def test_states_of_other_shapes_are_left_to_lightning(package, tmp_path):
    fit(package, tmp_path / "run", 1)
    content = torch.load(tmp_path / "run" / "epoch=0.ckpt", weights_only=True)
    content["callbacks"] = {"Other": [3], "More": {"best_k_models": 3, "dirpath": torch.ones(2)}}
    torch.save(content, tmp_path / "x.ckpt")
    fit(package, tmp_path / "new", 2, ckpt_path=tmp_path / "x.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("path", "folder", "below"),
    [
        ("s3://bucket/run/a.ckpt", "s3://bucket/run", True),
        ("s3://bucket/run/sub/a.ckpt", "s3://bucket/run/", True),
        ("s3://bucket/running", "s3://bucket/run", False),
        ("s3://bucket/run", "s3://bucket/run", False),
        ("s3://bucket/run/../other", "s3://bucket/run", False),
        ("s3://bucket/run/::local://a", "s3://bucket/run", False),
        ("local://a", "s3://bucket/run", False),
        ("/a/run/b.ckpt", "/a/run", True),
        ("/a/run/sub/../b.ckpt", "/a/run", True),
        ("/a/runs", "/a/run", False),
    ],
)
def test_below(path, folder, below):
    assert _is_below(path, folder) is below
