"""Hyper-parameters are plain data in checkpoints, and OmegaConf objects again when loaded."""

import io
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from tiny_fit import BLOCK, PACKAGES, Net, Step, block, loader, module_of, trainer

from lightning_novograd.errors import DataError
from lightning_novograd.training.attach import attach_optimizers
from lightning_novograd.training.mixin import OptimMixin

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


class WithHparams(OptimMixin, Step, pl.LightningModule):
    def __init__(self, width: int, optim) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.parametrize("make", [lambda cfg: WithHparams(3, cfg.optim), lambda cfg: Net(cfg.optim)])
def test_checkpoints_of_omegaconf_runs_are_plain_data(make, tmp_path):
    cfg = OmegaConf.create({"peak": 0.05, "optim": block(lr="${peak}", larc=True, no_decay=["bias"])})
    run = trainer(max_epochs=1)
    run.fit(make(cfg), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["betas"] == (0.95, 0.25)
    if "hyper_parameters" in saved:
        assert saved["hyper_parameters"] == {"width": 3, "optim": block(lr=0.05, larc=True, no_decay=["bias"])}
        loaded = WithHparams.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
        assert loaded.optim_config == make(cfg).optim_config


CONFIG = {"peak": 0.05, "optim": block(lr="${peak}"), "model": {"width": 3, "kernels": [1, 2]}, "root": Path("data")}
PLAIN = {"peak": 0.05, "optim": block(lr=0.05), "model": {"width": 3, "kernels": [1, 2]}, "root": "data"}


class TheConfigItself(OptimMixin, Step, pl.LightningModule):
    def __init__(self, cfg) -> None:
        super().__init__()
        self.save_hyperparameters(cfg)
        self.width = cfg.model.width


class TheConfigUnderAnotherName(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim, model, peak=None, root=None) -> None:
        super().__init__()
        self.save_hyperparameters(OmegaConf.create({"optim": optim, "model": model}))
        self.width = model.width


class TheConfigAmongOthers(OptimMixin, Step, pl.LightningModule):
    def __init__(self, cfg, depth=1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optim_config = cfg.optim
        self.width, self.depth = cfg.model.width, depth


class Nested(OptimMixin, Step, pl.LightningModule):
    def __init__(self, optim, parts) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width = parts[0]["model"]["width"]


MODULES = {
    "save_hyperparameters(cfg)": (TheConfigItself, lambda cfg: (cfg,), PLAIN),
    "no argument's name": (
        TheConfigUnderAnotherName,
        lambda cfg: (OmegaConf.create(PLAIN["optim"]), cfg.model),
        {"optim": PLAIN["optim"], "model": PLAIN["model"]},
    ),
    "save_hyperparameters()": (TheConfigAmongOthers, lambda cfg: (cfg,), {"cfg": PLAIN, "depth": 1}),
    "nested": (
        Nested,
        lambda cfg: (cfg.optim, [{"model": cfg.model}]),
        {"optim": PLAIN["optim"], "parts": [{"model": PLAIN["model"]}]},
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_omegaconf_hyperparameters_are_plain_in_a_checkpoint_and_omegaconf_again_when_loaded(name, tmp_path):
    cls, arguments, plain = MODULES[name]
    net, path = cls(*arguments(OmegaConf.create(CONFIG))), tmp_path / "last.ckpt"
    run = trainer(max_epochs=1)
    run.fit(net, loader())
    run.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"] == plain

    for loaded in (cls.load_from_checkpoint(path), cls.load_from_checkpoint(io.BytesIO(path.read_bytes()))):
        assert (loaded.width, loaded.optim_config) == (3, net.optim_config)
        assert torch.equal(loaded.layer.weight, net.layer.weight)
    again = cls(*arguments(OmegaConf.create(CONFIG)))
    trainer(max_epochs=1).fit(again, loader(), ckpt_path=path)  # loads with weights_only=True, and has no steps left


class ForeignConfig(Step, pl.LightningModule):
    def __init__(self, cfg, optim=None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.width = cfg.model.width


def test_a_checkpoint_of_an_attached_module_loads_with_its_own_class(tmp_path):
    net = attach_optimizers(ForeignConfig(OmegaConf.create(CONFIG), OmegaConf.create(BLOCK)), BLOCK)
    run = trainer(max_epochs=1)
    run.fit(net, loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert ForeignConfig.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False).width == 3
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["hyper_parameters"]
    assert saved == {"cfg": OmegaConf.create(CONFIG), "optim": BLOCK}
    assert type(saved["optim"]) is dict


def test_arguments_of_load_from_checkpoint_come_first(tmp_path):
    cfg = OmegaConf.create(CONFIG)
    for net in (TheConfigItself(cfg), TheConfigAmongOthers(cfg)):
        run = trainer(max_steps=2)
        run.fit(net, loader())
        run.save_checkpoint(tmp_path / f"{type(net).__name__}.ckpt")
    changed = TheConfigItself.load_from_checkpoint(
        tmp_path / "TheConfigItself.ckpt", model=OmegaConf.create({"width": 5})
    )
    assert (changed.width, changed.hparams.peak) == (5, 0.05)
    other = OmegaConf.create({**CONFIG, "model": {"width": 7}})
    for cls in (TheConfigItself, TheConfigAmongOthers):
        assert cls.load_from_checkpoint(tmp_path / f"{cls.__name__}.ckpt", cfg=other).width == 7
    assert TheConfigAmongOthers.load_from_checkpoint(tmp_path / "TheConfigAmongOthers.ckpt", depth=2).depth == 2


@PACKAGES
def test_a_data_module_and_what_cannot_be_resolved_do_not_spoil_a_checkpoint(package, tmp_path):
    class Data(package.LightningDataModule):
        def __init__(self, cfg):
            super().__init__()
            self.save_hyperparameters(cfg)

        def train_dataloader(self):
            return loader()

    net = module_of(package)
    net.optim_config = BLOCK
    net.save_hyperparameters({"cfg": OmegaConf.create({"missing": "???", "elsewhere": "${nowhere:x}"})})
    run = trainer(package, max_steps=2)
    run.fit(net, Data(OmegaConf.create({"batch": 3, "twice": "${batch}"})))
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"] == {"batch": 3, "twice": 3}
    assert saved["hyper_parameters"] == {"cfg": {"missing": "???", "elsewhere": "${nowhere:x}"}}


def test_an_instance_does_not_load_a_checkpoint():
    with pytest.raises(TypeError, match="load_from_checkpoint returns a new module: call it on the class"):
        Net(BLOCK).load_from_checkpoint("last.ckpt")


# ------------------------------------------------------------------------------------------------- interpolations


class Holds(OptimMixin, Step, pl.LightningModule):
    def __init__(self, cfg, other=None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.cfg = cfg


class IsHeld(OptimMixin, Step, pl.LightningModule):
    def __init__(self, cfg) -> None:
        super().__init__()
        self.save_hyperparameters(cfg)
        self.cfg = cfg


def saved(net, path, **changes):
    run = trainer(max_epochs=1)
    net.optim_config = BLOCK
    run.fit(net, loader())
    run.save_checkpoint(path)
    if changes:
        torch.save({**torch.load(path, weights_only=True), **changes}, path)
    return path


TEXTS = [
    "${HOME}/x",
    r"a\${b}",
    r"\\${b}",
    "${",
    "$${a}",
    "a\\b",
    "${oc.env:HOME}",
    "${a",
    "}${",
    r"\$",
    "${x}${x}",
    "{$}",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_with_a_dollar_comes_back(text, tmp_path):
    """It was resolved when the checkpoint was saved, so it is no interpolation when it is loaded."""
    OmegaConf.register_new_resolver("give", lambda: text, replace=True)
    cfg = OmegaConf.create({"text": "${give:}", "list": ["${text}"]})
    assert cfg.text == text
    for cls in (Holds, IsHeld):
        path = saved(cls(cfg), tmp_path / f"{cls.__name__}.ckpt")
        plain = torch.load(path, weights_only=True)["hyper_parameters"]
        assert (plain.get("cfg") or plain)["text"] == text  # as it is, for whoever reads the file
        loaded = cls.load_from_checkpoint(path)
        assert OmegaConf.to_container(loaded.cfg, resolve=True) == {"text": text, "list": [text]}
        assert OmegaConf.is_config(loaded.cfg)
    OmegaConf.clear_resolver("give")


def hostile(path, cfg, mark):
    """A checkpoint as an old version of this package saved it."""
    content = torch.load(path, weights_only=True)
    content.pop("omegaconf_interpolations", None)
    if mark == "named":
        content.update(omegaconf_hyper_parameters=["cfg"], hyper_parameters={"cfg": cfg})
    elif mark == "whole":
        content.update(omegaconf_hyper_parameters=[""], hyper_parameters={"cfg": cfg})
    else:
        content.update(omegaconf_hyper_parameters=[""], hyper_parameters=cfg, hparams_name="cfg")
    torch.save(content, path)


@pytest.mark.parametrize("mark", ["named", "whole", "one argument"])
@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "a ${run:x} b",
        r"\\${run:x}",
        "${${run:x}}",
        "${a.${oc.env:HOME}}",
        "${run:'${b}'}",
        "${run:${b}}",
        '${run:"}"}',
        "${oc.decode:'3'}",
        "${ run : x }",
        "${run:}",
    ],
)
def test_an_interpolation_of_a_stranger_calls_nothing(text, mark, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "secret")
    called = []
    OmegaConf.register_new_resolver("run", lambda *x: called.append(x), replace=True)
    try:
        path = saved(Holds(OmegaConf.create({"a": 1})), tmp_path / "x.ckpt")
        hostile(path, {"b": "x", "list": [{"deep": text}]}, mark)
        with pytest.raises(DataError, match=r"x\.ckpt: hyper-parameter 'cfg' has the interpolation") as caught:
            Holds.load_from_checkpoint(path)
        assert "allowed: references to other keys, '${key}'; weights_only=False if you trust" in str(caught.value)
        assert not called
        Holds.load_from_checkpoint(path, weights_only=False)
        # what the file says is resolved is a text
        torch.save({**torch.load(path, weights_only=True), "omegaconf_interpolations": []}, path)
        assert Holds.load_from_checkpoint(path).cfg.list[0].deep == text
        assert not called
    finally:
        OmegaConf.clear_resolver("run")


@pytest.mark.parametrize("mark", ["named", "one argument"])
def test_references_to_other_keys_are_followed(mark, tmp_path):
    path = saved(Holds(OmegaConf.create({"a": 1})), tmp_path / "x.ckpt")
    cfg = {
        "width": 3,
        "which": "width",
        "texts": ["${width}", "a ${which} b", "${${which}}", "${texts[0]}", "${ width }"],
    }
    hostile(path, {**cfg, "below": {"up": "${..width}", "escaped": r"\${oc.env:HOME}"}}, mark)
    loaded = Holds.load_from_checkpoint(path).cfg
    assert list(loaded.texts) == [3, "a width b", 3, 3, 3]
    assert (loaded.below.up, loaded.below.escaped) == (3, "${oc.env:HOME}")


def test_what_could_not_be_resolved_is_kept(tmp_path):
    cfg = OmegaConf.create({"a": 1, "b": "${a}", "elsewhere": "${nowhere}"})
    path = saved(Holds(cfg, other=OmegaConf.create({"text": r"\${a}"})), tmp_path / "x.ckpt")
    content = torch.load(path, weights_only=True)
    assert (content["omegaconf_hyper_parameters"], content["omegaconf_interpolations"]) == (["cfg", "other"], ["cfg"])
    loaded = Holds.load_from_checkpoint(path)
    assert (loaded.cfg.b, loaded.hparams.other.text) == (1, "${a}")
    content["omegaconf_interpolations"] = 3
    torch.save(content, path)
    with pytest.raises(DataError, match="omegaconf_interpolations must be a list of texts, found 3"):
        Holds.load_from_checkpoint(path)


@pytest.mark.parametrize("resolved", [[], ["cfg"]], ids=["resolved", "interpolations"])
def test_nested_without_end_is_refused(resolved, tmp_path):
    path = saved(Holds(OmegaConf.create({"a": 1})), tmp_path / "x.ckpt")
    endless: list = []
    endless.append(endless)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "hyper_parameters": {"cfg": endless}, "omegaconf_interpolations": resolved}, path)
    with pytest.raises(DataError, match="hyper-parameter 'cfg' is nested too deeply"):
        Holds.load_from_checkpoint(path)


def test_a_file_of_hyper_parameters_has_references_only(tmp_path):
    path, hparams = saved(Holds(OmegaConf.create({"a": 1})), tmp_path / "x.ckpt"), tmp_path / "hparams.yaml"
    hparams.write_text("cfg: {width: 3, twice: '${cfg.width}'}\n")
    assert Holds.load_from_checkpoint(path, hparams_file=hparams).cfg.twice == 3
    for text, kind in (("", "NoneType"), ("- a\n", "list")):
        hparams.write_text(text)
        with pytest.raises(DataError, match=f"hyper_parameters must be a dict, found {kind}"):
            Holds.load_from_checkpoint(path, hparams_file=hparams)
    hparams.write_text("cfg: {width: ['${oc.env:HOME}']}\n")
    with pytest.raises(
        DataError, match=r"hparams\.yaml: hyper-parameter 'cfg' has the interpolation '\$\{oc\.env:HOME"
    ):
        Holds.load_from_checkpoint(path, hparams_file=hparams)
