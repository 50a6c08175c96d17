"""What `load_from_checkpoint` checks is what it loads: one read, always as plain data, whatever the file asks for."""

import inspect
import io
import os

import fsspec
import lightning.pytorch as pl
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from lightning.pytorch.core import saving
from tiny_fit import Step

from lightning_novograd.errors import DataError
from lightning_novograd.training.checkpoint import hparams
from lightning_novograd.training.mixin import OptimMixin

MARK = "omegaconf_hyper_parameters"


class Net(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim=None, strict=None, weights_only=None) -> None:
        super().__init__()
        self.found = strict


class Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.makedirs, (str(self.marker), 0o777, True)


def content(hyper_parameters, **more) -> bytes:
    saved = {"state_dict": Net().state_dict(), "hyper_parameters": hyper_parameters, "epoch": 0, "global_step": 0}
    torch.save({**saved, "loops": {}, "pytorch-lightning_version": pl.__version__, **more}, file := io.BytesIO())
    return file.getvalue()


@pytest.fixture
def served():
    """A file system whose file is another one at every read, and the list of what it will be."""
    contents: list[bytes] = []

    class Changing(MemoryFileSystem):
        protocol = "changing"

        def _open(self, path, *args, **kwargs):
            return io.BytesIO(contents.pop(0))

        def exists(self, path, **kwargs):
            return True

    fsspec.register_implementation("changing", Changing, clobber=True)
    return contents


@pytest.mark.parametrize("mark", [["weights_only"], [""]], ids=str)
def test_a_file_is_read_once(mark, served, tmp_path):
    marker = tmp_path / "marker"
    served += [content({"weights_only": False}, **{MARK: mark}), content({"optim": Runs(marker)})]
    assert isinstance(Net.load_from_checkpoint("changing://x.ckpt"), Net)
    assert not marker.exists()
    assert len(served) == 1


def test_a_file_of_hyper_parameters_is_read_once(served, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "x.ckpt"
    path.write_bytes(content({}))
    inner = f"{{class_path: os.mkdir, init_args: {{path: {marker}}}}}"
    served += [b"optim: null\n", f"_instantiator: lightning.pytorch.cli.instantiate_module\noptim: {inner}\n".encode()]
    assert isinstance(Net.load_from_checkpoint(path, hparams_file="changing://x.yaml"), Net)
    assert not marker.exists()
    assert len(served) == 1


@pytest.mark.parametrize("mark", [["weights_only"], ["strict"], [""], [], None], ids=str)
def test_every_read_is_of_plain_data(mark, tmp_path, monkeypatch):
    path, reads, load = tmp_path / "x.ckpt", [], saving.pl_load
    hyper_parameters = {"optim": None, "weights_only": False, "strict": False, "map_location": "meta", 3: 4}
    path.write_bytes(content(hyper_parameters, **({} if mark is None else {MARK: mark})))

    def spy(file, map_location=None, weights_only=None):
        reads.append(weights_only)
        return load(file, map_location, weights_only)

    monkeypatch.setattr(saving, "pl_load", spy)
    # of the name of an argument of Lightning's, __init__ gets it all the same
    assert Net.load_from_checkpoint(path).found is False
    assert reads == [True, True]


def test_the_environment_does_not_make_files_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    path.write_bytes(content({"optim": Runs(marker)}))
    with pytest.raises(DataError, match="holds more than plain data"):
        Net.load_from_checkpoint(path)
    assert not marker.exists()
    Net.load_from_checkpoint(path, weights_only=False)
    assert marker.exists()


def test_lightnings_arguments_are_known():
    functions = (saving._load_from_checkpoint, saving._load_state, OptimMixin.load_from_checkpoint)
    names = {name for function in functions for name in inspect.signature(function).parameters}
    assert names - {"kwargs", "cls_kwargs_new"} <= hparams._LIGHTNINGS


def test_an_open_file_is_read_from_where_it_is():
    file = io.BytesIO(b"before" + content({"strict": 3}))
    file.seek(6)
    assert Net.load_from_checkpoint(file).found == 3


def test_messages_name_the_file(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match=r"x\.ckpt is no checkpoint"):
        Net.load_from_checkpoint(path)
    path.write_bytes(content({}))
    with pytest.warns(RuntimeWarning, match=r"lost\.yaml is missing: no hyper-parameters are read"):
        assert Net.load_from_checkpoint(path, hparams_file=tmp_path / "lost.yaml").found is None
    with pytest.raises(ValueError, match=r"\.csv, \.yml or \.yaml is required"):
        Net.load_from_checkpoint(path, hparams_file=tmp_path / "lost.json")
