"""Checkpoints of strangers, through `load_from_checkpoint`: nothing of theirs runs, and one line says why not."""

import io
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from packaging.version import Version
from tiny_fit import BLOCK, PACKAGES, Step, module_of

from lightning_novograd.errors import DataError
from lightning_novograd.training.checkpoint import trust
from lightning_novograd.training.mixin import OptimMixin


class Net(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim=None, width: int = 2, label: str = "") -> None:
        super().__init__()
        self.label = label


class TakesAnything(Net):
    def __init__(self, optim: Any = None, width: int = 2) -> None:
        super().__init__()


class TakesAFunction(Net):
    def __init__(self, optim: Callable | None = None, width: int = 2) -> None:
        super().__init__()


class TakesAModule(Net):
    def __init__(self, optim: torch.nn.Module | None = None, functions: list[Callable] | None = None) -> None:
        super().__init__()
        self.inner = optim


class TakesMore(Net):
    def __init__(self, **kwargs) -> None:
        super().__init__()


class TakesAFunctionOrText(Net):
    def __init__(self, optim: str | Callable = "", width: int = 2) -> None:
        super().__init__()


class TakesAFileOrATensor(Net):
    def __init__(self, optim=None, file: Path = Path(), tensor: "Undefined | None" = None) -> None:  # noqa: F821
        super().__init__()
        self.file = file


class TakesMoreByFunction(TakesMore):
    def __init__(self, function: Callable | None = None) -> None:
        super().__init__()


CLASSES = [Net, TakesAnything, TakesAFunction, TakesAModule, TakesMore]
CLI = "lightning.pytorch.cli.instantiate_module"


