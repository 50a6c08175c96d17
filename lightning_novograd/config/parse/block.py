"""A mapping of a config while it is taken apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_novograd.config.arguments import Argument
from lightning_novograd.config.parse.targets import registered_at
from lightning_novograd.errors import ConfigError, choices
from lightning_novograd.ranges import Range
from lightning_novograd.registry import Entry, Kind


@dataclass
class Block:
    """A mapping of the config while it is taken apart; knows where each value was written."""

    values: dict[str, Any]
    path: str
    paths: dict[str, str]

    @classmethod
    def of(cls, value: Any, path: str) -> "Block":
        """The mapping `value`, written at `path`."""
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"expected a mapping, got {value!r}")
        return cls(dict(value), path, {key: f"{path}.{key}" for key in value})

    def take_name(self, kind: Kind) -> str:
        """Take out the registered name that the block gives, as `name` or as a `_target_`."""
        name = self.values.pop("name", None)
        if (target := self.values.pop("_target_", None)) is not None:
            if name is not None:
                raise ConfigError(self.paths["_target_"], f"{target!r}, but {self.path}.name is {name!r}; give one")
            if (entry := registered_at(target, kind)) is None:
                raise ConfigError(self.paths["_target_"], f"{target!r} is no {kind}")
            return entry.name
        if not isinstance(name, str):
            given = "missing" if name is None else f"expected a text, got {name!r}"
            whole = " There is a key 'optim': give what is in it, not the whole config." * ("optim" in self.values)
            raise ConfigError(f"{self.path}.name", f"{given}; which {kind}?{whole}")
        return name

    def rename(self, aliases: Mapping[str, str]) -> None:
        """Put what stands under an alias under its key."""
        for alias, key in aliases.items():
            if alias in self.values:
                self._add(key, self.values.pop(alias), self.paths[alias])

    def unpack_legacy_args(self, class_name: str) -> None:
        """NeMo's older grammar: `args: {name: auto, params: {...}}`, or the arguments right in `args`."""
        if (legacy := self.values.pop("args", None)) is None:
            return
        outer = Block.of(legacy, f"{self.path}.args")
        chosen = outer.values.pop("name", "auto")
        own_names = {"auto", f"{class_name}_params".casefold(), f"{class_name}Params".casefold()}
        if not isinstance(chosen, str) or chosen.casefold() not in own_names:
            raise ConfigError(f"{outer.path}.name", f"{chosen!r} does not belong to {class_name}; write auto")
        blocks = [outer]
        if (params := outer.values.pop("params", None)) is not None:
            blocks.append(Block.of(params, f"{outer.path}.params"))
        for block in blocks:
            for key, value in block.values.items():
                self._add(key, value, block.paths[key])

    def _add(self, key: str, value: Any, path: str) -> None:
        if self.values.get(key) is not None and value is not None:
            raise ConfigError(path, f"{value!r}, but {self.paths[key]} is {self.values[key]!r}; give one")
        if self.values.get(key) is None:
            self.values[key], self.paths[key] = value, path

    def split(
        self, fields: Mapping[str, Argument], arguments: Mapping[str, Argument], filled_in: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Our own keys, defaults included, and the class's arguments, as far as given; every value checked."""
        known = {**arguments, **fields}
        for key in self.values:
            if key not in known:
                allowed = (name for name, argument in known.items() if argument.from_data)
                raise ConfigError(self.paths[key], f"unknown key{choices(key, allowed)}")
        ours = {key: argument.default for key, argument in fields.items()}
        theirs: dict[str, Any] = {}
        for key, value in self.values.items():
            (ours if key in fields else theirs)[key] = known[key].convert(value, self.paths[key])
        for key, argument in arguments.items():
            if argument.required and key not in theirs and key not in fields and key != filled_in:
                raise ConfigError(f"{self.path}.{key}", f"missing; {argument.wanted}")
        return ours, theirs


def check_arguments(entry: Entry, args: Mapping[str, Any], path: str) -> None:
    """Raise a ConfigError with the full path for arguments that the class's entry refuses."""
    try:
        entry.check_arguments(args)
    except ConfigError as error:
        raise ConfigError(f"{path}.{error.path}", error.problem) from error


def in_range(allowed: Range, value: float | None, path: str) -> float | None:
    """The value, once it is known to be in the range."""
    allowed.check(path, value)
    return value
