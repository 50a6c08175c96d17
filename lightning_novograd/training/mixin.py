"""The optim block in a LightningModule: `OptimMixin`, and `attach_optimizers` for modules of others.

Lightning itself is not imported at run time: the same code serves `lightning.pytorch` and `pytorch_lightning`.
"""

import sys
from argparse import ArgumentError
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from yaml import YAMLError

from lightning_novograd.config import OptimConfig, SchedConfig, build_optimizers, parse_optim
from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.optim.checkpoint.files import why_not_plain
from lightning_novograd.training.amp import StepCount, leave_unscaling_to_scaler
from lightning_novograd.training.files import refuse_foreign_files
from lightning_novograd.training.hparams import arguments_of_init, plain_references, store_plain
from lightning_novograd.training.resume import ResumeCheck
from lightning_novograd.training.run_length import run_length
from lightning_novograd.training.snapshot import copy_hparams, read_checkpoint
from lightning_novograd.training.trust import check_whole, misfit, refuse_code, warn_of_unsafe_lightning

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _LightningModule

    _class_only = classmethod
else:
    _LightningModule = object

    class _class_only(classmethod):
        """A classmethod that an instance cannot call: it would not load into itself, as one might think."""

        def __get__(self, instance, owner=None):
            return super().__get__(None, owner) if instance is None else self._refuse

        def _refuse(self, *args, **kwargs):
            raise TypeError(f"{self.__name__} returns a new module: call it on the class, not on an instance")


_LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
# the key of checkpoints that has the name of the optimizer
_OPTIMIZER = "lightning_novograd_optimizer"


