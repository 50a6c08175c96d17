"""Acoustic models from NeMo's ``.nemo`` archives, read as data: no code of an archive ever runs."""

import io
import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from torch import Tensor

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.optim.checkpoint.files import load_plain
from lightning_novograd.recipes.asr.model.jasper import JasperCTC, ModelConfig
from lightning_novograd.recipes.asr.weights.checkpoint import outline
from lightning_novograd.recipes.common.checkpoints.finite import check_finite

CONFIG_MEMBER = "model_config.yaml"
WEIGHTS_MEMBER = "model_weights.ckpt"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_WEIGHTS_BYTES = 8 << 30

# the part of an archive's config that describes the acoustic model; the rest is about training and decoding
_MODEL_KEYS = ("sample_rate", "labels", "preprocessor", "spec_augment", "encoder", "decoder")
# class names are compared, never imported
CLASSES = {
    "preprocessor": "AudioToMelSpectrogramPreprocessor",
    "spec_augment": "SpectrogramAugmentation",
    "encoder": "ConvASREncoder",
    "decoder": "ConvASRDecoder",
}


@dataclass(frozen=True)
class NemoArchive:
    """What a ``.nemo`` archive holds.

    Args:
        path: the file.
        config: its ``model_config.yaml``, plain Python values.
        state_dict: its ``model_weights.ckpt``.
    """

    path: Path
    config: dict[str, Any]
    state_dict: dict[str, Tensor]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read an archive without unpacking it.

        A tar file, plain or compressed, of exactly two files: the config, read with ``yaml.safe_load``, and the
        weights, read with ``torch.load(weights_only=True)``.

        Raises:
            DataError: it is missing or no tar file; it holds a link, a device, a path that leads outside, an unknown
                or repeated file; its config or weights are more than plain data. The message names the member.
        """
        path = Path(path)
        members = _read_members(path)
        return cls(path, _read_config(path, members[CONFIG_MEMBER]), _read_weights(path, members[WEIGHTS_MEMBER]))

    def model_config(self) -> dict[str, Any]:
        """The part that :meth:`JasperCTC.from_config` takes.

        Raises:
            ConfigError: the archive holds another kind of model.
        """
        config: dict[str, Any] = {}
        for name in _MODEL_KEYS:
            section = self.config.get(name)
            if section is None:
                continue
            if name in CLASSES and isinstance(section, dict):
                section = dict(section)
                target = str(section.pop("_target_", CLASSES[name]))
                if target.rpartition(".")[2] != CLASSES[name]:
                    raise ConfigError(
                        f"{self.path.name}:{name}._target_", f"is {target!r}; only {CLASSES[name]} can be read"
                    )
            config[name] = section
        decoder = config.get("decoder")
        if "labels" not in config and isinstance(decoder, dict) and decoder.get("vocabulary"):
            config["labels"] = decoder["vocabulary"]
        return config


def load_nemo(path: str | Path) -> JasperCTC:
    """The acoustic model of a ``.nemo`` archive, with its weights, in eval mode.

    Raises:
        DataError: the archive cannot be read, see :meth:`NemoArchive.read`, or its weights do not fit its config
            or are not finite.
        ConfigError: its config is not one of a Jasper or QuartzNet CTC model.
    """
    archive = NemoArchive.read(path)
    config = ModelConfig.read(archive.model_config(), f"{archive.path.name}:")
    try:
        expected = outline(config, len(archive.state_dict)).state_dict()
    except RuntimeError as error:
        raise DataError(f"{path}: {WEIGHTS_MEMBER} does not fit {CONFIG_MEMBER}: {error}") from None
    problems = [f"lacks {name}" for name in expected if name not in archive.state_dict]
    problems += [f"has an unknown {name}" for name in archive.state_dict if name not in expected]
    problems += [
        f"has {name} of shape {tuple(archive.state_dict[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in archive.state_dict and archive.state_dict[name].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"{path}: {WEIGHTS_MEMBER} does not fit {CONFIG_MEMBER}: it {'; '.join(problems[:5])}{more}")
    check_finite(path, archive.state_dict)
    model = JasperCTC(config)
    model.load_state_dict(archive.state_dict)
    return model.eval()


def _read_members(path: Path) -> dict[str, bytes]:
    limits = {CONFIG_MEMBER: _MAX_CONFIG_BYTES, WEIGHTS_MEMBER: _MAX_WEIGHTS_BYTES}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir() and name in ("", "."):
                    continue
                if name not in limits:
                    raise DataError(f"{path}: unknown member {member.name!r}; allowed: {', '.join(limits)}")
                if not member.isreg():
                    raise DataError(f"{path}: {member.name!r} is a link or a special file, not a regular one")
                if name in contents:
                    raise DataError(f"{path}: {member.name!r} is there twice")
                if member.size > limits[name]:
                    raise DataError(f"{path}: {member.name!r} has {member.size} bytes; at most {limits[name]} are read")
                file = archive.extractfile(member)
                assert file is not None
                contents[name] = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition(":\n")[0]  # else a line for each kind of compression
        raise DataError(f"{path}: is not a .nemo archive, which is a tar file: {reason}") from None
    for name in limits:
        if name not in contents:
            raise DataError(f"{path}: lacks {name}")
    return contents


def _read_config(path: Path, content: bytes) -> dict[str, Any]:
    try:
        config = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: {CONFIG_MEMBER} is not plain YAML: {reason}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: {CONFIG_MEMBER} is not a mapping")
    return config


def _read_weights(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        state_dict = load_plain(io.BytesIO(content))
    except (OSError, DataError) as error:
        raise DataError(f"{path}: {WEIGHTS_MEMBER} is not plain weights: it {error}") from None
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state_dict.items()
    ):
        raise DataError(f"{path}: {WEIGHTS_MEMBER} is not a mapping of names to tensors")
    return dict(state_dict)
