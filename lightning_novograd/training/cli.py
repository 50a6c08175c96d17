"""LightningCLI with the registry's classes: ``--optimizer NovoGrad --lr_scheduler CosineAnnealing``."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from torch.optim import Optimizer

from lightning_novograd.config.arguments import entry_arguments
from lightning_novograd.errors import ConfigError
from lightning_novograd.lr_scheduler.pytorch import MOMENTUM_CYCLE
from lightning_novograd.registry import Entry, get_optimizer, get_scheduler
from lightning_novograd.training.attach import attach_optimizers


class OptimCLI(LightningCLI):
    r"""LightningCLI whose ``--optimizer`` and ``--lr_scheduler`` make an optim block.

    Schedules are as long as the run, so ``max_steps`` and ``T_max`` are not asked for, and are stepped when their unit
    says, once per optimizer step for those of this package; LightningCLI itself would step them once per epoch. Needs
    ``pip install "jsonargparse[signatures]"``.

    LARC, param groups, clipping and a schedule of another length need an optim block: give it to a model that is an
    ``OptimMixin`` and has an argument ``optim: dict[str, Any]``, under any CLI. jsonargparse takes such a dict apart by
    one level: ``--model.optim.name=novograd --model.optim.lr=0.05 --model.optim.sched='{name: cosine}'``.

    Raises:
        ConfigError: the optimizer or the schedule is not in the registry or refuses an argument.

    Example:
        ::

            # main.py
            OptimCLI(Net)

            python main.py fit --optimizer NovoGrad --optimizer.lr 0.05 \
                --lr_scheduler CosineAnnealing --lr_scheduler.warmup_steps 100

    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["auto_configure_optimizers"] = False
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """LightningCLI's hook: what it would add itself, without the length of schedules."""
        options: dict[str, Any] = {"instantiate": False, "fail_untyped": False}
        parser.add_subclass_arguments((Optimizer,), "optimizer", skip={"params"}, **options)
        lengths = {"max_steps", "T_max"}
        parser.add_subclass_arguments(LRSchedulerTypeTuple, "lr_scheduler", skip={"optimizer", *lengths}, **options)

    def after_instantiate_classes(self) -> None:
        """LightningCLI's hook: without ``--optimizer`` the model keeps its own ``configure_optimizers``."""
        config = self.config_init.get(str(self.subcommand), self.config_init)
        optimizer = _block(config.get("optimizer"), get_optimizer)
        schedule = _block(config.get("lr_scheduler"), get_scheduler)
        if optimizer is not None:
            attach_optimizers(self.model, {**optimizer, "sched": schedule})
        elif schedule is not None:
            raise ConfigError("lr_scheduler", f"{schedule['name']} needs an --optimizer to go with it")


def _block(chosen: Any, get: Callable[[str], Entry]) -> dict[str, Any] | None:
    """A part of the optim block; jsonargparse gives defaults too, which say nothing of what the user has given."""
    if not chosen:
        return None
    name = chosen["class_path"].rpartition(".")[2]
    args = chosen.get("init_args", {}).as_dict()
    entry = get(name)
    unsaid = {"momentum", "betas", *MOMENTUM_CYCLE, *entry.needs, *entry.needs.values()}
    for key, argument in entry_arguments(entry).items():
        if key in unsaid and args.get(key) == argument.default:
            del args[key]
    return {"name": name, **args}
