"""What every key of the recipe's config may be, and what it is if it is not given, written out once more.

A limit that moves makes a config that trained yesterday an error, or lets a value through that fails in the middle of a
run; a default that moves changes runs in silence. NeMo's own keys have NeMo's defaults.
"""

import dataclasses
import importlib
import pkgutil
import sys

import pytest

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes import asr
from lightning_novograd.recipes.asr.data.corpora import an4, librispeech
from lightning_novograd.recipes.asr.training.settings import EarlyStoppingSettings
from lightning_novograd.recipes.common import settings
from lightning_novograd.recipes.common.section import Section, _checked
from lightning_novograd.recipes.common.settings.distributed import DistributedSettings, PowerSgdSettings
from lightning_novograd.recipes.common.settings.large_batch import ReferenceSettings
from lightning_novograd.recipes.common.settings.run import ConsoleSettings, NonFiniteSettings, WatchdogSettings

ROOMS = (asr, settings)
REQUIRED = dataclasses.MISSING
INITIALIZERS = ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", None]
# key -> default and limits, of the config of every run
COMMON = {
    "model": (REQUIRED, {}),
    "data": (REQUIRED, {}),
    "optim": (REQUIRED, {}),
    "trainer": (REQUIRED, {}),
    "logger": (REQUIRED, {}),
    "checkpoint": (REQUIRED, {}),
    "large_batch": (REQUIRED, {}),
    "distributed": (DistributedSettings(), {}),
    "nonfinite": (NonFiniteSettings(), {}),
    "watchdog": (WatchdogSettings(), {}),
    "console": (ConsoleSettings(), {}),
    "seed": (1, {"low": 0}),
    "resume": (None, {"allowed": ["auto", None]}),
    "resume_from": (None, {}),
    "layer_monitor": (None, {"low": 1}),
}
# section -> key -> the same
KEYS = {
    "An4Options": {
        "root": (None, {}),
        "url": (an4.URL, {}),
        "sha256": (None, {}),
        "dev_size": (100, {"low": 1, "high": 800}),
    },
    "AugmentConfig": {
        "speed": (None, {}),
        "noise": (None, {}),
    },
    "BlockConfig": {
        "filters": (REQUIRED, {"low": 1, "high": 65536}),
        "kernel": (REQUIRED, {"low": 1, "high": 65536, "single": True}),
        "residual": (REQUIRED, {}),
        "repeat": (1, {"low": 1, "high": 1000}),
        "stride": (1, {"low": 1, "high": 1000, "single": True}),
        "dilation": (1, {"low": 1, "high": 65536, "single": True}),
        "dropout": (0.0, {"low": 0.0, "below": 1.0}),
        "separable": (False, {}),
        "groups": (1, {"low": 1}),
        "heads": (-1, {"low": -1}),
        "residual_dense": (False, {}),
        "residual_mode": (None, {"allowed": ["add", "stride_add", None]}),
        "stride_last": (False, {}),
        "kernel_size_factor": (1.0, {"above": 0.0, "high": 1000.0}),
        "copies": (1, {"low": 1, "high": 1000}),
    },
    "CheckpointSettings": {
        "save_top_k": (2, {"low": -1}),
        "every_n_steps": (None, {"low": 1}),
        "test": ("last", {"allowed": ["last", "best"]}),
        "average": (None, {"low": 2}),
    },
    "ConsoleSettings": {
        "interval": (30.0, {"above": 0.0}),
    },
    "DecoderConfig": {
        "feat_in": (None, {"low": 1}),
        "num_classes": (None, {"low": -1}),
        "vocabulary": (None, {}),
        "init_mode": ("xavier_uniform", {"allowed": INITIALIZERS}),
    },
    "DistributedSettings": {
        "process_group_timeout": (1800.0, {"above": 0.0, "high": 1e7}),
        "bucket_cap_mb": (None, {"above": 0.0}),
        "gradient_as_bucket_view": (False, {}),
        "static_graph": (False, {}),
        "comm_hook": (None, {"allowed": ["bf16", "fp16", "powersgd", None]}),
        "comm_wrapper": (None, {"allowed": ["bf16", "fp16", None]}),
        "powersgd": (PowerSgdSettings(), {}),
    },
    "EarlyStoppingSettings": {
        "patience": (None, {"low": 1}),
        "min_delta": (0.0, {"low": 0.0}),
        "monitor": ("dev_wer", {"allowed": ["dev_wer", "dev_cer", "dev_loss"]}),
    },
    "EncoderConfig": {
        "jasper": (REQUIRED, {}),
        "activation": ("relu", {"allowed": ["relu", "hardtanh", "selu", "swish", "silu", "gelu", "identity"]}),
        "feat_in": (None, {"low": 1}),
        "conv_mask": (True, {}),
        "residual_mode": ("add", {"allowed": ["add", "stride_add"]}),
        "init_mode": ("xavier_uniform", {"allowed": INITIALIZERS}),
    },
    "EspeakOptions": {
        "seed": (2020, {}),
        "train_size": (3200, {"low": 1}),
        "dev_size": (200, {"low": 1}),
        "test_size": (200, {"low": 1}),
        "letters": (0.25, {"low": 0.0, "high": 1.0}),
    },
    "FsddOptions": {
        "root": (None, {}),
        "seed": (2020, {}),
        "train_size": (2000, {"low": 1}),
        "dev_size": (200, {"low": 1}),
        "test_size": (200, {"low": 1}),
    },
    "LargeBatchSettings": {
        "global_batch_size": (None, {"low": 1}),
        "max_per_device_batch_size": (None, {"low": 1}),
        "reference": (ReferenceSettings(), {}),
        "lr_scaling": (None, {"allowed": ["linear", "sqrt", "none", None]}),
        "warmup_ratio": (None, {"low": 0.0, "high": 1.0}),
        "last": ("drop", {"allowed": ["drop", "keep"]}),
    },
    "LibriSpeechOptions": {
        "root": (None, {}),
        "train": (("train-clean-100", "train-clean-360", "train-other-500"), {}),
        "dev": ("dev-clean", {"allowed": list(librispeech.PARTS)}),
        "test": ("test-clean", {"allowed": [*librispeech.PARTS, None]}),
        "also": (("dev-other", "test-other"), {}),
        "mirror": ("https://www.openslr.org/resources/12", {}),
        "jobs": (3, {"low": 1, "high": 16}),
    },
    "LoadingConfig": {
        "cache_dir": ("~/.cache/lightning_novograd", {}),
        "batch_size": (32, {"low": 1}),
        "batch_seconds": (None, {"above": 0.0}),
        "eval_batch_size": (None, {"low": 1}),
        "bucket_steps": (10, {"low": 1}),
        "num_workers": (0, {"low": 0}),
        "cache_audio": (False, {}),
        "min_duration": (None, {"low": 0.0}),
        "max_duration": (None, {"above": 0.0}),
        "downmix": (False, {}),
    },
    "ManifestOptions": {
        "train": (None, {}),
        "dev": (None, {}),
        "test": (None, {}),
    },
    "WatchdogSettings": {
        "timeout": (600.0, {"low": 1.0}),
    },
    "WeightedManifest": {
        "manifest_filepath": (REQUIRED, {}),
        "weight": (1.0, {"above": 0.0, "high": 1000.0}),
    },
    "MelConfig": {
        "sample_rate": (16000, {"low": 1, "high": 1_000_000}),
        "window_size": (0.02, {"above": 0, "high": 10.0}),
        "window_stride": (0.01, {"above": 0, "high": 10.0}),
        "n_window_size": (None, {"low": 1, "high": 1 << 20}),
        "n_window_stride": (None, {"low": 1, "high": 1 << 20}),
        "window": ("hann", {"allowed": ["hann", "hamming", "blackman", "bartlett"]}),
        "features": (64, {"low": 1, "high": 4096}),
        "n_fft": (None, {"low": 1, "high": 1 << 20}),
        "normalize": ("per_feature", {"allowed": ["per_feature", "all_features", None]}),
        "dither": (1e-05, {"low": 0}),
        "preemph": (0.97, {}),
        "pad_to": (16, {"low": 0, "high": 1 << 20}),
        "exact_pad": (False, {}),
        "lowfreq": (0.0, {"low": 0}),
        "highfreq": (None, {"above": 0}),
        "log": (True, {}),
        "log_zero_guard_type": ("add", {"allowed": ["add", "clamp"]}),
        "log_zero_guard_value": (5.960464477539063e-08, {"above": 0}),
    },
    "NonFiniteSettings": {
        "action": ("raise", {"allowed": ["raise", "skip"]}),
        "max_consecutive": (10, {"low": 1}),
    },
    "NormalizeConfig": {
        "case": (None, {"allowed": ["lower", "upper", None]}),
        "unicode": (None, {"allowed": ["NFC", "NFD", "NFKC", "NFKD", None]}),
    },
    "PowerSgdSettings": {
        "rank": (1, {"low": 1, "high": 1024}),
        "start_step": (1000, {"low": 2}),
        "min_compression_rate": (2.0, {"low": 1.0}),
        "epsilon": (1e-8, {"low": 0.0, "below": 1.0}),
    },
    "PublishedSettings": {
        "source": (REQUIRED, {}),
        "wer": (REQUIRED, {}),
    },
    "ReferenceSettings": {
        "global_batch_size": (None, {"low": 1}),
        "lr": (None, {"above": 0.0}),
    },
    "CommonSettings": COMMON,
    "RunSettings": {
        **COMMON,
        "init_from": (None, {}),
        "freeze": (None, {}),
        "early_stopping": (EarlyStoppingSettings(), {}),
        "num_samples": (3, {"low": 0}),
        "published": (None, {}),
    },
    "NoiseConfig": {
        "prob": (0.5, {"low": 0, "high": 1}),
        "min_snr_db": (10.0, {"low": -20, "high": 100}),
        "max_snr_db": (30.0, {"low": -20, "high": 100}),
        "manifest": (None, {}),
    },
    "SpecAugmentConfig": {
        "freq_masks": (0, {"low": 0, "high": 1000}),
        "freq_width": (10, {"low": 0}),
        "time_masks": (0, {"low": 0, "high": 1000}),
        "time_width": (10, {"low": 0}),
        "rect_masks": (0, {"low": 0, "high": 1000}),
        "rect_freq": (20, {"low": 0}),
        "rect_time": (5, {"low": 0}),
    },
}