class Runs:
    """Makes a folder when a pickle of it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def checkpoint(**hyper_parameters) -> dict[str, Any]:
    saved = {"state_dict": Net().state_dict(), "hyper_parameters": hyper_parameters, "epoch": 0, "global_step": 0}
    return {**saved, "loops": {}, "pytorch-lightning_version": pl.__version__}


def built(marker):
    return {"class_path": "os.mkdir", "init_args": {"path": str(marker)}}


HYPER_PARAMETERS = {
    "instantiator": lambda m: {"_instantiator": "os.mkdir", "optim": None},
    "instantiator of no text": lambda m: {"_instantiator": ["os.mkdir"]},
    "class": lambda m: {"_instantiator": CLI, "_class_path": "os.mkdir", "path": str(m)},
    "class that is not imported": lambda m: {"_instantiator": CLI, "_class_path": "antigravity.Net"},
    "argument": lambda m: {"_instantiator": CLI, "optim": built(m)},
    "inside of an argument": lambda m: {"_instantiator": CLI, "optim": {"name": "sgd", "sched": [built(m)]}},
    "dotted": lambda m: {"_instantiator": CLI, "optim.class_path": "os.mkdir", "optim.init_args.path": str(m)},
    "YAML": lambda m: {"_instantiator": CLI, "optim": f"{{class_path: os.mkdir, init_args: {{path: {m}}}}}"},
    "escaped": lambda m: {
        "_instantiator": CLI,
        "optim": f'{{"class\\u005fpath": "os.mkdir", "init\\u005fargs": {{"path": "{m}"}}}}',
    },
}


def refused(load, marker, *problems):
    with pytest.raises(DataError) as caught:
        load()
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    for problem in problems:
        assert problem in str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("hostile", HYPER_PARAMETERS.values(), ids=HYPER_PARAMETERS)
@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
def test_hyper_parameters_run_nothing(cls, hostile, key, tmp_path):
    path, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    torch.save({"state_dict": Net().state_dict(), key: hostile(marker)}, path)
    refused(lambda: cls.load_from_checkpoint(path), marker, str(path))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("pairs", [list, tuple], ids=["list", "tuple"])
@pytest.mark.parametrize("hostile", HYPER_PARAMETERS.values(), ids=HYPER_PARAMETERS)
@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
def test_pairs_that_make_a_dict_run_nothing(pairs, hostile, key, tmp_path):
    path, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    torch.save({**checkpoint(), key: pairs([*hostile(marker).items()])}, path)
    refused(lambda: Net.load_from_checkpoint(path), marker, str(path), f"{key} must be a dict, found {pairs.__name__}")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_of_hyper_parameters_leaves_those_of_old_checkpoints(cls, tmp_path):
    path, marker, hparams = tmp_path / "x.ckpt", tmp_path / "marker", tmp_path / "hparams.yaml"
    torch.save({**checkpoint(), "hparams": HYPER_PARAMETERS["argument"](marker)}, path)
    hparams.write_text("width: 2\n")
    refused(lambda: cls.load_from_checkpoint(path, hparams_file=hparams), marker, "names code")


@pytest.mark.parametrize("suffix", ["yaml", "csv"])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_of_hyper_parameters_runs_nothing(cls, suffix, tmp_path):
    path, marker, hparams = tmp_path / "x.ckpt", tmp_path / "marker", tmp_path / f"hparams.{suffix}"
    torch.save(checkpoint(), path)
    if suffix == "yaml":
        hparams.write_text(f"_instantiator: {CLI}\noptim: {{class_path: os.mkdir, init_args: {{path: {marker}}}}}\n")
    else:
        hparams.write_text(f'key,value\n_instantiator,{CLI}\noptim,"{built(marker)}"\n')
    refused(lambda: cls.load_from_checkpoint(path, hparams_file=hparams), marker, str(hparams))


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:antigravity"])
def test_yaml_tags_run_nothing(tag, tmp_path):
    path, marker, hparams = tmp_path / "x.ckpt", tmp_path / "marker", tmp_path / "hparams.yaml"
    torch.save(checkpoint(), path)
    hparams.write_text(f"width: !!python/{tag} [{marker}]\n")
    refused(lambda: Net.load_from_checkpoint(path, hparams_file=hparams), marker, str(hparams), "is not plain YAML")
    assert "antigravity" not in sys.modules


PICKLES = {
    "in a checkpoint": lambda m: saved({**checkpoint(), "epoch": Runs(m)}),
    "in hyper-parameters": lambda m: saved(checkpoint(width=Runs(m))),
    "bare": lambda m: pickle.dumps(Runs(m)),
    "of protocol 0": lambda m: pickle.dumps({"state_dict": Runs(m)}, protocol=0),
    "no checkpoint": lambda m: b"hello",
    "empty": lambda m: b"",
    "list": lambda m: saved([1]),
}


def saved(content):
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("opened", [False, True], ids=["path", "file"])
@pytest.mark.parametrize("hostile", PICKLES.values(), ids=PICKLES)
def test_pickles_run_nothing(hostile, opened, tmp_path):
    path, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    path.write_bytes(hostile(marker))
    file = io.BytesIO(path.read_bytes()) if opened else path
    refused(lambda: Net.load_from_checkpoint(file), marker)


def test_a_url_is_a_file_as_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    marker = tmp_path / "marker"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "x.ckpt").write_bytes(saved({**checkpoint(), "epoch": Runs(marker)}))
    refused(lambda: Net.load_from_checkpoint("https://example.org/x.ckpt"), marker, "https://example.org/x.ckpt")


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Net.load_from_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("value", ["os.mkdir", ["os.mkdir"]], ids=str)
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        *((TakesAFunction, "optim"), (TakesAFunctionOrText, "optim"), (TakesAModule, "optim")),
        *((TakesAModule, "functions"), (TakesAFileOrATensor, "tensor")),
    ],
)
def test_a_text_that_would_be_imported_is_refused(cls, name, value, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint(_instantiator=CLI, **{name: value}), path)
    refused(lambda: cls.load_from_checkpoint(path), tmp_path / "marker", f"{name!r} names code, 'os.mkdir'")


def test_the_arguments_of_the_class_that_is_named_count(tmp_path):
    path = tmp_path / "x.ckpt"
    named = {"_instantiator": CLI, "_class_path": f"{__name__}.TakesMoreByFunction"}
    torch.save(checkpoint(**named, function="antigravity.fly"), path)
    refused(lambda: TakesMore.load_from_checkpoint(path), tmp_path / "marker", "'function' names code")
    assert "antigravity" not in sys.modules


def test_a_file_that_is_trusted_builds_what_it_names(tmp_path):
    path = tmp_path / "x.ckpt"
    inner = {"class_path": "torch.nn.Flatten", "init_args": {"start_dim": 2}}
    torch.save(checkpoint(_instantiator=CLI, optim=inner), path)
    refused(lambda: TakesAModule.load_from_checkpoint(path), tmp_path / "marker", "give optim=... to load_from")
    assert TakesAModule.load_from_checkpoint(path, weights_only=False).inner.start_dim == 2
    given = torch.nn.Flatten(3)
    assert TakesAModule.load_from_checkpoint(path, optim=given).inner is given


class Typed(Net):
    def __init__(
        self,
        optim: dict[str, Any] | None = None,
        width: int = 2,
        rates: list[float] | None = None,
        kind: Literal["a", "b"] = "a",
    ) -> None:
        super().__init__()


MISFITS = {
    "text": ({"width": "many"}, "'width': expected an integer, got the text 'many'; give width=... to load_from"),
    "mapping": ({"width": {"a": 1}}, "'width': expected an integer, got a mapping"),
    "list": ({"rates": [1, "a"]}, "'rates': expected a list of numbers or null, got a list [1, 'a']"),
    "block": ({"optim": "novagrad"}, " or NoneType, got 'novagrad'; give optim=... to load_from"),
    "choice": ({"kind": "c"}, "'kind': expected 'a' or 'b', got the text 'c'"),
    "long": ({"optim": "x" * 5000}, " or NoneType, got 'xxx"),
    "below": ({"optim": {"name": "sgd"}, "width.x": 3, "width": [3]}, "'width': expected an integer"),
    "of a class": ({"_class_path": f"{__name__}.Typed", "width": "many"}, "'width': expected an integer, got the text"),
}


# texts that may be YAML are looked at only where the file is trusted
MAYBE_YAML = {
    "YAML": ({"optim": "{a: ["}, "'optim': expected dict"),
    "lines": ({"optim": "a\nb"}, " or NoneType, got 'a\\nb'"),
}


@pytest.mark.parametrize(("hyper_parameters", "problem"), (MISFITS | MAYBE_YAML).values(), ids=MISFITS | MAYBE_YAML)
def test_what_the_clis_parser_refuses_is_one_line(hyper_parameters, problem, tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint(_instantiator=CLI, **hyper_parameters), path)
    ours = "may be read as YAML" if (hyper_parameters, problem) in MAYBE_YAML.values() else problem
    refused(lambda: Typed.load_from_checkpoint(path), tmp_path / "marker", str(path), ours)
    with pytest.raises(DataError, match=re.escape(problem)) as caught:
        Typed.load_from_checkpoint(path, weights_only=False)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_so_is_what_only_the_clis_parser_knows(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint(_instantiator=CLI, optim=[3]), path)
    problem = " or NoneType, got [3]; give optim=... to load_from"
    refused(lambda: TakesAFunction.load_from_checkpoint(path), tmp_path / "marker", str(path), problem)


BROKEN = {
    "no state_dict": (lambda c: c.pop("state_dict"), "it has no state_dict"),
    "state_dict is a list": (lambda c: c.update(state_dict=[1]), "state_dict must be a dict, found list"),
    "no version": (lambda c: c.pop("pytorch-lightning_version"), "it has no pytorch-lightning_version"),
    "version is a number": (lambda c: c.update({"pytorch-lightning_version": 3}), "3 is not a version of Lightning"),
    "version is a text": (lambda c: c.update({"pytorch-lightning_version": "a\nb"}), "is not a version of Lightning"),
    "no such object": (lambda c: c.update(omegaconf_hyper_parameters=["x"]), "omegaconf_hyper_parameters names 'x'"),
    "no objects": (lambda c: c.update(omegaconf_hyper_parameters=3), "omegaconf_hyper_parameters must be a list"),
    "no key": (lambda c: c.update(omegaconf_hyper_parameters=[["x"]]), "omegaconf_hyper_parameters must be a list"),
    "interpolation": (
        lambda c: c.update(omegaconf_hyper_parameters=["optim"], hyper_parameters={"optim": {"lr": "${b"}}),
        "hyper-parameter 'optim' is not for OmegaConf",
    ),
    "interpolation of all": (
        lambda c: c.update(omegaconf_hyper_parameters=[""], hyper_parameters={"optim": {"lr": "${b"}}),
        "hyper-parameter 'optim' is not for OmegaConf",
    ),
    "interpolation of one object": (
        lambda c: c.update(omegaconf_hyper_parameters=[""], hparams_name="optim", hyper_parameters={"lr": "${b"}),
        "hyper-parameter 'optim' is not for OmegaConf",
    ),
}


@pytest.mark.parametrize(("breaks", "problem"), BROKEN.values(), ids=BROKEN)
def test_a_broken_checkpoint_is_one_line(breaks, problem, tmp_path):
    path = tmp_path / "x.ckpt"
    breaks(content := checkpoint())
    torch.save(content, path)
    refused(lambda: Net.load_from_checkpoint(path), tmp_path / "marker", str(path), problem)


def test_plain_hyper_parameters_of_the_cli_load(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(checkpoint(_instantiator=CLI, optim=BLOCK, width=3, label="a.b"), path)
    assert Net.load_from_checkpoint(path).label == "a.b"
    torch.save(checkpoint(_instantiator=CLI, file="vocabulary.txt"), path)
    assert TakesAFileOrATensor.load_from_checkpoint(path).file == Path("vocabulary.txt")
    torch.save(checkpoint(_instantiator=CLI, _class_path=f"{__name__}.TakesAnything", optim=BLOCK), path)
    assert isinstance(Net.load_from_checkpoint(path), Net)


# ------------------------------------------------------------------------------------------- versions of Lightning


@PACKAGES
@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("2.6.1", r"2\.6\.1 runs code that a checkpoint names, .*CVE-2026-58659.*; install \w+>=2\.6\.6"),
        ("2.6.5", r"2\.6\.5 runs code that a checkpoint names"),
        ("2.6.2", "2.6.2 was published with malicious code"),
        ("2.6.3", "2.6.3 was published with malicious code"),
    ],
)
def test_an_unsafe_lightning_is_named_once(package, version, problem, monkeypatch, recwarn):
    monkeypatch.setattr(sys.modules[package.__name__.partition(".")[0]], "__version__", version)
    trust.warn_of_unsafe_lightning.cache_clear()
    try:
        with pytest.warns(UserWarning, match=problem):
            module_of(package)
        recwarn.clear()
        module_of(package)
        assert not [warning for warning in recwarn if "install" in str(warning.message)]
    finally:
        trust.warn_of_unsafe_lightning.cache_clear()


def test_the_installed_lightning_is_safe(recwarn):
    trust.warn_of_unsafe_lightning.cache_clear()
    for package in (pl, pytorch_lightning):
        module_of(package)
    assert not [warning for warning in recwarn if "install" in str(warning.message)]


def test_the_requirement_is_what_is_warned_of():
    requirement = f'"lightning>={trust.OLDEST_SAFE_LIGHTNING}"'
    assert requirement in (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert Version("2.6.6") == trust.OLDEST_SAFE_LIGHTNING
