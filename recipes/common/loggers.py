"""The loggers of a run."""

import csv
import os
from pathlib import Path

from lightning.pytorch import loggers as pl_loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_novograd.commands.output import whole_file
from lightning_novograd.recipes.common.folder import process_rank
from lightning_novograd.recipes.common.settings.run import LOGGERS, CommonSettings


class AppendingWriter(ExperimentWriter):
    """Goes on in the ``metrics.csv`` of a run that is continued, which Lightning's deletes; killed, it loses no row.

    Attributes:
        rows: in the file.
    """

    rows = 0

    def save(self) -> None:
        """Append the rows that were logged since."""
        new = len(self.metrics)
        super().save()
        self.rows += new

    def cut(self, rows: int) -> None:
        """Keep the first rows alone.

        Args:
            rows: how many.
        """
        self.metrics.clear()
        if rows < self.rows:
            self._rewrite(self.metrics_keys, self._read()[:rows])
            self.rows = rows

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        content = path.read_bytes()
        if not content.endswith(b"\n"):  # the process was killed in the middle of a line
            whole = content.rpartition(b"\n")[0]
            os.truncate(path, len(whole) + 1 if whole else 0)
        with path.open(newline="") as file:
            reader = csv.reader(file)
            self.metrics_keys = next(reader, [])
            self.rows = sum(1 for _ in reader)
        if not self.metrics_keys:
            path.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._rewrite(fieldnames, self._read())

    def _read(self) -> list[dict[str, str]]:
        with Path(self.metrics_file_path).open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, fieldnames: list[str], rows: list[dict[str, str]]) -> None:
        with whole_file(Path(self.metrics_file_path)) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)


def build_loggers(settings: CommonSettings, run_dir: Path) -> list[pl_loggers.Logger]:
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
