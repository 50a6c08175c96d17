"""`describe --model`: which parameters of a model an optim block puts where."""

import contextlib
import importlib
import inspect
import io
from pathlib import Path
from typing import Any

from torch import nn

from lightning_novograd.config.build import parts_of
from lightning_novograd.config.data import load_yaml, select
from lightning_novograd.config.files import find_blocks
from lightning_novograd.config.optimizers import whole
from lightning_novograd.config.report import group_table
from lightning_novograd.config.several import check_owners, submodule
from lightning_novograd.errors import ConfigError

_OPTION = "--model"
# names of an argument that stands for the whole file
_WHOLE_FILE = ("cfg", "config", "conf")


def describe_model(name: str, config: Path) -> str:
    """The param groups of a model as a table, and the parameters of each; for several blocks, of each block.

    Args:
        name: `module:Class` or `module:function`, which returns a model. What it requires is taken from the file: all
            of it as `cfg`, `config` or `conf`, anything else by its key.
        config: YAML file with the optim block, as `plot-schedule` takes it.

    Raises:
        ConfigError: no such model, or a block that does not fit it.

    """
    document = load_yaml(config)
    blocks, model = find_blocks(document), _model(name, document)
    modules = {name: submodule(model, block) for name, block in blocks.items()}
    parts = {name: parts_of(block, modules[name]) for name, block in blocks.items()}
    optimizers = {name: whole(block, parts[name]) for name, block in blocks.items()}
    left = check_owners(blocks, optimizers, model)
    paragraphs = []
    for name, block in blocks.items():
        names = {parameter: name for name, parameter in modules[name].named_parameters()}
        groups = [group for part in parts[name] for group in part.groups]
        of_module = f", of {block.module}" if block.module != name else ""
        of_block = [f"{name}{of_module}:"] if name else []
        lists = (f"{group.name or 'default'}: {', '.join(names[p] for p in group.params)}" for group in groups)
        paragraphs += ["\n".join([*of_block, group_table(optimizers[name])]), *lists]
    return "\n\n".join([*paragraphs, *([f"no optimizer: {', '.join(left)}"] if left else [])])


def _model(name: str, document: Any) -> nn.Module:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(_OPTION, f"expected module:Class, got {name!r}")
    try:
        make: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            make = getattr(make, part)
        with contextlib.redirect_stdout(io.StringIO()):  # what a model prints is not the table
            model = make(**_required(make, document))
    except Exception as error:  # it is the user's code
        problem = f"{name} cannot be made: {type(error).__name__}: {error}"
        hint = "; name a function without arguments that returns the model" if isinstance(error, TypeError) else ""
        raise ConfigError(_OPTION, problem + hint) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(_OPTION, f"{name}() is a {type(model).__name__}, not a torch.nn.Module")
    return model


def _required(make: Any, document: Any) -> dict[str, Any]:
    """What the file has for arguments without a default; one that it lacks is left to Python's own error."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:  # a class of C
        return {}
    keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in keyword]
    found = {name: document if name in _WHOLE_FILE else select(document, name) for name in required}
    return {name: value for name, value in found.items() if value is not None}
