"""The page and the picture of what large_batch.py has measured."""

from pathlib import Path


def write_report(runs: Path, page: Path) -> None:
    raise NotImplementedError