# what NeMo knows besides, with the only value that it may have here
FIXED = {
    "BlockConfig": {"se": False, "future_context": -1},
    "DecoderConfig": {"add_blank": True},
    "EncoderConfig": {"normalization_mode": "batch", "norm_groups": -1, "frame_splicing": 1, "quantize": False},
    "MelConfig": {
        "frame_splicing": 1,
        "mag_power": 2.0,
        "pad_value": 0,
        "mel_norm": "slaney",
        "rng": None,
        "nb_augmentation_prob": 0.0,
        "nb_max_freq": 4000,
        "use_torchaudio": False,
        "stft_exact_pad": False,
        "stft_conv": False,
    },
    "SpecAugmentConfig": {"mask_value": 0.0, "rng": None, "use_numba_kernel": True},
}


def sections() -> dict[str, type[Section]]:
    """Every section of the recipe; tests and docstrings' examples may have defined others."""
    for package in ROOMS:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("worker"):
                importlib.import_module(module.name)

    def below(cls: type) -> list[type]:
        return [sub for direct in cls.__subclasses__() for sub in (direct, *below(direct))]

    own = [cls for cls in below(Section) if cls.__module__.startswith(tuple(package.__name__ for package in ROOMS))]
    return {cls.__name__: cls for cls in own if getattr(sys.modules[cls.__module__], cls.__name__, None) is cls}


