"""`optim.ema`: Lightning's callback that averages the weights, where it would lose or mix them up too.

Lightning is imported when a callback is made: the same code serves `lightning.pytorch` and `pytorch_lightning`.
"""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_novograd.config.schema import EmaConfig, OptimConfig
from lightning_novograd.errors import ConfigError
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.training.packages import lightning_of

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import EMAWeightAveraging as _Base
else:
    _Base = object

log = rank_zero_logger(__name__)

_SHARDING = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def new_averaging(config: OptimConfig, module: Any) -> Any:
    """The callback that averages the weights of `module` as its optim block says.

    Raises:
        ConfigError: the run steps optimizers by hand or shards weights, or its Trainer has such a callback already.

    """
    assert config.ema is not None
    trainer, path = module.trainer, f"{config.path}.ema"
    if not module.automatic_optimization:
        raise ConfigError(path, "the average follows the steps of automatic optimization; this module steps itself")
    strategy = type(trainer.strategy)
    if any(base.__name__ in _SHARDING for base in strategy.__mro__):
        raise ConfigError(path, f"the average is of whole weights, and {strategy.__name__} shards them")
    callbacks = import_module(f"{lightning_of(module)}.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        raise ConfigError(path, f"this {lightning_of(module)} has no EMAWeightAveraging; Lightning 2.6 has")
    kind = _averaging(callbacks.EMAWeightAveraging)
    for callback in trainer.callbacks:
        averages = isinstance(callback, callbacks.WeightAveraging | callbacks.StochasticWeightAveraging)
        if averages and type(callback) is not kind:
            raise ConfigError(
                path, f"the Trainer has a {type(callback).__name__}, which averages too; give one of both"
            )
    return kind(config.ema, path)


def averaging_of(trainer: Any) -> Any:
    """The callback of a trainer that averages weights, if it has one."""
    found = (c for c in trainer.callbacks if any(base.__name__ == "WeightAveraging" for base in type(c).__mro__))
    return next(found, None)


def end_averaging(trainer: Any, module: Any) -> None:
    """Take out the callbacks of earlier fits of the trainer, and put back the weights that they have kept of `module`.

    So a module that is fitted again goes on with its weights, not with their average, which it has had since; unless
    it has been given others in the meantime.
    """
    for callback in trainer.callbacks:
        if isinstance(callback, Averaging):
            callback.give_back(module)
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, Averaging)]


