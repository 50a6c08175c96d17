"""Texts among hyper-parameters of LightningCLI: what jsonargparse might import or call is refused, other data loads."""

import dataclasses
import enum
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import torch
import yaml
from tiny_fit import BLOCK, PACKAGES, Step

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.training.checkpoint.code import is_plain
from lightning_novograd.training.mixin import OptimMixin

CLI = "lightning.pytorch.cli.instantiate_module"
# a module of the standard library that nothing imports by itself
LURE = "this.s"


class Inner(torch.nn.Module):
    def __init__(self, fn: Callable | None = None, act: torch.nn.Module | None = None) -> None:
        super().__init__()


@dataclasses.dataclass
class Config:
    fn: Callable | None = None
    name: str = ""
    sizes: list[int] = dataclasses.field(default_factory=list)


class Kind(enum.Enum):
    SMALL = "small"


class Net(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim=None, text="", number=3) -> None:
        super().__init__()
        self.text = text


class TakesAnything(Net):
    def __init__(self, optim: Any = None, text: object = "") -> None:
        super().__init__()
        self.text = text


class HandsOn(Net):
    def __init__(self, width: int = 2, **kwargs) -> None:
        super().__init__()
        self.inner = Inner(**kwargs)


class TakesFunctions(Net):
    def __init__(
        self,
        fn: Callable | None = None,
        fns: list[Callable] | None = None,
        named: dict[str, Callable] | None = None,
        config: Config | None = None,
        more: Config = Config(),  # noqa: B008  # what jsonargparse takes apart
        kind: type | None = None,
        blocks: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()


class TakesAll(TakesFunctions):
    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)


def typed(package):
    class Typed(OptimMixin, Step, package.LightningModule):
        def __init__(
            self,
            optim: dict[str, Any] | None = None,
            label: str = "",
            labels: list[str] | None = None,
            path: Path | None = None,
            place: str | os.PathLike = "",
            kind: Kind = Kind.SMALL,
            mode: Literal["a", "b"] = "a",
            config: Config | None = None,
            more: Config = Config(),  # noqa: B008
            sizes: tuple[int, ...] = (),
            rates: Mapping[str, float] | None = None,
            untyped=None,
        ) -> None:
            super().__init__()
            self.arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}

    return Typed


Typed = typed(pl)


def checkpoint(**hyper_parameters) -> dict[str, Any]:
    saved = {"state_dict": Net().state_dict(), "hyper_parameters": hyper_parameters, "epoch": 0, "global_step": 0}
    return {**saved, "loops": {}, "pytorch-lightning_version": pl.__version__}


def load(cls, path: Path, **hyper_parameters):
    torch.save(checkpoint(_instantiator=CLI, **hyper_parameters), path)
    return cls.load_from_checkpoint(path)


def refused(cls, tmp_path, **hyper_parameters) -> str:
    with pytest.raises(DataError, match="names code") as caught:
        load(cls, tmp_path / "x.ckpt", **hyper_parameters)
    assert LURE.partition(".")[0] not in sys.modules
    assert not (tmp_path / "marker").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# what a parser takes for a mapping that names code, by ways that a reader as YAML does not see
HIDDEN = {
    "tabs": '{{\t"class\\u005fpath": "os.mkdir",\t"init\\u005fargs": {{"path": "{}"}}}}',
    "timestamp": '{{"class\\u005fpath": "os.mkdir", "init\\u005fargs": {{"path": "{}", "dir_fd": 2020-99-99}}}}',
    "after a timestamp": '[2020-99-99, {{"class\\u005fpath": "os.mkdir", "init\\u005fargs": {{"path": "{}"}}}}]',
    "list": '[{{\t"class\\u005fpath": "os.mkdir",\t"init\\u005fargs": {{"path": "{}"}}}}]',
    "document": '--- {{"class\\x5fpath": "os.mkdir", "init\\x5fargs": {{"path": "{}"}}}}',
    "tag": '!!map {{"class\\x5fpath": "os.mkdir", "init\\x5fargs": {{"path": "{}"}}}}',
    "quoted": '\'{{"class\\x5fpath": "os.mkdir", "init\\x5fargs": {{"path": "{}"}}}}\'',
    "block": '"class\\x5fpath": os.mkdir\n"init\\x5fargs": {{path: {}}}',
    "key": '? "class\\x5fpath"\n: os.mkdir\n? "init\\x5fargs"\n: {{path: {}}}',
}


@pytest.mark.parametrize("inside", [lambda t: t, lambda t: [t], lambda t: {"a": t}], ids=["text", "list", "dict"])
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        *((Net, "optim"), (Net, "text"), (Net, "number"), (TakesAnything, "optim"), (TakesAnything, "text")),
        *((HandsOn, "fn"), (HandsOn, "act"), (HandsOn, "what"), (TakesFunctions, "fn"), (TakesFunctions, "fns")),
        *((TakesFunctions, "config"), (TakesFunctions, "more"), (TakesFunctions, "blocks"), (Typed, "optim")),
        *((Typed, "config"), (CTCModule, "optim"), (CTCModule, "model")),
    ],
)
@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_a_text_that_hides_code_is_refused(text, cls, name, inside, tmp_path):
    refused(cls, tmp_path, **{name: inside(text.format(tmp_path / "marker"))})


