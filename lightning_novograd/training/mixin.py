"""The optim block in a LightningModule: `OptimMixin`, and `attach_optimizers` for modules of others.

Lightning itself is not imported at run time: the same code serves `lightning.pytorch` and `pytorch_lightning`.
"""

import sys
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from functools import partial
from inspect import getattr_static
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from lightning_novograd.config import OptimConfig, SchedConfig
from lightning_novograd.config.refusals import refuse_keys
from lightning_novograd.config.several import build_blocks, submodule
from lightning_novograd.errors import ConfigError
from lightning_novograd.training.accumulation import end_batch_ramp, new_batch_ramp
from lightning_novograd.training.amp import StepCount, leave_unscaling_to_scaler
from lightning_novograd.training.averaging.ema import end_averaging, new_averaging, resume_weights, save_average
from lightning_novograd.training.averaging.schedule_free import Teller, averages_itself, save_evaluated
from lightning_novograd.training.block import BlockLr, FoundLr, Unused, built_by_cli, parse_assigned, seeks_lr
from lightning_novograd.training.checkpoint.files import refuse_foreign_files
from lightning_novograd.training.checkpoint.hparams import arguments_of_init, plain_references, store_plain
from lightning_novograd.training.checkpoint.parameters import KEY as _PARAMETERS
from lightning_novograd.training.checkpoint.parameters import check_same_parameters, names_by_group, saved_names
from lightning_novograd.training.checkpoint.reading import loaded, loaded_hparams
from lightning_novograd.training.checkpoint.resume import ResumeCheck
from lightning_novograd.training.checkpoint.snapshot import copy_hparams, read_checkpoint
from lightning_novograd.training.checkpoint.trust import check_whole, misfit, refuse_code, warn_of_unsafe_lightning
from lightning_novograd.training.clipping import check_clipping
from lightning_novograd.training.manual import PaceWatch, check_pace
from lightning_novograd.training.packages import lightning_of, package_of
from lightning_novograd.training.run_length import run_length
from lightning_novograd.training.thawed import Labels, follow_rules, leave_out, parts_of_frozen, thawed_groups
from lightning_novograd.training.watchers import Watcher, put_first

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


# keys of the block that need a callback, and what makes it
_CALLBACKS = {"large_batch": new_batch_ramp, "ema": new_averaging}
# the key of checkpoints that has the name of the optimizer
_OPTIMIZER = "lightning_novograd_optimizer"


