"""Lets every Hydra app compose this package's config groups: ``optim=novograd``, ``sched=cosine``, ...

Hydra imports all modules of the namespace package ``hydra_plugins`` at start, so nothing heavy is imported here.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class LightningNovoGradSearchPath(SearchPathPlugin):
    """Appends this package's configs to the search path, so that an app's own file of the same name wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra once, after the app's own config folder is on the path."""
        search_path.append(provider="lightning-novograd", path="pkg://lightning_novograd.conf")
