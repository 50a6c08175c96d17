"""``.nemo`` archives of our models, as NeMo writes and reads them."""

import dataclasses
import io
import tarfile
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_novograd.commands.output import whole_file
from lightning_novograd.recipes.asr.model.blocks import BlockConfig
from lightning_novograd.recipes.asr.model.features import MelConfig
from lightning_novograd.recipes.asr.model.jasper import JasperCTC, ModelConfig
from lightning_novograd.recipes.asr.weights.nemo import CLASSES, CONFIG_MEMBER, WEIGHTS_MEMBER

_MODULES = "nemo.collections.asr.modules"


def write_nemo(model: JasperCTC, path: Path) -> None:
    """Write a model as a ``.nemo`` archive, whole or not at all; the same model gives the same bytes.

    Args:
        model: with the weights.
        path: the file; NeMo wants the suffix ``.nemo``.

    Raises:
        ConfigError: the file cannot be written.
    """
    config = yaml.safe_dump(nemo_config(model.config), sort_keys=False, allow_unicode=True).encode()
    weights = io.BytesIO()
    # clones: what a tensor shares its storage with would be saved too
    torch.save({name: value.detach().cpu().clone() for name, value in model.state_dict().items()}, weights)
    with whole_file(path) as partial, tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in ((CONFIG_MEMBER, config), (WEIGHTS_MEMBER, weights.getvalue())):
            member = tarfile.TarInfo(f"./{name}")  # its mtime is 0, its owner nobody in particular
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def nemo_config(config: ModelConfig) -> dict[str, Any]:
    """The config of a model as NeMo's ``EncDecCTCModel`` takes it."""
    channels = config.layers[-1].block.filters
    return {
        "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
        "sample_rate": config.preprocessor.sample_rate,
        "labels": config.alphabet.labels,
        "ctc_reduction": config.ctc_reduction,
        "preprocessor": _section("preprocessor", _mel(config.preprocessor)),
        "spec_augment": _section("spec_augment", dataclasses.asdict(config.spec_augment)),
        "encoder": _section(
            "encoder",
            {
                "feat_in": config.preprocessor.features,
                "activation": config.encoder.activation,
                "conv_mask": config.encoder.conv_mask,
                "residual_mode": config.encoder.residual_mode,
                "init_mode": config.encoder.init_mode,
                "jasper": [_block(layer.block) for layer in config.layers],
            },
        ),
        "decoder": _section(
            "decoder",
            {
                "feat_in": channels,
                "num_classes": len(config.alphabet),
                "vocabulary": list(config.alphabet.labels),
                "init_mode": config.decoder.init_mode,
            },
        ),
    }


def _section(name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": f"{_MODULES}.{CLASSES[name]}", **values}


def _mel(config: MelConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    for samples, seconds in (("n_window_size", "window_size"), ("n_window_stride", "window_stride")):
        values[seconds if values[samples] else samples] = None  # NeMo refuses both, and seconds have a default
    return values


def _block(config: BlockConfig) -> dict[str, Any]:
    values = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    del values["copies"]  # which only we have
    return values | {name: [values[name]] for name in ("kernel", "stride", "dilation")}
