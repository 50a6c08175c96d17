"""`convert-checkpoint` on whatever file it is given: one line, exit status 2, and no output, whole or half."""

import os
import pickle
import zipfile

import pytest
import torch

from lightning_novograd.__main__ import main
from lightning_novograd.commands import output
from lightning_novograd.optim import NovoGrad

WEIGHT = torch.nn.Parameter(torch.ones(2))


def novograd_state():
    optimizer = NovoGrad([WEIGHT])
    WEIGHT.grad = torch.ones(2)
    optimizer.step()
    return optimizer.state_dict()


def saved(content):
    return lambda path: torch.save(content, path)


def damaged(change):
    def write(path):
        torch.save({"optimizer_states": [novograd_state()]}, path)
        path.write_bytes(change(path.read_bytes()))

    return write


def group(**changes):
    state = novograd_state()
    state["param_groups"][0] |= changes
    return saved({"optimizer_states": [state]})


def zipped(**members):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name.replace("__", "/"), text)

    return write


INPUTS = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "empty": (lambda path: path.touch(), "is no checkpoint"),
    "text": (lambda path: path.write_text("hello world\n" * 20), "is no checkpoint"),
    "words": (lambda path: path.write_text("just words"), "is no checkpoint"),
    "yaml": (lambda path: path.write_text("optim: {name: sgd}\n"), "is no checkpoint"),
    "zeros": (lambda path: path.write_bytes(b"\0" * 100), "is no checkpoint"),
    "bytes": (lambda path: path.write_bytes(bytes(range(256)) * 10), "is no checkpoint"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is no checkpoint"),
    "zip": (zipped(a="b"), "is no checkpoint"),
    "zip of a folder": (zipped(a__data_pkl="b", a__version="3"), "is no checkpoint"),
    "cut in half": (damaged(lambda data: data[: len(data) // 2]), "is no checkpoint"),
    "cut at the end": (damaged(lambda data: data[:-5]), "is no checkpoint"),
    "flipped": (damaged(lambda data: data[:80] + bytes([data[80] ^ 255]) + data[81:]), "is no checkpoint"),
    "module": (saved(torch.nn.Linear(2, 2)), "it names torch.nn.modules.linear.Linear"),
    "list": (saved([1]), "expected a dict of a checkpoint, found list"),
    "nothing of a checkpoint": (saved({1: 2}), "found keys: 1"),
    "weights only": (saved({"state_dict": {}, "epoch": 1}), "optimizer_states: missing; the checkpoint was saved with"),
    "no optimizer": (saved({"optimizer_states": []}), "none of the 0 entries"),
    "null for optimizers": (saved({"optimizer_states": None}), "expected a list of state dicts, found NoneType"),
    "number for an optimizer": (saved({"optimizer_states": [3]}), "none of the 1 entries"),
    "tensor for an optimizer": (saved({"optimizer": torch.zeros(2)}), "expected the state dict of an optimizer"),
    "group without params": (saved({"state": {}, "param_groups": [{}]}), "param_groups.0: expected a param group"),
    "number for a state": (saved({"state": {0: 3}, "param_groups": [{"params": [0]}]}), "state.0: expected a layer's"),
    "number for betas": (group(betas=3), "the optimizer's state is damaged: TypeError"),
    "unhashable layer": (group(params=[[0]]), "the optimizer's state is damaged: TypeError"),
}


@pytest.mark.parametrize(("write", "problem"), INPUTS.values(), ids=INPUTS)
def test_an_input_that_cannot_be_converted(tmp_path, capsys, write, problem):
    write(tmp_path / "in.ckpt")
    there = {path.name for path in tmp_path.iterdir()}
    assert main(["convert-checkpoint", str(tmp_path / "in.ckpt"), str(tmp_path / "out.ckpt"), "--to", "nemo"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path / 'in.ckpt'}: ")
    assert printed.err.count("\n") == 1
    assert problem in printed.err
    assert "weights_only" not in printed.err, "torch's advice to run the code of the file"
    assert {path.name for path in tmp_path.iterdir()} == there


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read")
def test_an_input_that_may_not_be_read(tmp_path, capsys):
    (tmp_path / "in.ckpt").touch(mode=0)
    assert main(["convert-checkpoint", str(tmp_path / "in.ckpt"), str(tmp_path / "out.ckpt")]) == 2
    assert "cannot be read: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("lost/out.ckpt", "there is no folder"),
        ("in.ckpt/out.ckpt", "there is no folder"),
        ("folder", "exists already"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_an_output_that_cannot_be_written(tmp_path, capsys, out, problem):
    torch.save(novograd_state(), tmp_path / "in.ckpt")
    (tmp_path / "folder").mkdir()
    assert main(["convert-checkpoint", str(tmp_path / "in.ckpt"), str(tmp_path / out)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path / out}: {problem}")
    assert printed.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.ckpt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("[enforce fail] . \n more")])
def test_a_disk_that_is_full_leaves_no_half_file(tmp_path, capsys, monkeypatch, error):
    torch.save(novograd_state(), tmp_path / "in.ckpt")

    def save(content, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save)
    assert main(["convert-checkpoint", str(tmp_path / "in.ckpt"), str(tmp_path / "out.ckpt")]) == 2
    assert "out.ckpt: cannot be written: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ckpt"]


def test_a_program_that_fails_for_another_reason_is_not_silenced(tmp_path):
    def write():
        with output.whole_file(tmp_path / "out") as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert not list(tmp_path.iterdir())