class OptimMixin(_LightningModule):
    """Gives a LightningModule the optimizer, LARC, schedule and clipping of its optim block.

    Name it before the LightningModule. The block is `self.optim_config`, parsed when assigned so that a mistake shows
    when the module is built, or else `self.hparams.optim`.

    The schedule is as long as the run (`run_length`) unless the block says otherwise, and a step that a GradScaler
    skipped does not advance it. Where a checkpoint brings back other settings than the block has, a warning says so
    (`ResumeCheck`). Checkpoints hold hyper-parameters as plain data: they load with `weights_only=True`.

    A module's own hooks must call `super()`'s, `on_save_checkpoint` and `on_load_checkpoint` too.

    Example:
        >>> import torch, lightning.pytorch as pl
        >>> class Net(OptimMixin, pl.LightningModule):
        ...     def __init__(self, optim):
        ...         super().__init__()
        ...         self.optim_config = optim
        ...         self.layer = torch.nn.Linear(2, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         return self.layer(batch).square().mean()
        >>> Net({"name": "novograd", "lr": 0.05}).optim_config.name
        'NovoGrad'

    """

    _optim_config: OptimConfig | None = None
    _step_count: StepCount | None = None
    _saved_schedulers: list[Any] | None = None
    _saved_optimizer: str | None = None
    _attached = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (package := lightning_of(cls)) is not None:
            warn_of_unsafe_lightning(package)
        for base in cls.__mro__[: cls.__mro__.index(OptimMixin)]:
            if _package(base) is not None and "configure_optimizers" in vars(base):
                raise TypeError(f"{cls.__name__}: OptimMixin must come before {base.__name__} in the list of bases")

    @property
    def optim_config(self) -> OptimConfig:
        """The parsed block; assign anything that `parse_optim` takes."""
        if self._optim_config is None:
            hparams = getattr(self, "hparams", {})
            if "optim" not in hparams:
                problem = "no optim block: assign self.optim_config, or save it as hparams.optim"
                raise ConfigError("optim", f"{type(self).__name__} has {problem}")
            self._optim_config = parse_optim(hparams["optim"])
        return self._optim_config

    @optim_config.setter
    def optim_config(self, cfg: Any) -> None:
        self._optim_config = parse_optim(cfg)

    def configure_optimizers(self) -> Any:
        """Lightning's hook: the optimizer and the LR scheduler of the block."""
        config, trainer = self.optim_config, self.trainer
        _check_clipping(config, trainer, self.automatic_optimization)
        built = build_optimizers(config, self, max_steps=lambda: run_length(trainer, config))
        if config.clips or trainer.gradient_clip_val:
            leave_unscaling_to_scaler(built["optimizer"])
        self._step_count = StepCount(built["optimizer"])
        ResumeCheck(
            config,
            built,
            saved_schedulers=lambda: self._saved_schedulers,
            saved_optimizer=lambda: self._saved_optimizer,
            step=lambda: _steps_of_schedule(trainer, config.sched),
        )
        return built

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's hook: step the schedule, unless it counts optimizer steps and the GradScaler skipped this one."""
        sched, count = self.optim_config.sched, self._step_count
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if sched and sched.interval == "step" and scaler is not None and count is not None and not count.advanced():
            return
        super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's hook: clip as the block says, else as the Trainer says."""
        config = self.optim_config
        if config.grad_clip_norm is not None:
            gradient_clip_val, gradient_clip_algorithm = config.grad_clip_norm, "norm"
        elif config.grad_clip_value is not None:
            gradient_clip_val, gradient_clip_algorithm = config.grad_clip_value, "value"
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: note what is in there, for the comparison with the block (`ResumeCheck`).

        Raises:
            DataError: training goes on, and a callback's state in it would have other files deleted.

        """
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None:  # before its callbacks load their states
            refuse_foreign_files(self._trainer, checkpoint)
        self._saved_schedulers = checkpoint.get("lr_schedulers")
        self._saved_optimizer = checkpoint.get(_OPTIMIZER)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: save hyper-parameters as plain data, not as OmegaConf objects."""
        super().on_save_checkpoint(checkpoint)
        if self._step_count is not None:  # there is an optimizer
            checkpoint[_OPTIMIZER] = self.optim_config.name
        # an attached module is loaded by its own class, which does not have our load_from_checkpoint
        store_plain(checkpoint, only="optim" if self._attached else None)

    @_class_only
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Lightning's; `__init__` gets OmegaConf objects again where it had them when the checkpoint was saved.

        Unless `weights_only` is False, nothing of the file's choice is called, nor of `hparams_file`'s; a URL counts as
        any other file. The file is read into memory once, and what was checked is what is loaded.

        Raises:
            DataError: the file is no checkpoint, names code, or has hyper-parameters that LightningCLI refuses.

        """
        saving = sys.modules[f"{lightning_of(cls)}.core.saving"]
        where = checkpoint_path if hparams_file is None else hparams_file
        trusted = weights_only is False
        with TemporaryDirectory() as folder:
            if not trusted:
                # said, because Lightning's default is False for a URL, and torch's is what the environment says
                weights_only = True
                checkpoint_path = read_checkpoint(saving, checkpoint_path)
                if hparams_file is not None:
                    hparams_file = copy_hparams(saving, hparams_file, Path(folder))
            start = checkpoint_path.tell() if hasattr(checkpoint_path, "tell") else None
            saved = _loaded(saving, checkpoint_path, weights_only)
            if start is not None:
                checkpoint_path.seek(start)
            if hparams_file is not None:  # beside what checkpoints of old versions have
                hparams = _loaded_hparams(saving, hparams_file, where)
                saved = {**saved, "hyper_parameters": hparams if trusted else plain_references(where, hparams)}
            if not trusted:
                refuse_code(cls, where, saved, kwargs)
            check_whole(checkpoint_path, saved)
            if hparams_file is None:
                kwargs = arguments_of_init(cls, where, saved, kwargs, trusted)
            kwargs["weights_only"] = weights_only
            try:
                return super().load_from_checkpoint(checkpoint_path, map_location, hparams_file, strict, **kwargs)
            except ArgumentError as error:
                raise misfit(cls, where, saved, error) from error


def _loaded(saving: Any, file: Any, weights_only: bool | None) -> dict[str, Any]:
    """A checkpoint without its weights."""
    try:
        saved = saving.pl_load(file, map_location="meta", weights_only=weights_only)
    except OSError:
        raise
    except Exception as error:
        if weights_only is False:
            raise
        # torch's own message is a page, and ends in advice to run the code of the file
        raise DataError(f"{file} is no checkpoint, or holds more than plain data{why_not_plain(error)}") from error
    if not isinstance(saved, dict):
        raise DataError(f"{file}: expected a dict of a checkpoint, found {type(saved).__name__}")
    return saved


def _loaded_hparams(saving: Any, file: Any, where: Any) -> Any:
    """The hyper-parameters of a file of Lightning's; what is wrong with its name Lightning says."""
    try:
        if str(file).lower().endswith(".csv"):
            return saving.load_hparams_from_tags_csv(file)
        return saving.load_hparams_from_yaml(file) if str(file).lower().endswith((".yml", ".yaml")) else {}
    except YAMLError as error:
        raise DataError(f"{where} is not plain YAML: {' '.join(str(error).split())}") from error


