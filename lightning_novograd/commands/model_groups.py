"""`describe --model`: which parameters of a model an optim block puts where."""

import contextlib
import importlib
import io
from pathlib import Path
from typing import Any

from torch import nn

from lightning_novograd.commands.plot_schedule import find_optim
from lightning_novograd.config.data import load_yaml
from lightning_novograd.config.optimizers import build_parts, whole
from lightning_novograd.config.report import group_table
from lightning_novograd.errors import ConfigError
from lightning_novograd.optim.param_groups import build_param_groups

_OPTION = "--model"


def describe_model(name: str, config: Path) -> str:
    """The param groups of a model as a table, and the parameters of each.

    Args:
        name: `module:Class` or `module:function`, which is called without arguments and returns a model.
        config: YAML file with the optim block, as `plot-schedule` takes it.

    Raises:
        ConfigError: no such model, or a block that does not fit it.

    """
    optim = find_optim(load_yaml(config))
    model = _model(name)
    groups = build_param_groups(model, optim.param_groups, optim.no_decay, optim.path, optim.layer_decay)
    optimizer = whole(optim, build_parts(optim, groups))
    names = {parameter: name for name, parameter in model.named_parameters()}
    lists = (f"{group.name or 'default'}: {', '.join(names[p] for p in group.params)}" for group in groups)
    return "\n\n".join([group_table(optimizer), *lists])


def _model(name: str) -> nn.Module:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(_OPTION, f"expected module:Class, got {name!r}")
    try:
        make: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            make = getattr(make, part)
        with contextlib.redirect_stdout(io.StringIO()):  # what a model prints is not the table
            model = make()
    except Exception as error:  # it is the user's code
        problem = f"{name} cannot be made: {type(error).__name__}: {error}"
        hint = "; name a function without arguments that returns the model" if isinstance(error, TypeError) else ""
        raise ConfigError(_OPTION, problem + hint) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(_OPTION, f"{name}() is a {type(model).__name__}, not a torch.nn.Module")
    return model