def save_average(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Give a checkpoint of weights alone, of which Lightning tells no callback, the average."""
    callback = averaging_of(trainer)
    if isinstance(callback, Averaging) and "averaging_state" not in checkpoint:
        callback.save_average(checkpoint)


def resume_weights(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Have a run that does not average weights go on with those of a checkpoint, not with their average."""
    if trainer.state.fn == "fit" and "current_model_state" in checkpoint and averaging_of(trainer) is None:
        log.warning(
            "the checkpoint has averaged weights, and this run does not average (no `ema`): it goes on with those that "
            "were trained"
        )
        checkpoint["state_dict"] = checkpoint["current_model_state"]


@cache
def _averaging(base: Any) -> Any:
    # under Lightning's name, which is what checkpoints call the callback's state
    return type(base.__name__, (Averaging, base), {"__module__": __name__})


class Averaging(_Base):
    """What `EMAWeightAveraging` lacks in Lightning 2.6; it is the next base of every class that is made of this one.

    - The average is put on the model's device once that is known; it would stay on the CPU. Integers are copied, not
      averaged and cut off.
    - A step that was left out, by a GradScaler or by the module, is not averaged: the weights have not moved.
    - Before the first update validation, checkpoints and the trained model have the weights, not those of the start.
    - Checkpoints that are saved while the model has the average, during validation or after the run, do not mix up the
      two; the weights of the end are kept, so that a run can be prolonged exactly.
    - A checkpoint that is loaded for evaluation after the run evaluates its average, not its weights.
    - A run that fails leaves the average in the model too, and a fit after it has the weights (`end_averaging`).

    Args:
        config: `optim.ema`.
        path: of it in the config, for errors.

    """

    def __init__(self, config: EmaConfig, path: str) -> None:
        super().__init__(
            device=config.device,
            use_buffers=config.use_buffers,
            decay=config.decay,
            update_every_n_steps=config.update_every_n_steps,
            update_starting_at_step=config.update_starting_at_step,
        )
        self._path = path
        self._kwargs = {"multi_avg_fn": _Decay(config.decay)}  # in place of Lightning's, tensor by tensor
        self._model_has_average = False  # and the average's place the weights
        self._steps = 0  # of the optimizer, at the end of the last batch
        self._left: list[Any] | None = None  # what tells the model that a fit has left from another

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that model and average fit together, and put the average where the model is by now."""
        assert self._average_model is not None
        for tensors in ("named_parameters", "named_buffers"):
            model, average = (dict(getattr(m, tensors)()) for m in (pl_module, self._average_model.module))
            lazy = [name for name, tensor in model.items() if is_lazy(tensor)]
            if lazy or _shapes(model) != _shapes(average):
                late = lazy or sorted(model.keys() ^ average.keys()) or [*model]
                problem = f"{late[0]!r} came after the average was made; make it in __init__ or configure_model"
                raise ConfigError(self._path, problem)
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
                problem = (
                    f"{name!r} is {parameter.dtype}, in which the average would lose most updates; use mixed precision"
                )
                raise ConfigError(self._path, problem)
        if self._device is None:
            self._average_model.to(pl_module.device)

    @property
    def _has_average(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Give validation during the run the average; after the run the model has it."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the average out again."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def _swap_models(self, pl_module: Any) -> None:
        if self._has_average:
            super()._swap_models(pl_module)
            self._model_has_average = not self._model_has_average

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """A first average waits for a step of this fit, in which accumulation may come first."""
        if not self._has_average:
            self._latest_update_step = trainer.global_step
        self._steps = _steps(pl_module) or 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Average, if the optimizer has really stepped; Lightning's `global_step` counts the other steps too."""
        before, now = self._steps, _steps(pl_module)
        if now is None or now > before:
            super().on_train_batch_end(trainer, pl_module, *args)
        self._steps = now or 0

    def _copy_average_to_current(self, pl_module: Any) -> None:
        if not self._model_has_average:
            self._swap_models(pl_module)
        self._left = _bits(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the average in the model, as at the end of a run."""
        if trainer.state.fn == "fit":
            self._copy_average_to_current(pl_module)

    def give_back(self, module: Any) -> None:
        """Put the weights of the end back into `module`, if that is the model that the fit has left."""
        if self._model_has_average and self._left == _bits(module):
            self._swap_models(module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the average as `state_dict` and the weights as `current_model_state`, wherever they are now."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is None:
            return
        if self._model_has_average:
            average, weights = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint["state_dict"], checkpoint["current_model_state"] = average, weights
        elif not self._has_average:
            checkpoint["state_dict"] = checkpoint["current_model_state"]

    def save_average(self, checkpoint: dict[str, Any]) -> None:
        """The average as the weights of a checkpoint of weights alone."""
        if self._has_average and not self._model_has_average:
            assert self._average_model is not None
            checkpoint["state_dict"] = self._average_model.module.state_dict()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take both where training goes on; who evaluates has the average already."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _steps(module: Any) -> int | None:
    """Steps that the optimizer of the block has made; None if the module steps another one."""
    count = getattr(module, "_step_count", None)
    return None if count is None else count.steps


class _Decay:
    """torch's EMA over many tensors, but for integers, which cannot hold an average: they are copied."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, averages: list[Tensor], currents: list[Tensor], n_averaged: Any) -> None:
        if averages[0].is_floating_point() or averages[0].is_complex():
            torch._foreach_lerp_(averages, currents, 1 - self.decay)
        else:
            torch._foreach_copy_(averages, currents)


def _shapes(tensors: dict[str, nn.Parameter]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _bits(module: nn.Module) -> list[Any]:
    """What two modules have in common only if all their parameters and buffers are equal, on whatever device."""
    return [_sum_of_bits(tensor) for tensor in (*module.parameters(), *module.buffers()) if not is_lazy(tensor)]


def _sum_of_bits(tensor: Tensor) -> tuple[Any, ...]:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.element_size()]
    # a sum of integers does not depend on their order, as that of the numbers would
    return tensor.shape, tensor.dtype, int(plain.detach().contiguous().view(integers).sum(dtype=torch.int64))
