"""`plot-schedule`: the learning rates of an optim block, without the model it is for."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lightning_novograd.commands.describe import entry_of
from lightning_novograd.commands.output import check_folder, whole_file
from lightning_novograd.config import OptimConfig, RunLength, SchedConfig, parse_optim
from lightning_novograd.config.build import build_of_groups, some_groups
from lightning_novograd.config.data import load_yaml, select
from lightning_novograd.errors import ConfigError, LightningNovoGradError, choices
from lightning_novograd.lr_scheduler.plot import own_length, plot_schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What has no optim block around it is drawn with
_OPTIMIZER = {"name": "sgd", "lr": 1.0, "momentum": 0.9}
# Where a config may have its optim block; the last is LightningCLI's
_PLACES = ("optim", "model.optim", "model.init_args.optim")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the command line says of the run, in place of a Trainer; None: nothing.

    Args:
        max_steps: as in `Trainer`.
        max_epochs: as in `Trainer`; where both are known, the run ends with the first.
        steps_per_epoch: optimizer steps in one epoch.

    Raises:
        ConfigError: a number below 1.

    """

    max_steps: int | None = None
    max_epochs: int | None = None
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(_option(name), f"{value} is out of range; must be at least 1")

    def run_length(self, sched: SchedConfig) -> RunLength:
        """The run, as far as these options say and `sched` asks.

        Raises:
            ConfigError: the run is given in steps, `sched` counts epochs, or the reverse, and nothing converts them.

        """
        steps, epochs, per_epoch = self.max_steps, self.max_epochs, self.steps_per_epoch
        if per_epoch is not None:
            if epochs is not None:
                steps = min(epochs * per_epoch, steps or epochs * per_epoch)
            if steps is not None:
                epochs = math.ceil(steps / per_epoch)
        by_step = sched.interval == "step"
        length, other, unit = (steps, epochs, "steps") if by_step else (epochs, steps, "epochs")
        if length is None and other is not None:
            problem = f"{sched.name} has interval: {sched.interval}; give --steps-per-epoch too"
            raise ConfigError("--max-epochs" if by_step else "--max-steps", problem)
        if by_step and sched.max_epochs is not None and per_epoch is None:
            return RunLength(steps, "--steps-per-epoch is not given", epochs)
        given = (f"{_option(name)} {value}" for name, value in vars(self).items() if value is not None)
        return RunLength(steps, ", ".join(given) if length else f"--max-{unit} is not given", epochs, per_epoch)


def draw(config: Path, out: Path, run: RunOptions) -> None:
    """Write a picture of LR against steps (epochs, if the schedule is stepped once per epoch), a line per param group.

    It is as long as the run; where `run` does not say how long that is, as the schedule.

    Args:
        config: YAML file with the optim block at its top, as `optim`, `model.optim` or `model.init_args.optim`; or with
            a schedule alone, which is drawn for an lr of 1.
        out: file to write; its suffix is the format.
        run: what a Trainer would say.

    Raises:
        ConfigError: no such block, no schedule in it, no curve to draw, or a file that cannot be written.
        LightningNovoGradError: matplotlib is not installed.

    """
    _check_output(out)
    document = load_yaml(config)
    try:
        optim = find_optim(document)
        title = f"{optim.name}, " if _schedule_alone(document) is None else ""
        figure = _figure(optim, run, title)
    except ConfigError as error:
        raise ConfigError(str(config), str(error)) from error
    with whole_file(out) as partial:
        figure.savefig(partial, dpi=150)


def find_optim(document: Any) -> OptimConfig:
    """The optim block of a loaded YAML file.

    Raises:
        ConfigError: there is none.

    """
    if isinstance(document, DictConfig):
        for path in _PLACES:
            if (block := select(document, path)) is not None:
                return parse_optim(block, path)
        if (schedule := _schedule_alone(document)) is not None:
            return parse_optim({**_OPTIMIZER, "sched": schedule}, "optim")
        if "name" in document:
            return parse_optim(document, "optim")
        if "sched" in document:
            raise ConfigError("sched", "null; the learning rate is constant, and there is nothing to draw")
        if "defaults" in document:
            problem = "missing; Hydra takes it from another file of the defaults list. Draw the composed config, which"
            raise ConfigError("optim", f"{problem} the program writes with --cfg job --resolve")
    raise ConfigError("optim", f"missing; the file needs an optim block at its top, as {' or as '.join(_PLACES)}")


def _schedule_alone(document: Any) -> Any:
    """The schedule of a file that has no optimizer, at its top or as `sched`; None if it is no such file."""
    if not isinstance(document, DictConfig) or any(select(document, path) is not None for path in _PLACES):
        return None
    if "name" not in document:
        return select(document, "sched")
    try:
        return document if entry_of(str(select(document, "name"))).kind == "scheduler" else None
    except ConfigError:
        return None  # as what it is said to be unknown, the block of an optimizer


def _figure(optim: OptimConfig, options: RunOptions, title: str) -> "Figure":
    sched, path = optim.sched, f"{optim.path}.sched"
    if sched is None:
        raise ConfigError(path, "missing; the learning rate is constant")
    if sched.reduce_on_plateau:
        raise ConfigError(f"{path}.name", f"{sched.name} follows a metric; it has no curve to draw")
    run = options.run_length(sched)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for the run itself
            scheduler = build_of_groups(optim, some_groups(optim), run)["lr_scheduler"]["scheduler"]
    except ConfigError as error:
        said = error.problem
        # parsed, so what it lacks is the length; only some schedules say so
        raise ConfigError(error.path, said if run.source in said else f"{said}; {run.source}") from error
    unit, length = ("optimizer step", run.steps) if sched.interval == "step" else ("epoch", run.epochs)
    if length is not None:
        steps: int | None = math.ceil(length / sched.frequency)
    else:
        steps = _own_steps(sched, options.steps_per_epoch) or own_length(scheduler)
    if steps is None:
        raise ConfigError(path, f"{sched.name} (interval: {sched.interval}) has no end of its own; {run.source}")
    xlabel = unit if sched.frequency == 1 else f"scheduler step, one every {sched.frequency} {unit}s"
    try:
        return plot_schedule(scheduler, steps, title=title + sched.name, xlabel=xlabel)
    except ValueError as error:
        raise ConfigError(path, f"{sched.name} cannot be stepped {steps} times ({run.source}): {error}") from error


def _own_steps(sched: SchedConfig, steps_per_epoch: int | None) -> int | None:
    """The length that the block's own keys set, in what the schedule counts."""
    if sched.max_epochs is not None and sched.interval == "step" and steps_per_epoch is not None:
        return sched.max_epochs * steps_per_epoch
    return sched.max_epochs or sched.max_steps


def _check_output(out: Path) -> None:
    """Before any work is done: whether there is a matplotlib that writes such a file, and a folder to write it to."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise LightningNovoGradError("pictures need matplotlib, which is missing: pip install matplotlib") from error
    formats = FigureCanvasBase.get_supported_filetypes()
    suffix = out.suffix[1:].lower()
    if suffix not in formats:
        said = f"unknown format {suffix!r}" if suffix else "has no suffix, which chooses the format"
        raise ConfigError(str(out), f"{said}{choices(suffix, formats)}")
    check_folder(out)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
