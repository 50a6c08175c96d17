"""The run's own part of a task's config: what ``conf/asr.yaml`` has of it, without what only speech has."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.asr.training.engines.sharding import FSDP2
from lightning_novograd.recipes.asr.training.settings import RunSettings

_OF_SPEECH = ("init_from", "freeze", "early_stopping", "num_samples", "published")


@dataclass(frozen=True, kw_only=True)
class TaskSettings(RunSettings):
    """A task's config, checked at its top level; the blocks in it are read by the parts they configure.

    The keys are those of :class:`RunSettings`, whose ``init_from``, ``freeze``, ``early_stopping``, ``num_samples``,
    ``published`` and ``checkpoint.average``, and ``trainer.strategy=fsdp2``, are of the speech recipe.
    """

    measure: ClassVar[str] = "dev result"

    def check(self) -> None:
        """Nothing is given that would do nothing."""
        super().check()
        for field in dataclasses.fields(self):
            if field.name in _OF_SPEECH and getattr(self, field.name) != field.default:
                raise ConfigError(field.name, "is of the speech recipe; leave it out")
        if self.checkpoint.average is not None:
            raise ConfigError("checkpoint.average", "is of the speech recipe; leave it out")
        if self.trainer.get("strategy") == FSDP2:
            problem = "is of the speech recipe, whose models may be too large for one device; take ddp or auto"
            raise ConfigError("trainer.strategy", f"{FSDP2!r} {problem}")
