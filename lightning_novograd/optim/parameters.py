"""The parameters that optimizers are given."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def listed_params(param_group: dict[str, Any]) -> list[Any]:
    """The parameters of a group that is to be added; an iterator in it is replaced by the list of what it gave."""
    params = param_group["params"]
    if isinstance(params, Tensor | set):  # torch refuses sets
        return [params] if isinstance(params, Tensor) else []
    param_group["params"] = list(params)
    return [entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry for entry in param_group["params"]]


def known_shape(param: Tensor) -> torch.Size | None:
    """The shape of a parameter; None for one of a lazy module, which gets it in its first forward."""
    return None if is_lazy(param) else param.shape
