"""The optimizers with LARC, and the schedules, inside NeMo models: by name, in NeMo's own ``optim:`` block.

::

    from lightning_novograd.integrations import nemo

    nemo.register()  # before the trainer fits

    optim:
      name: lightning_novograd
      lr: 0.05
      betas: [0.95, 0.25]
      larc: {trust_coefficient: 0.001}
      sched: {name: lightning_CosineAnnealing, warmup_steps: 1000}

NeMo groups the parameters (``optim_param_groups``), counts the steps of the run and clips gradients as it always does.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer

from lightning_novograd.config import parse_optim
from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.config.optimizers import around, new_optimizer
from lightning_novograd.errors import ConfigError
from lightning_novograd.registry import Entry, available_optimizers, available_schedulers, get_optimizer, get_scheduler

PREFIX = "lightning_"

# what the optim block has for modules whose parameters and trainer we see
_NOT_HERE = {
    "no_decay": "NeMo makes the param groups; use model.optim_param_groups",
    "param_groups": "NeMo makes the param groups; use model.optim_param_groups",
    "layer_decay": "NeMo makes the param groups; use model.optim_param_groups",
    "module": "NeMo optimizes the whole model; use model.optim_param_groups",
    "grad_clip_norm": "NeMo leaves clipping to the trainer; use trainer.gradient_clip_val",
    "grad_clip_value": "NeMo leaves clipping to the trainer; use trainer.gradient_clip_val",
    "ema": "NeMo averages weights itself; use exp_manager.ema",
    "large_batch": "NeMo leaves accumulation to the trainer; use trainer.accumulate_grad_batches",
}


def register(replace: bool = False) -> list[str]:
    """Make this package's optimizers and schedules known to NeMo.

    Every registered optimizer becomes ``lightning_<name>`` in lower case (``lightning_novograd``, ``lightning_sgd``,
    ...) and takes the key ``larc``; every schedule of this package becomes ``lightning_<name>``
    (``lightning_CosineAnnealing``, ...). NeMo's own names stay NeMo's. Optimizer arguments may be flat or in NeMo's
    form ``args: {name: auto, params: {...}}``; schedule arguments must be flat, since NeMo 3.0.0 drops them in that
    form, for its own schedules too. May be called again, after a plugin has registered more.

    Args:
        replace: also take over ``novograd`` and the schedules under NeMo's own names, so that existing configs use this
            package without a change.

    Returns:
        The names that NeMo now resolves to this package.

    Raises:
        ImportError: NeMo (``nemo_toolkit``) is not installed.

    """
    from nemo.core.config.optimizers import AVAILABLE_OPTIMIZER_PARAMS, OptimizerParams
    from nemo.core.config.schedulers import AVAILABLE_SCHEDULER_PARAMS, SchedulerParams
    from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS
    from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS

    # The tables are filled directly: NeMo's register functions refuse replacing, and file the parameters of
    # `args: {name: auto}` under the class's name although they are looked up under the registered one.
    registered = []
    for entry in map(get_optimizer, available_optimizers()):
        name = entry.name.lower()
        for known_as in _names(name, replace and name == "novograd"):
            AVAILABLE_OPTIMIZERS[known_as] = _optimizer_builder(entry.name)
            AVAILABLE_OPTIMIZER_PARAMS[f"{known_as}_params"] = _params_class(entry, OptimizerParams, larc=None)
            registered.append(known_as)
    for entry in map(get_scheduler, available_schedulers()):
        if entry.cls.__module__.startswith("lightning_novograd."):
            for known_as in _names(entry.name, replace):
                AVAILABLE_SCHEDULERS[known_as] = entry.cls
                AVAILABLE_SCHEDULER_PARAMS[f"{known_as}Params"] = _params_class(entry, SchedulerParams)
                registered.append(known_as)
    return registered


def _names(name: str, replace: bool) -> list[str]:
    return [PREFIX + name, name] if replace else [PREFIX + name]


def _optimizer_builder(name: str) -> Callable[..., Optimizer]:
    """What NeMo calls instead of a class: it may pass OmegaConf lists, which must not end in a state_dict."""

    def build(params: Iterable[Any], **block: Any) -> Optimizer:
        config = parse_optim({"name": name, **block})
        for key, instead in _NOT_HERE.items():
            if getattr(config, key):
                raise ConfigError(f"{config.path}.{key}", instead)
        return around(new_optimizer(config.optimizer, list(params)), config.larc, config.path)

    return build


def _params_class(entry: Entry, base: type, **more: Any) -> type:
    """The dataclass of defaults that NeMo merges ``args.params`` into."""
    inherited = {field.name for field in dataclasses.fields(base)}
    defaults = {name: argument.default for name, argument in entry_arguments(entry).items() if not argument.required}
    fields = [(key, Any, value) for key, value in (defaults | more).items() if key not in inherited]
    return dataclasses.make_dataclass(f"{entry.name}Params", fields, bases=(base,))
