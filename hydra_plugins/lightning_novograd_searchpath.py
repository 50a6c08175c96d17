"""Lets every Hydra app compose this package's groups of the optim block: ``+optim=novograd``, ``+sched=cosine``, ...

Hydra imports all modules of the namespace package ``hydra_plugins`` at start, so nothing heavy is imported here.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

# What is lent to other apps; the rest of the folder, as its `trainer` and `data`, is the speech recipe's
_GROUPS = ("optim", "sched")


class LightningNovoGradSearchPath(SearchPathPlugin):
    """Appends the groups to the search path, so that an app's own file of the same name wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra once, after the app's own config folder is on the path."""
        search_path.append(provider="lightning-novograd", path="lightning-novograd://conf")


class LightningNovoGradGroups(ConfigSource):
    """The groups of the optim block in `lightning_novograd.conf`, and nothing else of it."""

    @staticmethod
    def scheme() -> str:
        """What a search path begins with for this source."""
        return "lightning-novograd"

    def _place(self, config_path: str) -> Traversable | None:
        """The file or folder; None for what is not lent."""
        parts = [part for part in config_path.split("/") if part]
        if parts[:2] == ["optim", "sched"]:  # where the block has it
            parts = parts[1:]
        if parts and parts[0] not in _GROUPS:
            return None
        return files("lightning_novograd.conf").joinpath(*parts)

    def available(self) -> bool:
        """Whether the package has its configs."""
        return self.is_group("optim")

    def is_group(self, config_path: str) -> bool:
        """Whether it is a folder of ours."""
        place = self._place(config_path)
        return place is not None and place.is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether it is a file of ours; the suffix may be left out."""
        place = self._place(self._normalize_file_name(config_path))
        return place is not None and place.is_file()

    def load_config(self, config_path: str) -> ConfigResult:
        """The file, and what its head says of the package."""
        place = self._place(self._normalize_file_name(config_path))
        if place is None or not place.is_file():
            raise ConfigLoadError(f"Config not found : {config_path}")
        text = place.read_text(encoding="utf-8")
        header = self._get_header_dict(text)
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(text), header)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of groups and options in a group, sorted; at the top, those that are lent."""
        found: list[str] = []
        place = self._place(config_path)
        names = [item.name for item in place.iterdir()] if place is not None and place.is_dir() else []
        for name in [*names, "sched"] if config_path.strip("/") == "optim" else names:
            self._list_add_result(found, f"{config_path}/{name}".lstrip("/"), name, results_filter)
        return sorted(set(found))
