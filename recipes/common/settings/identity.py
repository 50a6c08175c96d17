"""Which keys of a config make it that of another run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def _never(name: str, saved: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    return False


@dataclass(frozen=True)
class Identity:
    """What a run that goes on must have in common with the one that began.

    Args:
        blocks: keys at the top of the config: with another one of these it is another run.
        same: keys in them, by their full path, that change how the same is computed, or where it is kept, or make up
            the global batch, which is compared as a whole.
        silent: keys at the top of which a change is not worth a line.
        has_moved: whether files may be the same ones in another place, by the key and by the values of both configs.
    """

    blocks: tuple[str, ...]
    same: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    has_moved: Callable[[str, Mapping[str, Any], Mapping[str, Any]], bool] = _never

    def has(self, name: str) -> bool:
        """Whether a key, by its full path, is one of these.

        Example:
            >>> identity = Identity(("model", "data"), same=("data.batch_size",))
            >>> [identity.has(name) for name in ("model.filters", "data.batch_size", "trainer.devices")]
            [True, False, False]
        """
        return name.partition(".")[0] in self.blocks and not any(f"{name}.".startswith(f"{s}.") for s in self.same)
