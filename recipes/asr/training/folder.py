"""The run folder: one run in it at a time, and no second one on top of the first."""

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf

from lightning_novograd.commands.output import whole_file
from lightning_novograd.errors import ConfigError
from lightning_novograd.log import launched_rank

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# Names of a launch have its id behind them, see training/faults.
# The rank that fails first makes this file, and speaks; what the others then run into is no news
FAILURE = ".failed"
# signs of life of the ranks
RANKS = ".ranks"
# what only a run leaves behind that has begun to train. A command that was refused, or failed on its data, is no run:
# it leaves a log, a config and TensorBoard's empty file
_TRACES = ("results.json", "metrics.csv", "checkpoints/*.ckpt", "hpc_ckpt_*.ckpt")
# a file under this name takes its own when it is whole
PARTIAL = ".{}.partial"

# locks that this process holds, by folder
_held: dict[Path, IO[str]] = {}


class WritableFolder(Callback):
    """Says in one line that the folder cannot be written into, before Hydra makes it and opens a log there.

    Hydra turns what callbacks raise into warnings; the end of the process is none.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """The folder of a run."""
        _require_writable("hydra.run.dir", config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """The folder of a sweep."""
        _require_writable("hydra.sweep.dir", config)


def _require_writable(key: str, config: DictConfig) -> None:
    folder = Path(OmegaConf.select(config, key))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = ConfigError(key, f"{folder} cannot be written: {error.strerror or error}")
        sys.exit(f"{type(problem).__name__}: {problem}")


def process_rank() -> int:
    """Which of the processes of a run this is, before they know each other."""
    return launched_rank() or 0


def is_one_of_many() -> bool:
    """Whether other processes train along with this one, as far as launchers and Lightning say."""
    return process_rank() > 0 or any(os.environ.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))


@contextlib.contextmanager
def claimed_folder(folder: Path, resume_from: str | None, resume: str | None = None) -> Iterator[None]:
    """Hold the folder while the block runs, see :func:`claim_folder`."""
    claim_folder(folder, resume_from, resume)
    try:
        yield
    finally:
        release_folder(folder)


def claim_folder(folder: Path, resume_from: str | None, resume: str | None = None) -> None:
    """Make a folder this run's own until :func:`release_folder`, or until the process ends, however it does.

    The lock is the system's (POSIX), which NFS passes on to its server; where a file system has none, two runs at once
    are not noticed. Ranks other than the first claim nothing.

    Args:
        folder: the run folder; made if it is not there.
        resume_from: a checkpoint; one of this folder's own continues the run in it.
        resume: ``"auto"``: whatever run is there is continued.

    Raises:
        ConfigError: another process is training there, or an earlier run has trained there and is neither continued
            nor requeued.
    """
    folder = folder.absolute()
    if process_rank() or folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _held[folder] = _lock(folder)
    except OSError as error:
        raise ConfigError("hydra.run.dir", f"{folder} cannot be written: {error.strerror or error}") from None
    for left in folder.glob(f"{FAILURE}*"):
        left.unlink(missing_ok=True)
    for left in folder.glob(f"{RANKS}*"):
        shutil.rmtree(left, ignore_errors=True)
    traces = [name for pattern in _TRACES for name in sorted(path.name for path in folder.glob(pattern))]
    if traces and resume != "auto" and not _is_below(resume_from, folder) and requeued_from(folder) is None:
        release_folder(folder)
        found = f"{', '.join(traces[:3])}{', ...' if len(traces) > 3 else ''}"
        last = folder / "checkpoints" / "last.ckpt"
        way = f"continue it (resume_from={last}), or choose another folder" if last.exists() else "choose another one"
        raise ConfigError("hydra.run.dir", f"{folder} holds a run already ({found}); {way}")
    # of a process that was killed while it wrote; nobody else writes here now
    for left in (*folder.glob(PARTIAL.format("*")), *(folder / "checkpoints").glob(PARTIAL.format("*"))):
        left.unlink(missing_ok=True)


def requeued_from(folder: Path) -> Path | None:
    """What a job goes on from that SLURM has requeued, and that is begun again by the command that began it.

    Lightning writes ``hpc_ckpt_N.ckpt`` at SLURM's signal. A run that has ended since is none that was requeued, and
    one that the next signal did not reach may be further in its last.ckpt, or in one inside an epoch.

    Args:
        folder: the run folder.

    Returns:
        The newest checkpoint; None where there is no such job.
    """
    if not SLURMEnvironment.detect():
        return None
    written = {path: path.stat().st_mtime_ns for path in folder.glob("hpc_ckpt_*.ckpt")}
    ended = max((path.stat().st_mtime_ns for path in folder.glob("results*.json")), default=-1)
    if max(written.values(), default=-1) <= ended:
        return None
    for pattern in ("last.ckpt", "step*.ckpt"):
        written |= {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").glob(pattern)}
    return max(written, key=lambda path: written[path])


def release_folder(folder: Path) -> None:
    """Let others claim the folder."""
    folder = folder.absolute()
    if (file := _held.pop(folder, None)) is not None:
        # gone before it is unlocked: whoever waits for it looks whether it is still there
        (folder / LOCK).unlink(missing_ok=True)
        file.close()


def save_config(folder: Path, config: Any) -> None:
    """Write ``.hydra`` with the composed config: Hydra would do so before the folder is claimed and anything checked.

    Args:
        folder: claimed. Nothing is written if it is not that of a command that Hydra has set up.
        config: of the run.
    """
    if process_rank() or not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    if Path(hydra.runtime.output_dir).absolute() != folder.absolute():
        return
    (folder / ".hydra").mkdir(exist_ok=True)
    files = {"config": config, "hydra": {"hydra": hydra}, "overrides": hydra.overrides.task}
    for name, content in files.items():
        with whole_file(folder / ".hydra" / f"{name}.yaml") as partial:
            partial.write_text(OmegaConf.to_yaml(content), encoding="utf-8")


def _lock(folder: Path) -> IO[str]:
    """The locked file. A worker process does not inherit the lock, and so does not keep it when this one is killed."""
    while True:
        file = (folder / LOCK).open("a+")
        if fcntl is None:
            return file
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read(200).strip()
            file.close()
            raise ConfigError("hydra.run.dir", f"another process is training in {folder} ({owner})") from None
        except OSError:  # a file system without locks
            return file
        if (folder / LOCK).exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            return file
        file.close()


def _is_below(path: str | None, folder: Path) -> bool:
    return path is not None and folder.resolve() in Path(os.path.expanduser(path)).absolute().resolve().parents
