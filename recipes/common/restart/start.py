"""Where a run begins: anew, or where a checkpoint was saved."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_novograd.recipes.common.data.steps import GlobalBatch
from lightning_novograd.recipes.common.restart.newest import (
    check_same_batch,
    check_same_run,
    find_resumed,
    set_torn_aside,
)
from lightning_novograd.recipes.common.restart.resume import is_finished, set_later_checkpoints_aside
from lightning_novograd.recipes.common.results import results_of_training, set_results_aside
from lightning_novograd.recipes.common.settings.run import CommonSettings

log = logging.getLogger(__name__)


class Start:
    """Where a run begins, found before any data is read.

    Args:
        settings: of the run.
        cfg: the composed config.
        run_dir: the run folder, claimed.

    Attributes:
        path: of the checkpoint that the run goes on from; None: it begins anew.
        checkpoint: what is in it, until the run is checked against it.
        step: optimizer steps behind it.
        length: how long it has trained, in words, where nothing is left to train; see :func:`is_finished`.
        of_training: what results.json says of that training.

    Raises:
        ConfigError: the folder holds a run of another config.
        DataError: the checkpoint cannot be used.
    """

    def __init__(self, settings: CommonSettings, cfg: DictConfig | Mapping[str, Any], run_dir: Path) -> None:
        self.settings, self.run_dir = settings, run_dir
        found = find_resumed(settings, run_dir)
        self.path = None if found is None else found.path
        self.checkpoint = None if found is None else found.content
        self._torn = () if found is None else found.torn
        self.step = 0
        self.length: str | None = None
        self.of_training: dict[str, Any] = {}
        if self.path is not None and settings.resume == "auto":
            check_same_run(run_dir, cfg, self.path, settings.identity)

    def compare(self, batch: GlobalBatch, rate: str) -> None:
        """See whether there is something left to train, with the same global batch; let go of the checkpoint.

        Args:
            batch: of the run.
            rate: the name of its speed in results.json.

        Raises:
            ConfigError: the run has trained for longer than it may, or with another global batch.
        """
        if self.path is None or self.checkpoint is None:
            return
        self.step = self.checkpoint["global_step"]
        if (length := is_finished(self.checkpoint, self.settings.trainer)) is not None:
            log.warning("%s has finished its %s: it is only measured; raise that number to go on", self.path, length)
            self.of_training = results_of_training(self.run_dir, self.step, rate)
        elif self.settings.resume == "auto":
            check_same_batch(self.path, self.checkpoint, batch)
        self.length, self.checkpoint = length, None

    def set_aside(self) -> None:
        """Move what the run in the folder has reached beyond the checkpoint out of the way, and what is damaged."""
        if self.path is None:
            return
        set_torn_aside(self._torn)
        if self.settings.resume != "auto" or self.length is None:
            set_results_aside(self.run_dir)
        set_later_checkpoints_aside(self.run_dir, self.step)
