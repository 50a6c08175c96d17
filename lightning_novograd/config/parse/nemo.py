"""What NeMo's blocks say in another way than ours: apex's Adam, keys that NeMo fills in, schedules of single models."""

from collections.abc import Mapping
from typing import Any

from lightning_novograd.config.parse.targets import is_registered
from lightning_novograd.errors import ConfigError
from lightning_novograd.log import rank_zero_logger

log = rank_zero_logger(__name__)

# NeMo fills these in itself, in YAML they are null
_RUNTIME_KEYS = ("iters_per_batch", "t_accumulate_grad_batches", "t_limit_train_batches", "t_num_workers")

_SHARDED = "shards its state over the ranks; write name: fused_adam, and trainer.strategy: fsdp for the sharding"
_NOT_HERE = {
    "distributed_fused_adam": f"apex's distributed Adam {_SHARDED}",
    "mcore_distributed_optim": f"Megatron's Adam {_SHARDED}",
    "megatron_fused_adam": "Megatron's Adam clips gradients itself; write name: fused_adam, and grad_clip_norm",
}
# Flags of apex's FusedAdam that torch has no counterpart for: the value that changes nothing, what the other one does
_FUSED_ADAM_FLAGS = {
    "bias_correction": (True, "Adam without the correction of its moments' bias"),
    "set_grad_none": (True, "gradients that stay zero tensors (`optimizer.zero_grad(set_to_none=False)`)"),
    "master_weights": (False, "a float32 copy of the weights (`trainer.precision: bf16-mixed`)"),
}
# RAD-TTS's configs have this schedule, and its model has none
_RAD_TTS_KEYS = {"name", "warmup_steps", "last_epoch", "d_model"}


def is_fused_adam(name: str, path: str) -> bool:
    """Whether `name` is apex's FusedAdam, which no class of that name has been registered for.

    Raises:
        ConfigError: it is another optimizer that only NeMo's own stack has.

    """
    if is_registered(name):
        return False
    if (why := _NOT_HERE.get(name.casefold())) is not None:
        raise ConfigError(f"{path}.name", f"{name!r}: {why}")
    return name.casefold() == "fused_adam"


def fused_adam(values: dict[str, Any], paths: dict[str, str], path: str) -> str:
    """The name of torch's class for the arguments `values` of apex's FusedAdam, which are made that class's.

    Args:
        values: of the block; changed.
        paths: of each of them in the config; changed.
        path: of the block.

    Raises:
        ConfigError: an argument has no counterpart.

    """
    decoupled = _flag(values, "adam_w_mode", True, paths)
    for key, (neutral, meaning) in _FUSED_ADAM_FLAGS.items():
        if (value := _flag(values, key, neutral, paths)) is not neutral:
            raise ConfigError(paths[key], f"{value}: torch has no fused kernel for {meaning}; remove it")
    # AdamW's own weight decay is 0.01
    for key, default in {"fused": True, "weight_decay": 0.0}.items():
        if values.get(key) is None:
            values[key], paths[key] = default, paths.get(key, f"{path}.{key}")
    name = "AdamW" if decoupled else "Adam"
    log.info("%s.name: fused_adam is torch's %s with fused: %s", path, name, str(values["fused"]).lower())
    return name


def _flag(values: dict[str, Any], key: str, default: bool, paths: Mapping[str, str]) -> bool:
    value = values.pop(key, None)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(paths[key], f"expected true or false, got {value!r}")
    return default if value is None else value


def sched_aliases(name: str) -> dict[str, str]:
    """NeMo's names -> ours of the keys of a schedule; `lr_decay` is VITS's."""
    return {"t_max_epochs": "max_epochs", **({"lr_decay": "gamma"} if name == "ExponentialLR" else {})}


def drop_runtime_keys(values: dict[str, Any], paths: Mapping[str, str], path: str, *, legacy: bool) -> None:
    """Take what NeMo fills in out of the `values` of a schedule.

    Args:
        values: changed.
        paths: of each of them in the config.
        path: of the schedule.
        legacy: whether its arguments stood in `args`, beside which NeMo reads no `iters_per_batch`.

    Raises:
        ConfigError: such a key has a value that would have an effect in NeMo.

    """
    for key in _RUNTIME_KEYS:
        value = values.pop(key, None)
        ignored = legacy and key == "iters_per_batch" and type(value) is int and paths[key] == f"{path}.{key}"
        if value is not None and not ignored:
            raise ConfigError(paths[key], "NeMo fills this in at run time, here the trainer is asked; remove it")


def used_schedule(value: Any, path: str) -> Any:
    """The schedule `value`; None for RAD-TTS's, which its model does not look at."""
    if not isinstance(value, Mapping) or set(value) != _RAD_TTS_KEYS:
        return value
    if value["name"] != "exp_decay" or any(type(value[key]) is not int for key in _RAD_TTS_KEYS - {"name"}):
        return value
    log.warning("%s: NeMo's RAD-TTS has no schedule, whatever its config says: the LR is constant", path)
    return None


def warn_of_interval(name: str, interval: str | None, path: str) -> None:
    """Say that NeMo steps a schedule with the optimizer which is stepped once per epoch unless the config says so."""
    if name == "StepLR" and interval is None:
        stepped = f"{path}: {name} is stepped once per epoch, in NeMo with the optimizer"
        log.warning("%s; write interval: step for that, interval: epoch if epochs are meant", stepped)
