"""Where ranks leave their signs of life for each other: a small file of each in the run folder.

torch's TCPStore would do without a shared folder, but a client of it waits for ever, whatever its timeout, once the
process that holds it is stopped, and prints the C++ stack whenever that process ends: just then it is needed.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from lightning_novograd.recipes.common.faults.heartbeat import Pulse
from lightning_novograd.recipes.common.faults.processes import Process

_SIZE = 1024  # bytes of a file: one write, and a full disk takes it in the place of the one before


class Board:
    """Signs of life of all ranks. Whatever the disk refuses is not said: a full one ends no job.

    Args:
        folder: that all ranks see. Where they do not (another node's disk), those that are not seen are not judged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, pulse: Pulse) -> None:
        """Say how far this rank is."""
        text = json.dumps([pulse.rank, *pulse.process, pulse.tick, pulse.count, pulse.in_loop, pulse.doing])
        with contextlib.suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            path = self._file(pulse.rank)
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(text.encode()[:_SIZE].ljust(_SIZE))

    def read(self, ranks: Iterable[int]) -> dict[int, Pulse]:
        """What ranks have said last; without those that have said nothing, and those that have left."""
        found = {}
        for rank in ranks:
            # ValueError: read while it was written
            with contextlib.suppress(OSError, ValueError, TypeError):
                number, pid, started, machine, host, *rest = json.loads(self._file(rank).read_bytes())
                found[rank] = Pulse(number, Process(pid, started, machine, host), *rest)
        return found

    def leave(self, rank: int) -> None:
        """Take back what this rank has said: it ends, and nobody need wonder."""
        with contextlib.suppress(OSError):
            self._file(rank).unlink()
            self.folder.rmdir()  # by the last one

    def _file(self, rank: int) -> Path:
        return self.folder / str(rank)
