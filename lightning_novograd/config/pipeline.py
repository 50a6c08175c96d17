"""The optim block from end to end: plain data -> parsed -> tried once -> built with the model's parameters."""

from typing import Any

from torch import nn

from lightning_novograd.config.build import dry_build
from lightning_novograd.config.data import to_plain
from lightning_novograd.config.length import Length
from lightning_novograd.config.parse.optim import parse_block
from lightning_novograd.config.refusals import refuse_keys, refuse_sched_keys
from lightning_novograd.config.schema import OptimConfig
from lightning_novograd.config.several import build_blocks, parse_blocks

_OF_LIGHTNING = {
    "ema": "Lightning averages the weights (OptimMixin); in a loop of your own, leave it out and use "
    "torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn({0.decay}))",
    "large_batch": "Lightning accumulates (OptimMixin); in a loop of your own, leave it out and step after "
    "solve_batch_ramp(...).plan_at(step).accumulate_grad_batches batches",
}
_OF_MANUAL_OPTIMIZATION = {
    "steps_per_batch": "here nobody counts batches, as OptimMixin does under manual optimization; leave it out and "
    "give max_steps in steps of this optimizer",
}


def parse_optim(cfg: Any, path: str = "optim") -> OptimConfig:
    """The optim block `cfg`, checked as far as it can be without a model.

    Args:
        cfg: a mapping, a `DictConfig`, a dataclass instance, or an `OptimConfig`, which is returned as it is.
        path: of the block in the config, for errors.

    Raises:
        ConfigError: anything in the block that is unknown, of a wrong type, out of range or contradictory.

    Example:
        >>> parse_optim({"name": "sgd", "lr": 0.1, "momentum": 0.9}).args
        {'lr': 0.1, 'momentum': 0.9}
        >>> parse_optim({"name": "sgd", "momentun": 0.9})
        Traceback (most recent call last):
        lightning_novograd.errors.ConfigError: optim.momentun: unknown key; did you mean 'momentum'? Allowed: ...

    """
    if isinstance(cfg, OptimConfig):
        return cfg
    config = parse_block(to_plain(cfg, path), path)
    dry_build(config)
    return config


def build_optimizers(cfg: Any, module: nn.Module, *, max_steps: Length = None) -> dict[str, Any]:
    """Optimizer and scheduler of the optim block `cfg`, as Lightning's `configure_optimizers` returns them.

    Args:
        cfg: an `OptimConfig`, or whatever `parse_optim` takes; or several blocks by name.
        module: whose parameters are optimized, of several blocks those of its submodules that they name.
        max_steps: length of the run in optimizer steps, for schedules whose config does not set one. A function is
            called at most once, after everything else is built, and only if the length is needed. A `RunLength`
            in its place says what epochs are, for a schedule that counts them.

    Returns:
        `{"optimizer": ...}`, with a schedule `"lr_scheduler": {"scheduler", "interval", "frequency", ...}`, and where
        the block clips gradients `"clip_gradients"`, a function to be called before each `optimizer.step()`, which
        returns their norm with `grad_clip_norm` (`OptimMixin` has Lightning clip). Of several blocks, such a dict for
        each name.

    Raises:
        ConfigError: a block that does not parse or does not fit the module or the length of the run, or one with
            `ema`, `large_batch` or `steps_per_batch`, which need more than an optimizer.
        TypeError: `module` is none; rules need its names, so parameters will not do.

    Example:
        >>> block = {"name": "sgd", "lr": 0.1, "sched": {"name": "cosine", "warmup_steps": 1}}
        >>> built = build_optimizers(block, nn.Linear(2, 1), max_steps=100)
        >>> built["lr_scheduler"]["scheduler"].get_last_lr(), built["lr_scheduler"]["interval"]
        ([0.05], 'step')

    """
    if not isinstance(module, nn.Module):
        given = type(module).__name__
        raise TypeError(f"build_optimizers takes the block and then the model, an nn.Module; the second is a {given}")
    configs = parse_blocks(cfg)
    for config in configs.values():
        refuse_keys(config, _OF_LIGHTNING)
    built = build_blocks(configs, module, lambda _: max_steps)
    for config in configs.values():
        refuse_sched_keys(config, _OF_MANUAL_OPTIMIZATION)
    return built.get("", built)