def test_every_key_is_in_the_table():
    found = {name: [field.name for field in dataclasses.fields(cls)] for name, cls in sections().items()}
    assert found == {name: list(keys) for name, keys in KEYS.items()}


@pytest.mark.parametrize("name", KEYS)
def test_defaults(name):
    fields = dataclasses.fields(sections()[name])
    assert {field.name: field.default for field in fields} == {key: default for key, (default, _) in KEYS[name].items()}


def test_keys_with_one_value():
    assert {name: cls.fixed for name, cls in sections().items() if cls.fixed} == FIXED


# a limit -> the nearest values on either side of it: allowed, refused
EDGES = {
    "low": lambda low: (low, low - 1),
    "above": lambda above: (above + 1e-6, above),
    "high": lambda high: (high, high + 1e-6),
    "below": lambda below: (below - 1e-6, below),
}
LIMITS = [(name, key, limits) for name, keys in KEYS.items() for key, (_, limits) in keys.items()]


@pytest.mark.parametrize(("name", "key", "limits"), LIMITS, ids=lambda value: value if isinstance(value, str) else "")
def test_limits(name, key, limits):
    cls = sections()[name]
    (field,) = [field for field in dataclasses.fields(cls) if field.name == key]

    def check(value):
        return _checked(value, int | float | str | None, field.metadata, key)

    for limit, edge in EDGES.items():
        if limit in limits:
            allowed, refused = edge(limits[limit])
            assert check(allowed) == allowed
            with pytest.raises(ConfigError, match=f"^{key}: must be ") as error:
                check(refused)
            assert str(limits[limit]) in error.value.problem
    assert ("allowed" in limits) == (field.metadata.get("allowed") is not None)
    if "allowed" in limits:
        assert [check(value) for value in limits["allowed"]] == limits["allowed"]
        with pytest.raises(ConfigError, match="'another' is unknown"):
            check("another")
    assert bool(limits.get("single")) == field.metadata.get("single", False)
    for limit in ("low", "above", "high", "below"):
        assert (field.metadata.get(limit) is None) == (limit not in limits), "a limit that the table lacks"
