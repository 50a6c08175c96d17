"""What differs between settings of a checkpoint and of a config, in words."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def differences(key: str, saved: list[Any], config: list[Any]) -> list[str]:
    """What differs in which param group; without the group where all differ alike."""
    pairs = zip(saved, config, strict=True)
    texts = ["" if _same(old, new) else f"{key} {shown(old)} (config: {shown(new)})" for old, new in pairs]
    if len(set(texts)) == 1:
        return [texts[0]] if texts[0] else []
    return [f"param group {index}: {text}" for index, text in enumerate(texts) if text]


def shown(value: Any) -> str:
    """A setting as messages have it."""
    value = _plain(value)
    return f"{value:.6g}" if isinstance(value, float) else f"{value}"


def _same(old: Any, new: Any) -> bool:
    old, new = _plain(old), _plain(new)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-6)  # an LR tensor may be float32
    return bool(old == new)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):  # MultiStepLR's Counter
        return sorted(value.items())
    return list(value) if isinstance(value, tuple) else value