class OptimMixin(_LightningModule):
    """Gives a LightningModule the optimizer, LARC, schedule and clipping of its optim block.

    Name it before the LightningModule. The block is `self.optim_config`, parsed when assigned so that a mistake shows
    when the module is built, or else `self.hparams.optim`.

    The schedule is as long as the run (`run_length`) unless the block says otherwise, and a step that a GradScaler
    skipped does not advance it. Where a checkpoint brings back other settings than the block has, a warning says so
    (`ResumeCheck`). Checkpoints hold hyper-parameters as plain data: they load with `weights_only=True`.

    Lightning's LR finder writes what it finds into a single block. `lr` is the block's, too, unless the module has an
    attribute `lr` of its own (`BlockLr`).

    Where a module overrides a hook that is defined here, as `on_save_checkpoint` or `configure_callbacks`, it must call
    `super()`'s. What sees the course of a fit is callbacks, which the hooks `on_train_start` and so on do not turn off.

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

    lr: Any = BlockLr()
    _optim_configs: dict[str, OptimConfig] | None = None
    _step_count: StepCount | None = None
    _first_step = 0  # of the optimizer that this fit has built
    _labels: Labels | None = None  # of the optimizer's parts
    _is_configured = False  # whether the trainer has our optimizers
    _saved_schedulers: list[Any] | None = None
    _saved_optimizers: list[str] | None = None
    _saved_parameters: list[list[list[str]]] | None = None
    _attached = False
    _callbacks_asked = False  # whether Lightning has the callbacks of ours

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (package := lightning_of(cls)) is not None:
            warn_of_unsafe_lightning(package)
        for base in cls.__mro__[: cls.__mro__.index(OptimMixin)]:
            if package_of(base) is not None and "configure_optimizers" in vars(base):
                raise TypeError(f"{cls.__name__}: OptimMixin must come before {base.__name__} in the list of bases")
        lrs = [vars(base)["lr"] for base in cls.__mro__ if "lr" in vars(base) and base is not OptimMixin]
        if lrs and isinstance(getattr_static(cls, "lr"), BlockLr):
            cls.lr = lrs[0]  # a base's, which comes after the mixin

    @property
    def optim_config(self) -> Any:
        """The parsed block, or several by name; assign what `parse_optim` takes, or a mapping of names to that."""
        return self.optim_configs.get("", self.optim_configs)

    @optim_config.setter
    def optim_config(self, cfg: Any) -> None:
        self._optim_configs = parse_assigned(cfg, by_cli=built_by_cli(lightning_of(self)))

    @property
    def optim_configs(self) -> dict[str, OptimConfig]:
        """The parsed blocks by name; a single one has the name ""."""
        if self._optim_configs is None:
            hparams = getattr(self, "hparams", {})
            if "optim" not in hparams:
                problem = "no optim block: assign self.optim_config, or save it as hparams.optim"
                raise ConfigError("optim", f"{type(self).__name__} has {problem}")
            self._optim_configs = parse_assigned(hparams["optim"], by_cli="_instantiator" in hparams)
        return self._optim_configs

    @property
    def _has_block(self) -> bool:
        return self._optim_configs is not None or "optim" in getattr(self, "hparams", {})

    def _single(self, wanted: str) -> OptimConfig:
        if "" not in self.optim_configs:
            blocks = ", ".join(self.optim_configs)
            raise ConfigError("optim", f"there is no single {wanted}: the blocks are {blocks}")
        return self.optim_configs[""]

    def configure_callbacks(self) -> Any:
        """Lightning's hook: what averages the weights or accumulates, if the block says `ema` or `large_batch`."""
        callbacks: Any = super().configure_callbacks()
        self._callbacks_asked = True
        if self.trainer.state.fn != "fit":
            return callbacks
        config = self.optim_configs.get("") if self._has_block else None
        end_batch_ramp(self.trainer)
        ours = [new(config, self) for key, new in _CALLBACKS.items() if config and getattr(config, key) is not None]
        end_averaging(self.trainer, self)
        if getattr(self.configure_optimizers, "__func__", None) is not OptimMixin.configure_optimizers:
            put_first(self.trainer, [Unused()])
        return [*(callbacks if isinstance(callbacks, Sequence) else [callbacks]), *ours] if ours else callbacks

    def configure_optimizers(self) -> Any:
        """Lightning's hook: the optimizer and the LR scheduler of the block, or of each."""
        configs, trainer = self.optim_configs, self.trainer
        if not self._callbacks_asked:
            problem = f"{type(self).__name__}.configure_callbacks leaves out what super().configure_callbacks() returns"
            for config in configs.values():
                refuse_keys(config, dict.fromkeys(_CALLBACKS, problem))
        if "" not in configs and self.automatic_optimization:
            problem = "several optimizers are stepped by the module itself: set self.automatic_optimization = False"
            raise ConfigError("optim", f"{problem} and step {', '.join(configs)} in training_step")
        for config in configs.values():
            check_pace(config, self.automatic_optimization)
            check_clipping(config, trainer, self.automatic_optimization)
        blocks = [*configs.values()]
        with parts_of_frozen(blocks, self) as frozen:
            all_built = build_blocks(configs, self, lambda config: partial(run_length, trainer, config, blocks))
        for index, (config, built) in enumerate(zip(blocks, all_built.values(), strict=True)):
            built.pop("clip_gradients", None)  # Lightning has a hook for it
            if not self.automatic_optimization and "lr_scheduler" in built:
                for key in ("strict", "reduce_on_plateau"):  # which Lightning says that it ignores
                    del built["lr_scheduler"][key]
            elif config.stepped is not None and config.stepped.interval == "step":
                built["lr_scheduler"]["frequency"] = 1  # Lightning would count batches; see lr_scheduler_step
            if config.clips or trainer.gradient_clip_val:
                leave_unscaling_to_scaler(built["optimizer"])
            self._watch(index, config, built)
            leave_out(built["optimizer"], frozen)
        put_first(trainer, self._watchers(all_built))
        self._first_step = 0 if trainer.ckpt_path else trainer.global_step  # a second fit begins a new schedule
        self._step_count = StepCount(all_built[""]["optimizer"]) if "" in all_built else None
        self._is_configured = True
        return all_built.get("", [*all_built.values()])

    def _watchers(self, all_built: dict[str, dict[str, Any]]) -> list[Watcher]:
        """What sees this fit, whatever hooks the module overrides."""
        watchers: list[Watcher] = [FoundLr()] if "" in all_built and seeks_lr(self.trainer) else []
        if told := [built["optimizer"] for built in all_built.values() if averages_itself(built["optimizer"])]:
            watchers.append(Teller(told))
        if not self.automatic_optimization:
            entries = (
                (config.stepped, all_built[name].get("lr_scheduler")) for name, config in self.optim_configs.items()
            )
            watchers.append(PaceWatch((sched, entry["scheduler"]) for sched, entry in entries if sched and entry))
        return watchers

    def _watch(self, index: int, config: OptimConfig, built: dict[str, Any]) -> None:
        """Have what a checkpoint brings compared with the config, and thawed parameters with its rules."""
        trainer, blocks = self.trainer, [*self.optim_configs.values()]
        schedule = built.get("lr_scheduler", {}).get("scheduler")
        self._labels = follow_rules(built["optimizer"], config, submodule(self, config), schedule)
        ResumeCheck(
            config,
            built,
            saved_schedulers=lambda: self._saved_schedulers,
            saved_optimizer=lambda: self._saved_optimizers[index] if self._saved_optimizers else None,
            step=lambda: _steps_of_schedule(trainer, config.stepped),
            place=sum(block.stepped is not None for block in blocks[:index]) if len(blocks) > 1 else None,
            check_parameters=partial(self._check_parameters, index, config),
        )

    def _check_parameters(self, index: int, config: OptimConfig, optimizer: Optimizer) -> None:
        if self._saved_parameters is not None:
            check_same_parameters(config.path, self._saved_parameters[index], names_by_group(self, optimizer))

    def thawed_groups(self, params: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Param groups for `optimizer.add_param_group`, with what the block says of parameters that were frozen.

        Args:
            params: parameters of this module, which the optimizer does not have yet.

        """
        config = self._single("optimizer")
        return thawed_groups(config, submodule(self, config), list(params), self._labels or {})

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's hook: step the schedule, at every `frequency`-th optimizer step that no GradScaler skipped."""
        sched, count = self._single("schedule").stepped, self._step_count
        if sched is not None and sched.interval == "step":
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            if scaler is not None and count is not None and not count.advanced():
                return
            if (self.trainer.global_step - self._first_step) % sched.frequency:
                return
        super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's hook: clip as the block says, else as the Trainer says."""
        config = self._single("bound")
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
            resume_weights(self._trainer, checkpoint)
        self._saved_schedulers = checkpoint.get("lr_schedulers")
        self._saved_parameters = saved_names(checkpoint)
        saved = checkpoint.get(_OPTIMIZER)
        self._saved_optimizers = [saved] if isinstance(saved, str) else saved

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: save hyper-parameters as plain data, not as OmegaConf objects."""
        super().on_save_checkpoint(checkpoint)
        if self._trainer is not None:
            save_average(self._trainer, checkpoint)
            save_evaluated(self._trainer, checkpoint)
        if self._is_configured:
            names = [config.optimizer_names for config in self.optim_configs.values()]
            checkpoint[_OPTIMIZER] = names[0] if len(names) == 1 else names
            checkpoint[_PARAMETERS] = [names_by_group(self, optimizer) for optimizer in self.trainer.optimizers]
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
            saved = loaded(saving, checkpoint_path, weights_only)
            if start is not None:
                checkpoint_path.seek(start)
            if hparams_file is not None:  # beside what checkpoints of old versions have
                hparams = loaded_hparams(saving, hparams_file, where)
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