def attach_optimizers(module: Any, cfg: Any) -> Any:
    """Give a LightningModule that is not yours the optimizer and schedule of `cfg`; returns the same module.

    Its class becomes a subclass with `OptimMixin` in front, so `configure_optimizers` is ours and its other hooks run
    as before. Pickling and copying keep that. Its own class loads its checkpoints: their hyper-parameters are as that
    class saves them, except that `optim` becomes plain data.

    Args:
        module: a LightningModule of `lightning.pytorch` or `pytorch_lightning`.
        cfg: whatever `parse_optim` takes.

    Raises:
        ConfigError: the block does not parse.
        TypeError: not a LightningModule, or one with an attribute `optim_config` of its own.

    """
    config = parse_optim(cfg)
    cls: Any = type(module)
    if lightning_of(module) is None:
        raise TypeError(f"attach_optimizers takes a LightningModule, not {cls.__name__}")
    if not isinstance(module, OptimMixin):
        if hasattr(module, "optim_config"):
            raise TypeError(f"{cls.__name__} has an optim_config of its own, which attaching would hide; rename it")
        module.__class__ = _with_mixin(cls)
    module.optim_config = config
    return module


@cache
def _with_mixin(cls: Any) -> Any:
    def reduce(self: Any, protocol: int) -> tuple[Any, ...]:
        return _new_attached, (cls,), self.__getstate__()

    members = {
        "_attached": True,
        "__reduce_ex__": reduce,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    return type(cls.__name__, (OptimMixin, cls), members)


def _new_attached(cls: type) -> Any:
    attached = _with_mixin(cls)
    return attached.__new__(attached)


def lightning_of(thing: Any) -> str | None:
    """`"lightning.pytorch"` or `"pytorch_lightning"`, whichever a module, its class or a trainer is of, else None."""
    cls = thing if isinstance(thing, type) else type(thing)
    bases = (base for base in cls.__mro__ if base.__name__ in ("LightningModule", "Trainer"))
    return next(filter(None, map(_package, bases)), None)


def _package(cls: type) -> str | None:
    return next((name for name in _LIGHTNING if cls.__module__.startswith(f"{name}.")), None)


def check_same_lightning(trainer: Any, module: Any) -> None:
    """Refuse a trainer and a module of the two packages that Lightning comes in; call it before `trainer.fit`.

    Lightning itself says only that "`model` must be a `LightningModule`".

    Raises:
        TypeError: one is of `lightning.pytorch`, the other of `pytorch_lightning`.

    """
    of_trainer, of_module = lightning_of(trainer), lightning_of(module)
    if of_trainer != of_module:
        raise TypeError(
            f"the Trainer is {of_trainer}'s and {type(module).__name__} is a LightningModule of {of_module}: two "
            f"copies of Lightning, which do not mix; import both from {' or both from '.join(_LIGHTNING)}"
        )


def _steps_of_schedule(trainer: Any, sched: SchedConfig | None) -> int:
    """How often Lightning has stepped the schedule of a run that is where `trainer` is."""
    if sched is None:
        return 0
    if sched.interval == "step":
        return trainer.global_step // sched.frequency
    # Lightning steps it after the last batch, before it counts the epoch
    epoch = trainer.fit_loop.epoch_progress.current
    batches_done = epoch.processed < epoch.started and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return (epoch.processed + batches_done) // sched.frequency


def _check_clipping(config: OptimConfig, trainer: Any, automatic: bool) -> None:
    key = next((k for k in ("grad_clip_norm", "grad_clip_value") if getattr(config, k) is not None), None)
    if key is not None and trainer.gradient_clip_val == 0:
        problem = f"Lightning clips by one bound, and the Trainer has gradient_clip_val={trainer.gradient_clip_val}"
        raise ConfigError(f"{config.path}.{key}", f"{getattr(config, key)}, but {problem}; leave it out")
    by_trainer = trainer.gradient_clip_val or None
    if key is not None and by_trainer is not None:
        problem = f"{getattr(config, key)}, but the Trainer clips too (gradient_clip_val={by_trainer}); give one"
        raise ConfigError(f"{config.path}.{key}", problem)
    if key is not None and not automatic:
        problem = "Lightning does not clip under manual optimization; call self.clip_gradients in training_step"
        raise ConfigError(f"{config.path}.{key}", problem)
    if config.larc is not None and by_trainer is not None and not config.larc.allow_grad_clip:
        problem = f"LARC bounds the step, and the Trainer clips gradients (gradient_clip_val={by_trainer})"
        raise ConfigError(f"{config.path}.larc", f"{problem}; larc.allow_grad_clip: true allows both")
