"""Several optim blocks by name, for models that step several optimizers themselves."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_novograd.config.build import build, dry_build
from lightning_novograd.config.data import to_plain
from lightning_novograd.config.length import Length
from lightning_novograd.config.parse.optim import parse_block
from lightning_novograd.config.refusals import refuse_keys
from lightning_novograd.config.schema import OPTIM_KEYS, OptimConfig
from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.optim.wrappers import unwrapped

log = rank_zero_logger(__name__)

_OF_ONE_OPTIMIZER = {
    "ema": "the average is of the whole model, once per step of its one optimizer; here are several",
    "large_batch": "it accumulates for one optimizer that Lightning steps; here are several",
}


def parse_blocks(cfg: Any, path: str = "optim") -> dict[str, OptimConfig]:
    """The optim blocks of `cfg` by name; a single block has the name "".

    Args:
        cfg: one block, or a mapping of names to blocks, each for the submodule of its name or of its key `module`.
        path: in the config, for errors.

    Raises:
        ConfigError: as `parse_optim`.

    """
    if isinstance(cfg, OptimConfig):
        return {"": cfg}
    values = to_plain(cfg, path)
    blocks = {name: (block, f"{path}.{name}") for name, block in values.items()} if _are_several(values) else {}
    configs = {}
    for name, (block, where) in (blocks or {"": (values, path)}).items():
        given = block if not name or block.get("module") is not None else {**block, "module": name}
        configs[name] = parse_block(given, where)
        if name:
            refuse_keys(configs[name], _OF_ONE_OPTIMIZER)
        dry_build(configs[name])
    return configs


def _are_several(values: Any) -> bool:
    """Whether every value is a block; a single block that lacks its name has keys that blocks have.

    Of a whole config, given by mistake, `optim` is a block and what stands beside it is not.
    """
    return (
        isinstance(values, Mapping)
        and bool(values)
        and not values.keys() & {"name", "args", *OPTIM_KEYS}
        and all(isinstance(block, Mapping) for block in values.values())
        and ("optim" not in values or all(block.keys() & {"name", "_target_"} for block in values.values()))
    )


def build_blocks(
    configs: Mapping[str, OptimConfig], module: nn.Module, length_of: Callable[[OptimConfig], Length]
) -> dict[str, dict[str, Any]]:
    """What `build_optimizers` returns, for each block.

    Args:
        configs: the blocks.
        module: the whole model.
        length_of: the length of the run, counted in steps of this block's optimizer.

    Raises:
        ConfigError: a block does not fit its submodule, or two blocks have a parameter in common.

    """
    built = {name: build(config, submodule(module, config), length_of(config)) for name, config in configs.items()}
    left = check_owners(configs, {name: of_one["optimizer"] for name, of_one in built.items()}, module)
    if left and any(config.module for config in configs.values()):
        log.warning("no optimizer takes %d parameters: %s", len(left), ", ".join(left[:8]) + ", ..." * (len(left) > 8))
    return built


def check_owners(
    configs: Mapping[str, OptimConfig], optimizers: Mapping[str, Optimizer], module: nn.Module
) -> list[str]:
    """The names of the parameters that none of the blocks' optimizers has.

    Raises:
        ConfigError: two have a parameter in common.

    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    owners: dict[nn.Parameter, OptimConfig] = {}
    for name, config in configs.items():
        for group in optimizers[name].param_groups:
            for parameter in group["params"]:
                other = owners.setdefault(parameter, config)
                if other is not config:
                    problem = (
                        f"{names[parameter]!r} is optimized by {other.path} already; a parameter has one optimizer"
                    )
                    raise ConfigError(f"{config.path}.module", problem)
    return [name for parameter, name in names.items() if parameter.requires_grad and parameter not in owners]


def submodule(module: nn.Module, config: OptimConfig) -> nn.Module:
    """The part of `module` whose parameters the block optimizes.

    Raises:
        ConfigError: there is no such submodule.

    """
    found: nn.Module | None = module
    for name in config.module.split(".") if config.module else ():
        if found is not None:  # not by attributes, as `get_submodule`: a property's code would run
            found = found._modules.get(name) or unwrapped(found)._modules.get(name)
    if found is None:
        allowed = [name for name, _ in module.named_children()]
        problem = f"{type(module).__name__} has no submodule {config.module!r}{choices(config.module, allowed)}"
        if config.path.endswith(".optim"):
            problem += "; if this is a whole config, give what is in its key 'optim'"
        raise ConfigError(f"{config.path}.module", problem)
    return found
