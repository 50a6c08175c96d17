"""Frozen parameters: which they are, that nothing of them moves in a fit, and the LRs of what is left."""

import copy
import logging

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.data.dataset import Batch
from lightning_novograd.recipes.asr.training.freezing import freeze
from lightning_novograd.recipes.asr.training.module import CTCModule

BLOCK = {"filters": 8, "kernel": 5, "separable": True, "residual": True}
MODEL = {
    "labels": ["a", "b"],
    "preprocessor": {"features": 8},
    "encoder": {"jasper": [{**BLOCK, "stride": 2, "residual": False}, BLOCK]},
}
OPTIM = {"name": "novograd", "lr": 0.1, "sched": {"name": "CosineAnnealing"}}
GENERATOR = torch.Generator().manual_seed(0)
BATCH = Batch(
    0.1 * torch.randn(2, 8000, generator=GENERATOR),
    torch.tensor([8000, 6400]),
    torch.tensor([[0, 1], [1, 0]]),
    torch.tensor([2, 2]),
    ["ab", "ba"],
)


def module(**optim) -> CTCModule:
    torch.manual_seed(0)
    return CTCModule(MODEL, {**OPTIM, **optim}, num_samples=0)


def frozen(module: CTCModule) -> set[str]:
    return {name for name, parameter in module.model.named_parameters() if not parameter.requires_grad}


def fit(module: CTCModule, steps: int = 3) -> pl.Trainer:
    """Training with a validation after every step."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader([BATCH] * steps, batch_size=None)
    trainer.fit(module, loader, loader)
    return trainer


@pytest.mark.parametrize(
    ("patterns", "selected"),
    [
        (["encoder.*"], lambda name: name.startswith("encoder.")),
        (["model.encoder.*"], lambda name: name.startswith("encoder.")),
        (["encoder.encoder.0.*", "*.bias"], lambda name: name.startswith("encoder.encoder.0.") or "bias" in name),
        (["bias", "depthwise"], lambda name: "bias" in name or name.endswith("mconv.0.conv.weight")),
    ],
)
def test_the_words_are_those_of_param_groups(patterns, selected, caplog):
    new = module()
    with caplog.at_level(logging.INFO, logger="lightning_novograd"):
        freeze(new, patterns)
    names = {name for name, _ in new.model.named_parameters()}
    assert frozen(new) == {name for name in names if selected(name)}
    assert 0 < len(frozen(new)) < len(names)
    assert caplog.messages[0].startswith("frozen: ")


def test_a_norm_keeps_its_statistics_where_all_of_it_is_frozen():
    new = module()
    freeze(new, ["encoder.encoder.0.*", "*.bias"])
    norms = {name: norm for name, norm in new.model.named_modules() if isinstance(norm, nn.BatchNorm1d)}
    assert {name.startswith("encoder.encoder.0.") for name in norms} == {True, False}
    assert {name for name, norm in norms.items() if not norm.training} == {
        name for name in norms if name.startswith("encoder.encoder.0.")
    }


def test_nothing_of_a_frozen_encoder_moves_in_a_fit():
    new = module()
    freeze(new, ["encoder.*"])
    before = copy.deepcopy(new.model.state_dict())
    trainer = fit(new)
    moved = {name for name, value in new.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"decoder.decoder_layers.0.weight", "decoder.decoder_layers.0.bias"}
    in_optimizer = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert in_optimizer == {id(parameter) for parameter in new.model.decoder.parameters()}
    assert not any(m.training for m in new.model.encoder.modules() if isinstance(m, nn.BatchNorm1d))


def test_without_freezing_everything_moves():
    new = module()
    before = copy.deepcopy(new.model.state_dict())
    fit(new)
    still = {name for name, value in new.model.state_dict().items() if torch.equal(value, before[name])}
    assert still == {"preprocessor.featurizer.window", "preprocessor.featurizer.fb"}


def test_the_encoder_learns_at_a_tenth_of_the_lr_as_the_readme_says():
    new = module(param_groups=[{"match": "model.encoder.*", "lr_mult": 0.1}])
    trainer = fit(new)
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    ours = {name: {id(p) for p in group["params"]} for name, group in groups.items()}
    assert ours == {
        "default": {id(p) for p in new.model.decoder.parameters()},
        "model.encoder.*": {id(p) for p in new.model.encoder.parameters()},
    }
    [scheduler] = [config.scheduler for config in trainer.lr_scheduler_configs]
    rest, encoder = (groups[name]["lr"] for name in ("default", "model.encoder.*"))
    assert encoder == pytest.approx(0.1 * rest)
    assert scheduler.base_lrs == pytest.approx([0.1, 0.01])


@pytest.mark.parametrize(
    ("patterns", "optim", "problem"),
    [
        (
            ["encodr.*"],
            {},
            "freeze: 'encodr.*' matches no parameter; did you mean 'encoder.*'? The module has: encoder",
        ),
        (["encoder.*", "lost"], {}, "freeze: 'lost' matches no parameter"),
        (["*"], {}, "freeze: * select every parameter: nothing is left to train"),
        (
            ["encoder.*"],
            {"param_groups": [{"match": "model.encoder.*", "lr_mult": 0.1}]},
            "optim.param_groups[0].match: 'model.encoder.*' matches only parameters that `freeze` keeps as they are; "
            "leave out the rule",
        ),
    ],
)
def test_what_can_do_nothing_is_refused(patterns, optim, problem):
    with pytest.raises(ConfigError) as error:
        freeze(module(**optim), patterns)
    assert str(error.value).startswith(problem)


def test_a_rule_for_some_that_are_frozen_and_some_that_are_not():
    new = module(param_groups=[{"match": "*.weight", "lr_mult": 0.5}])
    freeze(new, ["encoder.*"])
    assert frozen(new)
