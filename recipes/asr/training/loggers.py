"""The loggers of a run."""

import csv
import os
from pathlib import Path

from lightning.pytorch import loggers as pl_loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_novograd.recipes.asr.training.folder import process_rank
from lightning_novograd.recipes.asr.training.settings import LOGGERS, RunSettings


class AppendingWriter(ExperimentWriter):
    """Goes on in the ``metrics.csv`` of a run that is continued, which Lightning's deletes."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        content = path.read_bytes()
        if not content.endswith(b"\n"):  # the process was killed in the middle of a line
            whole = content.rpartition(b"\n")[0]
            os.truncate(path, len(whole) + 1 if whole else 0)
        with path.open(newline="") as file:
            self.metrics_keys = next(csv.reader(file), [])
        if not self.metrics_keys:
            path.unlink()


def build_loggers(settings: RunSettings, run_dir: Path) -> list[pl_loggers.Logger]:
    """The loggers of the ``logger`` block; all of them write into the run folder."""
    loggers = [
        getattr(pl_loggers, LOGGERS[name])(
            **({"save_dir": run_dir, "name": "", "version": ""} | (arguments or {})),
        )
        for name, arguments in settings.logger.items()
    ]
    for logger in loggers:
        if isinstance(logger, pl_loggers.CSVLogger) and process_rank() == 0:
            logger._experiment = AppendingWriter(logger.log_dir)
    return loggers
