"""`plot-schedule`: the learning rates of an optim block, without the model it is for."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.optim.lr_scheduler import ConstantLR

from lightning_novograd.commands.output import check_folder, whole_file
from lightning_novograd.config import OptimConfig, RunLength, SchedConfig
from lightning_novograd.config.build import build_of_groups, some_groups
from lightning_novograd.config.data import load_yaml
from lightning_novograd.config.files import find_blocks, schedule_alone
from lightning_novograd.config.schema import own_sched
from lightning_novograd.errors import ConfigError, LightningNovoGradError, choices
from lightning_novograd.lr_scheduler.plot import Drawing, drawing, own_length, plot_schedules


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

    It is as long as the run; where `run` does not say how long that is, as the schedule. Several blocks are drawn one
    below the other.

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
        drawings = _drawings(find_blocks(document), run, with_optimizer=schedule_alone(document) is None)
    except ConfigError as error:
        raise ConfigError(str(config), str(error)) from error
    figure = plot_schedules(drawings)
    with whole_file(out) as partial:
        figure.savefig(partial, dpi=150)


def _drawings(blocks: Mapping[str, OptimConfig], options: RunOptions, with_optimizer: bool) -> list[Drawing]:
    """What is drawn of each block; where another one has a schedule, a block without has a line as long."""
    drawn: dict[str, Drawing] = {}
    for name, optim in blocks.items():
        if optim.stepped is not None:
            of_optimizer = f"{optim.optimizer_names}, " if with_optimizer else ""
            drawn[name] = _drawing(optim, options, f"{name}: {of_optimizer}" if name else of_optimizer)
    if not drawn:
        if "" not in blocks:
            raise ConfigError("optim", "no block has a schedule; the learning rates are constant")
        raise ConfigError(f"{blocks[''].path}.sched", "missing; the learning rate is constant")
    longest = max(drawn.values(), key=lambda one: one.steps)
    for name, optim in blocks.items():
        if optim.stepped is None:
            optimizer = build_of_groups(optim, some_groups(optim))["optimizer"]
            title = f"{name}: {optim.optimizer_names}, constant"
            constant = ConstantLR(optimizer, factor=1.0)
            drawn[name] = drawing(constant, longest.steps, title=title, xlabel=longest.xlabel)
    return [drawn[name] for name in blocks]


def _drawing(optim: OptimConfig, options: RunOptions, title: str) -> Drawing:
    """Of a block with a schedule, its own or one of a rule."""
    scheds = [sched for sched in (optim.sched, *map(own_sched, optim.param_groups)) if sched is not None]
    for sched in scheds:
        if sched.reduce_on_plateau:
            raise ConfigError(f"{sched.path}.name", f"{sched.name} follows a metric; it has no curve to draw")
    # all are stepped together; one that counts epochs has more to ask
    sched = next((sched for sched in scheds if sched.max_epochs is not None), scheds[0])
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
        ends = [end for each in scheds if (end := _own_steps(each, options.steps_per_epoch)) is not None]
        steps = max(ends) if ends else own_length(scheduler)
    names = ", ".join(dict.fromkeys(each.name for each in scheds))
    if steps is None:
        raise ConfigError(sched.path, f"{names} (interval: {sched.interval}) has no end of its own; {run.source}")
    xlabel = unit if sched.frequency == 1 else f"scheduler step, one every {sched.frequency} {unit}s"
    try:
        return drawing(scheduler, steps, title=title + names, xlabel=xlabel)
    except ValueError as error:
        raise ConfigError(sched.path, f"{names} cannot be stepped {steps} times ({run.source}): {error}") from error


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
