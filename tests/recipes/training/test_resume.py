"""What a run can be continued from, said in one line before any manifest is read."""

import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from tiny_speech import MODEL, batch, loader, module, trainer

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr import train
from lightning_novograd.recipes.asr.training import run as run_file
from lightning_novograd.recipes.asr.training.labels import check_resumed
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.common import command
from lightning_novograd.recipes.common.restart.resume import is_finished, read_resumed, set_later_checkpoints_aside


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of two epochs of two steps, by Lightning."""
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    made = trainer(max_epochs=2)
    made.fit(module(), loader([batch(1), batch(2)]))
    made.save_checkpoint(path)
    return path


def test_a_whole_checkpoint_passes(saved):
    checkpoint = read_resumed(saved)
    check_resumed(saved, checkpoint, module())
    assert checkpoint["global_step"] == 4


def cut(saved, folder):
    (folder / "a.ckpt").write_bytes(saved.read_bytes()[:-3000])
    return folder / "a.ckpt"


def cut_short(saved, folder):
    (folder / "a.ckpt").write_bytes(saved.read_bytes()[:5000])
    return folder / "a.ckpt"


def made_of(content):
    def write(saved, folder):
        torch.save(content, folder / "a.ckpt")
        return folder / "a.ckpt"

    return write


def touched(name):
    def touch(saved, folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        return folder / name

    return touch


def a_run(saved, folder):
    return touched("checkpoints/last.ckpt")(saved, folder).parents[1]


def pickled(saved, folder):
    (folder / "a.ckpt").write_bytes(pickle.dumps({"a": 1}))
    return folder / "a.ckpt"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda saved, folder: folder / "a.ckpt", DataError, r"^checkpoint .*/a\.ckpt does not exist$"),
        (lambda saved, folder: folder / ("a" * 300), DataError, r"^checkpoint .*/a+ does not exist$"),
        (touched("a.ckpt"), DataError, r"^checkpoint .*/a\.ckpt is empty$"),
        (cut, DataError, r"a\.ckpt is (damaged$|no checkpoint, or holds more than plain data)"),
        (cut_short, DataError, r"a\.ckpt is (damaged$|no checkpoint, or holds more than plain data)"),
        (pickled, DataError, r"a\.ckpt "),
        (lambda saved, folder: folder, ConfigError, r"^resume_from: .* is a folder, not a checkpoint$"),
        (
            a_run,
            ConfigError,
            r"^resume_from: .* is a folder, not a checkpoint; resume_from=.*/checkpoints/last\.ckpt is meant$",
        ),
        (
            touched("a.nemo"),
            ConfigError,
            r"^resume_from: .*a\.nemo is a NeMo archive, .* init_from=.*a\.nemo begins a new training with its ",
        ),
        (made_of([1]), DataError, r"a\.ckpt is no checkpoint of train\.py: it holds no mapping$"),
        (
            made_of({"state_dict": {}, "epoch": 1, "global_step": 1}),
            DataError,
            r"a\.ckpt is no checkpoint to go on from: it lacks pytorch-lightning_version, loops, optimizer_states$",
        ),
    ],
    ids=["missing", "long", "empty", "cut", "cut short", "pickle", "folder", "run", "nemo", "list", "weights"],
)
def test_a_file_that_is_none(saved, tmp_path, make, error, message):
    with pytest.raises(error, match=message) as caught:
        read_resumed(make(saved, tmp_path))
    assert "\n" not in str(caught.value)


def other(**changes) -> CTCModule:
    return CTCModule({**MODEL, **changes}, None)


def test_another_alphabet_or_model(saved):
    checkpoint = read_resumed(saved)
    wider = {"jasper": [{**MODEL["encoder"]["jasper"][0], "filters": 16}]}
    for changed, message in (
        (
            other(labels=["b", "a"]),
            r"last\.ckpt has another alphabet: 'ab' \(2\), not 'ba' \(2\) as model\.labels says$",
        ),
        (other(labels=["a", "b", "c"]), r"has another alphabet: 'ab' \(2\), not 'abc' \(3\)"),
        (
            other(encoder=wider),
            r"is of another model: model\.encoder\.encoder\.0\.mconv\.1\.conv\.weight is 8 x 64 x 1 there and "
            r"16 x 64 x 1 by the config, and 5 more differ$",
        ),
        (other(encoder={"jasper": wider["jasper"] * 2}), r"and 16 x 64 x 1 by the config, and \d+ more differ$"),
    ):
        with pytest.raises(DataError, match=message):
            check_resumed(saved, checkpoint, changed)


def test_another_model_without_saying_so(saved):
    checkpoint = {**read_resumed(saved), "hyper_parameters": None}
    check_resumed(saved, checkpoint, module())
    name = next(iter(checkpoint["state_dict"]))
    lacking = {**checkpoint["state_dict"]}
    del lacking[name]
    for state_dict, message in (
        (lacking, rf"{name} is missing there and \d+ by the config$"),
        ({**checkpoint["state_dict"], "x": torch.ones(())}, r"x is a number there and missing by the config$"),
        ([1], r"is no checkpoint of train\.py: state_dict is no mapping$"),
    ):
        with pytest.raises(DataError, match=message):
            check_resumed(saved, {**checkpoint, "state_dict": state_dict}, module())


def test_weights_that_are_not_finite(saved):
    checkpoint = read_resumed(saved)
    checkpoint["state_dict"]["model.decoder.decoder_layers.0.bias"][0] = float("nan")
    message = (
        r"last\.ckpt has weights that are not finite \(NaN or infinity\): model\.decoder\.decoder_layers\.0\.bias$"
    )
    with pytest.raises(DataError, match=message):
        check_resumed(saved, checkpoint, module())


@pytest.mark.parametrize(
    ("block", "length"),
    [
        ({"max_epochs": 2}, "2 epochs (trainer.max_epochs=2)"),
        ({"max_epochs": 3}, None),
        ({"max_epochs": -1}, None),
        ({"max_epochs": None}, None),
        ({"max_epochs": 3, "max_steps": 4}, "4 optimizer steps (trainer.max_steps=4)"),
        ({"max_epochs": 3, "max_steps": 5}, None),
        ({"max_epochs": 3, "max_steps": -1}, None),
    ],
)
def test_a_run_that_has_finished(saved, block, length):
    assert is_finished(read_resumed(saved), block) == length


def test_a_run_that_is_further_than_it_may_be(saved):
    with pytest.raises(ConfigError, match=r"^trainer\.max_epochs: is 1, but the checkpoint .* has 2 behind it$"):
        is_finished(read_resumed(saved), {"max_epochs": 1})
    assert is_finished({"global_step": 1, "loops": [1]}, {"max_epochs": 1}) is None


def test_it_is_said_before_any_manifest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(run_file, "SpeechDataModule", None)
    cfg = {name: {} for name in ("model", "data", "optim", "trainer", "logger", "checkpoint", "large_batch")}
    with pytest.raises(DataError, match=r"lost\.ckpt does not exist$"):
        run_file.run({**cfg, "resume_from": str(tmp_path / "lost.ckpt")}, tmp_path)


def test_a_run_that_goes_back_sets_its_later_checkpoints_aside(tmp_path, caplog, monkeypatch):
    """They would be averaged, or taken for its best, with those of the other way."""
    kept = tmp_path / "checkpoints"
    kept.mkdir()

    def save(*steps):
        for step in steps:
            torch.save({"global_step": step}, kept / f"recent-{step:03d}.ckpt")
        torch.save({"global_step": steps[-1]}, kept / "last.ckpt")
        torch.save({"global_step": steps[-1]}, tmp_path / "hpc_ckpt_1.ckpt")

    save(3, 6, 9)
    (kept / "broken.ckpt").write_bytes(b"PK")
    with monkeypatch.context() as other_rank:
        other_rank.setenv("RANK", "1")
        set_later_checkpoints_aside(tmp_path, 3)
    set_later_checkpoints_aside(tmp_path, 9)
    assert not caplog.records
    assert not list(tmp_path.glob("checkpoints_*"))
    for again in ("", "-v1", "-v2"):
        set_later_checkpoints_aside(tmp_path, 3)
        assert sorted(path.name for path in kept.iterdir()) == ["broken.ckpt", "recent-003.ckpt"]
        aside = tmp_path / f"checkpoints_step0000009{again}"
        names = ["hpc_ckpt_1.ckpt", "last.ckpt", "recent-006.ckpt", "recent-009.ckpt"]
        assert sorted(path.name for path in aside.iterdir()) == names
        assert caplog.messages[-1] == f"the run goes back to step 3; its 4 later checkpoints are now in {aside}"
        save(6, 9)


def test_a_command_that_is_refused_leaves_the_run_as_it_was(saved, tmp_path, monkeypatch):
    """Whatever is wrong with it: the file, the config, the model."""
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    shutil.copyfile(saved, last)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("first")
    hydra = OmegaConf.create({"overrides": {"task": []}, "runtime": {"output_dir": str(tmp_path)}, "mode": "RUN"})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(command, "set_up_console", lambda: None)
    monkeypatch.setattr(run_file.DataConfig, "check_given", lambda self: None)
    (tmp_path / "results.json").write_text("{}")
    blocks = {name: {} for name in ("logger", "checkpoint", "large_batch")} | {"model": MODEL, "optim": {"name": "sgd"}}
    data, cpu = {"name": "manifest", "train": "a", "dev": "b"}, {"accelerator": "cpu", "devices": 1}
    good = {**blocks, "data": data, "trainer": cpu, "resume_from": str(last)}
    for changes in (
        {"resume_from": str(last.with_name("lost.ckpt"))},
        {"seeed": 1},
        {"model": {**MODEL, "labels": ["x"]}},
        {"trainer": {**cpu, "max_epochs": 1}},
    ):
        with pytest.raises(SystemExit):
            train.main.__wrapped__(OmegaConf.create({**good, **changes}))
        assert (tmp_path / ".hydra" / "config.yaml").read_text() == "first"
        assert (tmp_path / "results.json").exists()
    fits = SimpleNamespace(is_global_zero=True, world_size=1, strategy=None)
    fits.fit = lambda *args, **options: (_ for _ in ()).throw(DataError("no manifest"))
    monkeypatch.setattr(run_file, "build_trainer", lambda *args: fits)
    with pytest.raises(SystemExit):
        train.main.__wrapped__(OmegaConf.create(good))
    assert (tmp_path / ".hydra" / "config.yaml").read_text().startswith("logger: {}\n")


def test_a_requeued_job_goes_on_from_slurms_checkpoint(saved, tmp_path, monkeypatch):
    """By the command that began it, whatever that went on from."""
    asked = []

    def fit(*args, ckpt_path, **options):
        asked.append(ckpt_path)
        raise DataError("enough")

    fits = SimpleNamespace(is_global_zero=True, world_size=1, fit=fit)
    monkeypatch.setattr(run_file, "build_trainer", lambda *args: fits)
    monkeypatch.setattr(run_file.DataConfig, "check_given", lambda self: None)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    (tmp_path / "metrics.csv").touch()
    shutil.copyfile(saved, tmp_path / "hpc_ckpt_1.ckpt")
    blocks = {name: {} for name in ("logger", "checkpoint", "large_batch")} | {"optim": {"name": "sgd"}}
    blocks |= {"data": {"name": "manifest", "train": "a", "dev": "b"}, "trainer": {"accelerator": "cpu", "devices": 1}}
    for resume in (None, "elsewhere/last.ckpt"):
        with pytest.raises(DataError, match="enough"):
            run_file.run({**blocks, "model": {**MODEL, "labels": "auto"}, "resume_from": resume}, tmp_path)
    assert asked == [str(tmp_path / "hpc_ckpt_1.ckpt")] * 2
