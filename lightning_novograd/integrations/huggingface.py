"""The optim block in Hugging Face's Trainer: `OptimTrainerMixin`, for `transformers.Trainer` and its subclasses."""

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, ReduceLROnPlateau

from lightning_novograd.config import OptimConfig, RunLength, SchedConfig, parse_optim
from lightning_novograd.config.build import build_optimizer, clip_gradients
from lightning_novograd.config.refusals import refuse_keys, refuse_sched_keys
from lightning_novograd.config.schedules.composed import lrs_of, reset_lrs
from lightning_novograd.config.several import submodule
from lightning_novograd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

# what the block has for a trainer that asks it
_NOT_HERE = {
    "ema": "this Trainer does not average weights; leave it out and use a callback of your own",
    "large_batch": "this Trainer accumulates evenly; use gradient_accumulation_steps",
}
_NO_EPOCHS = "the Trainer knows of none (an iterable dataset, or a scheduler that was made before train())"
_NOT_IN_SCHEDULES = {"steps_per_batch": "this Trainer steps the optimizer and knows its steps; leave it out"}
# arguments that say what the block says
_REPLACED = (
    "learning_rate",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
)


class OptimTrainerMixin(_Trainer):
    """Gives a Trainer the optimizer, LARC, schedule and clipping of an optim block. Name it before the Trainer.

    The schedule is as long as the Trainer's run (its `num_training_steps`, optimizer steps however many processes
    there are) unless the block says otherwise, and is stepped with the optimizer, as this Trainer steps all schedules
    but `ReduceLROnPlateau`: one that counts epochs is refused. Without `sched` the LR is constant. Checkpoints are the
    Trainer's own.

    Args:
        optim: the block, whatever `parse_optim` takes.
        *args: the Trainer's.
        **kwargs: the Trainer's, but `optimizers` and `optimizer_cls_and_kwargs`.

    `TrainingArguments` clips to `max_grad_norm=1.0` unless told otherwise. With `grad_clip_norm` or `grad_clip_value`
    in the block, or LARC without `allow_grad_clip`, it must be 0 (or the same norm as the block's).

    Raises:
        ConfigError: the block does not parse, or asks for what this Trainer does not do.

    Example::

        class BlockTrainer(OptimTrainerMixin, Trainer):
            pass

        BlockTrainer(model, TrainingArguments("out"), train_dataset=data, optim={"name": "novograd", "lr": 0.01})

    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, optim: Any, **kwargs: Any) -> None:
        for name in ("optimizers", "optimizer_cls_and_kwargs"):
            if kwargs.get(name) not in (None, (None, None)):
                raise TypeError(f"{type(self).__name__}: {name} and optim both say which optimizer is used; give one")
        self.optim_config = parse_optim(optim)
        refuse_keys(self.optim_config, _NOT_HERE)
        refuse_sched_keys(self.optim_config, _NOT_IN_SCHEDULES)
        self._built: tuple[Optimizer, Callable[..., dict[str, Any]]] | None = None
        self._base_lrs: list[float] = []
        self._epochs: tuple[int, int] | None = None  # of the run, and the steps in one
        super().__init__(*args, **kwargs)
        _check_schedules(self.optim_config, self.args)
        if _block_clips(self.optim_config, self.args.max_grad_norm):
            self.add_callback(_clipping_callback(self))
        _warn_of_replaced(self.args)

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's count of epochs and steps, noted for schedules that count epochs."""
        values = super().set_initial_training_values(*args, **kwargs)
        epochs, steps_per_epoch, *_ = values
        self._epochs = (epochs, steps_per_epoch) if epochs < sys.maxsize else None  # the data has a length
        return values

    def _run_length(self, steps: int) -> RunLength:
        if self._epochs is None:
            return RunLength(steps, "the Trainer", without_epochs=_NO_EPOCHS)
        return RunLength(steps, "the Trainer", *self._epochs)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """The Trainer's hook: the block's optimizer."""
        if self.optimizer is None:
            config, whole = self.optim_config, self.model if model is None else model
            self._built = build_optimizer(config, submodule(whole, config))
            self.optimizer = self._built[0]  # which Accelerate will wrap
            self._base_lrs = lrs_of(self.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """The Trainer's hook: the block's schedule, constant without any."""
        if self.lr_scheduler is None:
            assert self._built is not None, "the Trainer makes the optimizer first"
            unwrapped, new_scheduler = self._built
            reset_lrs(unwrapped, self._base_lrs)  # OneCycleLR leaves its own behind, for a second train()
            built = new_scheduler(self._run_length(num_training_steps))
            self.lr_scheduler = built.get("scheduler") or ConstantLR(unwrapped, factor=1.0, total_iters=0)
            self._created_lr_scheduler = True  # so a second train() begins a schedule of its own
        return self.lr_scheduler


def _check_schedules(config: OptimConfig, args: Any) -> None:
    for sched in config.scheds:
        if issubclass(sched.entry.cls, ReduceLROnPlateau):
            _check_plateau(sched, args)
        elif sched.interval != "step" or sched.frequency != 1:
            asked = f"every {sched.frequency} {sched.interval}s" if sched.frequency != 1 else f"every {sched.interval}"
            problem = f"{sched.name} would be stepped {asked}; this Trainer steps schedules with the optimizer"
            key = "interval" if sched.interval != "step" else "frequency"
            raise ConfigError(f"{sched.path}.{key}", f"{problem}: say {key}: {'step' if key == 'interval' else 1}")
        elif sched.reduce_on_plateau:
            problem = "this Trainer passes a metric to torch's ReduceLROnPlateau alone"
            raise ConfigError(f"{sched.path}.name", f"{sched.name}: {problem}")


def _check_plateau(sched: SchedConfig, args: Any) -> None:
    """The Trainer steps it after each evaluation, with the metric of its own arguments."""
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
        raise ConfigError(f"{sched.path}.name", f"{sched.name} is stepped by evaluations; set eval_strategy")
    metric, monitor = args.metric_for_best_model, sched.monitor
    if metric is None or monitor is None or monitor.removeprefix("eval_") != metric.removeprefix("eval_"):
        problem = f"{monitor!r}, but the Trainer passes what TrainingArguments(metric_for_best_model={metric!r}) names"
        raise ConfigError(f"{sched.path}.monitor", f"{problem}; let both be the same")


def _block_clips(config: OptimConfig, max_grad_norm: float | None) -> bool:
    """Whether the block's bound is ours to hold; refuses two bounds."""
    by_trainer = max_grad_norm or None
    if config.larc is not None and by_trainer is not None and not config.larc.allow_grad_clip:
        problem = f"LARC bounds the step, and TrainingArguments(max_grad_norm={by_trainer}) clips gradients"
        instead = "set max_grad_norm=0, or larc.allow_grad_clip: true"
        raise ConfigError(f"{config.path}.larc", f"{problem} (1.0 is its default); {instead}")
    if not config.clips:
        return False
    if by_trainer is not None and by_trainer == config.grad_clip_norm:
        return False
    if by_trainer is not None:
        key = "grad_clip_norm" if config.grad_clip_norm is not None else "grad_clip_value"
        problem = f"{getattr(config, key)}, but TrainingArguments(max_grad_norm={by_trainer}) clips too"
        raise ConfigError(f"{config.path}.{key}", f"{problem} (1.0 is its default); set max_grad_norm=0")
    return True


def _clipping_callback(trainer: Any) -> Any:
    """The Trainer's event between the backward pass and the step."""
    from transformers import TrainerCallback

    class ClipGradients(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.accelerator.unscale_gradients()
            clip_gradients(trainer.optim_config, trainer.optimizer)

    return ClipGradients()


def _warn_of_replaced(args: Any) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    given = [
        f"{name}={getattr(args, name)!r}"
        for name in _REPLACED
        if name in defaults and getattr(args, name) != defaults[name]
    ]
    if given:
        warnings.warn(
            f"the optim block says which optimizer and schedule are used; TrainingArguments has no effect with "
            f"{', '.join(given)}",
            UserWarning,
            stacklevel=3,
        )
