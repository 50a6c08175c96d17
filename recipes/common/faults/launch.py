"""Which launch of its ranks a process belongs to: what an earlier one has left in the run folder says nothing of it."""

import contextlib
import os
import time
import uuid
from pathlib import Path

from lightning.pytorch.strategies import Strategy

from lightning_novograd.recipes.common.folder import FAILURE

_BEGAN = time.time()
# what the processes of a launch have in common before they know each other, and hardly any other launch has
_TORCHRUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")


class Launch:
    """Names the files by which the ranks of a launch tell each other how they are.

    An earlier launch may have left such files: it was killed, a file server shows for a while what is deleted, or a
    node has a disk of its own. The first rank deletes what it sees, which is too late for ranks that began before it.

    Attributes:
        id: drawn by the first rank; None until the ranks know each other. Before that only launches under the same job
            of SLURM or torchrun, or under neither, share names, and what is older than this process is not heeded.
    """

    def __init__(self) -> None:
        self.id: str | None = None

    def agree(self, strategy: Strategy) -> None:
        """Have the ranks agree on the id as soon as they know each other, in `setup_environment` of the strategy."""
        self.id, set_up = None, strategy.setup_environment

        def set_up_and_agree() -> None:
            set_up()
            strategy.setup_environment = set_up  # type: ignore[method-assign]
            self.id = strategy.broadcast(uuid.uuid4().hex)

        strategy.setup_environment = set_up_and_agree  # type: ignore[method-assign]

    def path(self, folder: Path, name: str) -> Path:
        """A file or folder of this launch."""
        label = self.id or _of_launcher()
        return folder / (f"{name}-{label}" if label else name)

    def has_failed(self, folder: Path) -> bool:
        """Whether a rank of this launch has said why it ends."""
        with contextlib.suppress(OSError):
            changed = self.path(folder, FAILURE).stat().st_mtime
            return self.id is not None or changed >= _BEGAN
        return False

    def fails_first(self, folder: Path) -> bool:
        """Whether no rank has failed before this one, which the file system decides."""
        file = self.path(folder, FAILURE)
        try:
            if file.exists() and not self.has_failed(folder):
                file.unlink()
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        except OSError:  # a disk that is full
            pass
        return True


# a process belongs to one
LAUNCH = Launch()


def _of_launcher() -> str:
    names = _TORCHRUN if _TORCHRUN[0] in os.environ else _SLURM
    said = " ".join(os.environ.get(name, "") for name in names)
    return uuid.uuid5(uuid.NAMESPACE_OID, said).hex if said.strip() else ""
