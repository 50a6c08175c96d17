"""The config of a task, without what only the speech recipe has."""

from dataclasses import dataclass
from typing import Any, Self

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.engines.sharding import FSDP2
from lightning_novograd.recipes.common.section import join, plain_mapping
from lightning_novograd.recipes.common.settings.run import CommonSettings

# told from misspelt keys, for those who come from there
_OF_SPEECH = ("init_from", "freeze", "early_stopping", "num_samples", "published")


@dataclass(frozen=True, kw_only=True)
class TaskSettings(CommonSettings):
    """A task's config, checked at its top level; the blocks in it are read by the parts they configure.

    Of the keys of :class:`CommonSettings`, ``checkpoint.average`` and ``trainer.strategy=fsdp2`` are not for tasks.
    """

    def check(self) -> None:
        """Nothing is given that would do nothing."""
        super().check()
        if self.checkpoint.average is not None:
            raise ConfigError("checkpoint.average", "is of the speech recipe; leave it out")
        if self.trainer.get("strategy") == FSDP2:
            problem = "is of the speech recipe, whose models may be too large for one device; take ddp or auto"
            raise ConfigError("trainer.strategy", f"{FSDP2!r} {problem}")

    @classmethod
    def read(cls, cfg: Any, path: str) -> Self:
        """Build it from the composed config; errors in its sections have the full key path."""
        mapping = plain_mapping(cfg, path)
        for name in _OF_SPEECH:
            if mapping.pop(name, None) is not None:
                raise ConfigError(join(path, name), "is of the speech recipe; leave it out")
        return super().read(mapping, path)
