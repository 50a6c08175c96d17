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
from lightning_novograd.recipes.common.way_on import newest_written, way_on

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
            nor requeued, or is to be continued from two checkpoints.
    """
    folder = folder.absolute()
    if process_rank() or folder in _held:
        return
    continues = _is_below(resume_from, folder)
    if continues and resume == "auto":
        problem = f"{resume_from} is of the run in {folder}, whose newest checkpoint resume=auto takes"
        raise ConfigError("resume_from", f"{problem}; leave it out, or say resume=null to go on from that very one")
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
    if traces and resume != "auto" and not continues and not is_requeued(folder):
        release_folder(folder)
        found = f"{', '.join(traces[:3])}{', ...' if len(traces) > 3 else ''}"
        way = "choose another one" if newest_written(folder) is None else f"{way_on(folder)}; or choose another folder"
        raise ConfigError("hydra.run.dir", f"{folder} holds a run already ({found}); {way}")
    # of a process that was killed while it wrote; nobody else writes here now
    for left in (*folder.glob(PARTIAL.format("*")), *(folder / "checkpoints").glob(PARTIAL.format("*"))):
        left.unlink(missing_ok=True)


def is_requeued(folder: Path) -> bool:
    """Whether SLURM has begun this job again, by the command that began it, before the run in the folder had ended.

    SLURM counts how often it has, also after a preemption or when a node has failed. Before it does so at its signal,
    Lightning writes ``hpc_ckpt_N.ckpt``. A run that has ended since is none that was requeued.

    Args:
        folder: the run folder.
    """
    if not SLURMEnvironment.detect():
        return False
    begun_again = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    kept = [*folder.glob("hpc_ckpt_*.ckpt"), *(folder.glob("checkpoints/*.ckpt") if begun_again else ())]
    ended = max((path.stat().st_mtime_ns for path in folder.glob("results*.json")), default=None)
    if ended is None:
        return begun_again or bool(kept)
    return any(path.stat().st_mtime_ns > ended for path in kept)


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
