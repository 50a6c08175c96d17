"""The optim block as a module is given it: in code, by LightningCLI (numbers may be text), by Lightning's LR finder."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from lightning_novograd.config import OptimConfig
from lightning_novograd.config.arguments import of_command_line
from lightning_novograd.config.optimizers import learning_rate
from lightning_novograd.config.schedules.composed import leaves
from lightning_novograd.config.several import parse_blocks
from lightning_novograd.errors import ConfigError
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.lr_scheduler.pytorch import own_lrs
from lightning_novograd.training.watchers import Watcher

log = rank_zero_logger(__name__)

_KEPT = "jsonargparse keeps only the last of several options {}.KEY; write one"


def parse_assigned(cfg: Any, by_cli: bool) -> dict[str, OptimConfig]:
    """The blocks of `cfg` by name; of those `by_cli`, texts are read as numbers where numbers are wanted.

    Raises:
        ConfigError: a block does not parse, or it lacks what the command line gives.

    """
    if not by_cli:
        return parse_blocks(cfg)
    _check_all_there(cfg)
    try:
        with of_command_line():
            return parse_blocks(cfg)
    except ConfigError as error:
        # what a program handed to its CLI is not in sys.argv
        if error.path.count(".") > 1 and error.problem.startswith("missing"):
            whole = error.path.rpartition(".")[0]
            raise ConfigError(
                error.path, f"{error.problem} On a command line, {_KEPT.format(f'--model.{whole}')}"
            ) from error
        raise


def _check_all_there(cfg: Any) -> None:
    """Refuse a block that jsonargparse has lost something of.

    Of `--model.optim.sched.name=cosine --model.optim.sched.warmup_steps=10` it keeps the last alone.
    """
    for prefix, given in _nested_options().items():
        key = prefix.rpartition(".")[2]
        kept = cfg.get(key) if isinstance(cfg, Mapping) else None
        if not isinstance(kept, Mapping) or list(given)[-1] not in kept:
            continue
        if (lost := next((name for name in given if name not in kept), None)) is not None:
            whole = ", ".join(f"{name}: {value}" for name, value in given.items())
            problem = f"{given[lost]}, which got lost: {_KEPT.format(prefix)}: {prefix}='{{{whole}}}'"
            raise ConfigError(f"optim.{key}.{lost}", problem)


def _nested_options() -> dict[str, dict[str, str]]:
    """Options such as `--model.optim.sched.name=cosine`: `{"--model.optim.sched": {"name": "cosine"}}`."""
    found: dict[str, dict[str, str]] = {}
    for option, value in _options():
        prefix, _, name = option.rpartition(".")
        if prefix.count(".") >= 2:
            found.setdefault(prefix, {}).pop(name, None)  # the last comes last
            found[prefix][name] = value
    return found


def _options() -> Iterator[tuple[str, str]]:
    for word, following in pairwise([*sys.argv, ""]):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            yield option, value if equals else following


def built_by_cli(lightning: str | None) -> bool:
    """Whether LightningCLI is building a module right now; `lightning` is the package that the module is of."""
    mixins = sys.modules.get(f"{lightning}.core.mixins.hparams_mixin")
    given = getattr(mixins, "_given_hyperparameters", None)
    return given is not None and given.get() is not None


class BlockLr:
    """The attribute `lr` of a module with a single block: the block's, unless the module has an `lr` of its own.

    Lightning's LR finder wants an attribute of that name. It is the module's own where its class or its base defines
    one, where its code sets one (`self.lr = lr`, in `__init__` or elsewhere), or where it is a parameter, a buffer or a
    submodule. Whoever else sets it sets the block's.
    """

    def __get__(self, module: Any, cls: type) -> Any:
        if module is None:
            return self
        if "lr" in vars(module):
            return vars(module)["lr"]
        registered = any("lr" in vars(module).get(kind, ()) for kind in ("_parameters", "_buffers", "_modules"))
        if registered or not module._has_block or "" not in module.optim_configs:
            # torch's __getattr__ comes next
            raise AttributeError(f"{cls.__name__} has no single optim block, whose lr this would be")
        return learning_rate(module.optim_configs[""])

    def __set__(self, module: Any, lr: Any) -> None:
        if "lr" in vars(module) or _sets_itself(module):
            vars(module)["lr"] = lr
        else:
            set_lr(module, lr)

    def __delete__(self, module: Any) -> None:
        if vars(module).pop("lr", self) is self:
            raise AttributeError("lr")


def _sets_itself(module: Any) -> bool:
    """Whether the code that sets an attribute is a method of `module`; two calls below."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return bool(arguments) and frame.f_locals.get(arguments[0]) is module


def set_lr(module: Any, lr: float) -> None:
    """Write `lr` into the single block of `module`.

    Raises:
        ConfigError: it has several, or none.

    """
    if "" not in module.optim_configs:
        raise ConfigError("optim", f"there is no single lr: the blocks are {', '.join(module.optim_configs)}")
    config = module.optim_configs[""]
    module.optim_config = replace(config, args={**config.args, "lr": lr})
    for leaf in (leaf for sched in config.scheds for leaf in leaves(sched)):
        own = " and ".join(own_lrs(leaf.entry.cls))
        if own or not getattr(leaf.entry.cls, "uses_base_lr", True):
            problem = (
                f"{leaf.name} sets LRs of its own ({own or 'its formula'}): the block's lr of {lr:.6g} is not seen"
            )
            warnings.warn(f"{leaf.path}: {problem}", UserWarning, stacklevel=3)


class Unused(Watcher):
    """Says that nothing is built of the block; `OptimMixin.configure_optimizers`, if it runs, takes it away."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """What was called instead is over."""
        log.warning(
            "%s.configure_optimizers does not call super().configure_optimizers(): its optim block is not used; delete "
            "the method, or take the optimizer and the schedule from super()'s",
            type(pl_module).__name__,
        )


class FoundLr(Watcher):
    """Takes what Lightning's LR finder has found into the block, whatever attribute the finder sets."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The finder is a callback of this fit, whose optimizers and schedules are built already."""
        lr = _found(trainer)
        if lr is not None and (trainer.lr_scheduler_configs or len(trainer.optimizers[0].param_groups) > 1):
            warnings.warn(
                f"LearningRateFinder has set the LR of all param groups to {lr:.6g}, and schedules go on from those of "
                "the optim block as it was; find the LR before the fit: Tuner(trainer).lr_find(module)",
                UserWarning,
                stacklevel=2,
            )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The finder is done; if it is the Tuner's, nothing has been trained."""
        lr = _found(trainer) if stage == "fit" else None
        if lr is not None and learning_rate(pl_module.optim_configs[""]) != lr:
            set_lr(pl_module, lr)
            log.info("The LR finder's %.6g is the block's lr from now on, and not only the module's own attribute", lr)


def _found(trainer: Any) -> float | None:
    """The LR that an LR finder among the callbacks has found and was told to set."""
    finders = (callback for callback in trainer.callbacks if getattr(callback, "optimal_lr", None) is not None)
    return next((finder.optimal_lr.suggestion() for finder in finders if finder._update_attr), None)


def seeks_lr(trainer: Any) -> bool:
    """Whether the trainer has Lightning's LR finder among its callbacks."""
    return any(hasattr(callback, "optimal_lr") for callback in trainer.callbacks)