@pytest.mark.parametrize(
    ("cls", "hyper_parameters"),
    [
        (HandsOn, {"fn": LURE}),
        (HandsOn, {"act": LURE}),
        (HandsOn, {"act": "Flatten"}),
        (TakesAll, {"fn": LURE}),
        (TakesAll, {"more.fn": LURE}),
        (TakesAll, {"fns+": LURE}),
        (TakesFunctions, {"fns": f"[{LURE}]"}),
        (TakesFunctions, {"fns": f"- {LURE}"}),
        (TakesFunctions, {"fns": [f"'{LURE}'"]}),
        (TakesFunctions, {"fn": f" {LURE}"}),
        (TakesFunctions, {"fn": f"'{LURE}'"}),
        (TakesFunctions, {"fn": f"{LURE} # c"}),
        (TakesFunctions, {"named": f"{{a: {LURE}}}"}),
        (TakesFunctions, {"named": {"a": LURE}}),
        (TakesFunctions, {"config": {"fn": LURE}}),
        (TakesFunctions, {"config": {"init_args": {"fn": LURE}}}),
        (TakesFunctions, {"config": f"{{fn: {LURE}}}"}),
        (TakesFunctions, {"more": {"fn": LURE}}),
        (TakesFunctions, {"more": f"{{fn: {LURE}}}"}),
        (TakesFunctions, {"kind": LURE}),
    ],
    ids=str,
)
def test_a_text_that_would_be_imported_is_refused(cls, hyper_parameters, tmp_path):
    refused(cls, tmp_path, **hyper_parameters)


def test_the_refusal_names_the_ways_out(tmp_path):
    said = refused(HandsOn, tmp_path, fn=LURE)
    assert said.endswith("give fn=... to load_from_checkpoint, or weights_only=False if you trust the file")
    assert "may be read as YAML that names code, 'a: b'" in refused(Net, tmp_path, text="a: b")


def test_nested_without_end_is_refused(tmp_path):
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(DataError, match="nested too deeply"):
        load(Net, tmp_path / "x.ckpt", optim=endless)


def test_a_list_in_a_file_of_hyper_parameters_is_looked_into(tmp_path):
    path, hparams, marker = tmp_path / "x.ckpt", tmp_path / "hparams.yaml", tmp_path / "marker"
    torch.save(checkpoint(), path)
    for value in (
        f"[{{class_path: os.mkdir, init_args: {{path: {marker}}}}}]",
        f"[[{{class_path: os.mkdir, init_args: {{path: {marker}}}}}]]",
        f'[\'{{"class\\x5fpath": os.mkdir, "init\\x5fargs": {{path: {marker}}}}}\']',
    ):
        hparams.write_text(f"_instantiator: {CLI}\ntext: {value}\n")
        with pytest.raises(DataError, match="names code"):
            TakesAnything.load_from_checkpoint(path, hparams_file=hparams)
    # an interpolation would put it together
    hparams.write_text(f"_instantiator: {CLI}\nkey: path\ntext: '{{\"class_${{key}}\": os.mkdir}}'\n")
    with pytest.raises(DataError, match="names code"):
        TakesAnything.load_from_checkpoint(path, hparams_file=hparams)
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------- what still loads


ORDINARY: dict[str, Any] = {
    "optim": {**BLOCK, "param_groups": [{"match": "decoder.*", "lr": 0.01}], "no_decay": ["*.bias", "ndim<=1"]},
    "label": '{"a": [b: c]}',  # an argument that is a text takes any
    "labels": [" ", "a", "'", "a: b", "{"],
    "path": Path("a/b.json"),
    "place": "s3://bucket/a.json",
    "kind": Kind.SMALL,
    "mode": "b",
    "config": Config(name="quartz: {net}", sizes=[1, 2]),
    "more": Config(name="torch.nn"),
    "sizes": (1, 2),
    "rates": {"a": 0.5},
    "untyped": {"labels": [" ", "'", "é", "▁the"], "act": "relu", "place": "s3://bucket/a", "rate": "-1e-3", "on": ""},
}


@PACKAGES
def test_ordinary_values_load(package, tmp_path):
    names = {
        name: value.name if isinstance(value, Kind) else str(value) if isinstance(value, Path) else value
        for name, value in ORDINARY.items()
    }
    names |= {name: dataclasses.asdict(ORDINARY[name]) for name in ("config", "more")}
    content = checkpoint(_instantiator=f"{package.__name__}.cli.instantiate_module", gone="a: b", **names)
    torch.save(content, tmp_path / "x.ckpt")
    assert typed(package).load_from_checkpoint(tmp_path / "x.ckpt").arguments == ORDINARY


def test_numbers_are_handed_on_under_any_name(tmp_path):
    assert load(HandsOn, tmp_path / "x.ckpt", width=3, act=None)


def test_plain_texts_are_no_collections_to_any_parser():
    """`is_plain` is an allow-list: whatever it lets through, YAML and JSON read as one value."""
    generator = random.Random(1)
    pieces = [
        *"{}[]:,-?!&*|>'\"%@`#\\ \t\n\x85\u2028~=.aπ1<",
        ": ",
        "- ",
        "? ",
        "---",
        "...",
        "a",
        "class_path",
        "!!map ",
    ]
    plain = 0
    for _ in range(50_000):
        text = "".join(generator.choices(pieces, k=generator.randint(1, 8)))
        if not is_plain(text):
            continue
        plain += 1
        for read in (yaml.safe_load, json.loads):
            try:
                value = read(text)
            except (yaml.YAMLError, ValueError):
                continue
            assert not isinstance(value, dict | list) or len(text) < 2, text
            assert not isinstance(value, str) or value in text, text
    assert plain > 1000


@pytest.mark.parametrize("text", ["", "'", "a.b", "-1", "s3://a", "*.bias", "▁the", "a [b]", "x{1}", "it's", "12:30"])
def test_plain_texts(text):
    assert is_plain(text)


@pytest.mark.parametrize(
    "text", ["- a", "? a", "a: b", "a:", "'a'", '"a"', "[a]", "{a", "---", "... a", "a\tb", " a", "!a", "${a}"]
)
def test_texts_that_are_more(text):
    assert not is_plain(text)
