"""Which process a rank is, and what the system knows of it."""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

GONE, STOPPED, RUNNING, UNKNOWN = "gone", "stopped", "running", ""

_PR_SET_PDEATHSIG = 1
_PROC = Path("/proc")
# of this process when it began, as far as can be told: the launcher's that may be gone by now
_FIRST_PARENT = os.getppid()


class Process(NamedTuple):
    """A process that no other is taken for.

    Args:
        pid: its id.
        started: clock ticks from the start of its machine, as ids are used again; 0 where the system does not say.
        machine: one start of one machine, and one namespace of ids on it; empty where the system does not say.
        host: what people call the machine.
    """

    pid: int
    started: int
    machine: str
    host: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    """The one that asks."""
    pid = os.getpid()
    _, started = _stat(pid)
    return Process(pid, started, _machine(), socket.gethostname())


def state_of(process: Process) -> str:
    """Whether it runs: ``GONE``, ``STOPPED`` or ``RUNNING``; ``UNKNOWN`` of another machine, and without /proc."""
    if not process.machine or process.machine != _machine():
        return UNKNOWN
    letter, started = _stat(process.pid)
    if letter in ("", "Z", "X") or started != process.started:
        return GONE
    return STOPPED if letter in "Tt" else RUNNING


def kill(process: Process) -> None:
    """End it, if it runs on this machine and is not the one that asks: a process that is stopped heeds nothing else."""
    if process.pid != os.getpid() and state_of(process) in (STOPPED, RUNNING):
        try:
            os.kill(process.pid, signal.SIGKILL)
        except OSError:  # it has just ended, or is another user's
            return


def launcher() -> int | None:
    """The process without which this one has no purpose: Lightning's first rank, or torchrun; None without such.

    A rank that a shell or SLURM has started is not told from one that is to outlive its shell (``nohup``).
    """
    started_by_lightning = any("train_ddp_process_" in word for word in sys.argv)
    return _FIRST_PARENT if started_by_lightning or "TORCHELASTIC_RUN_ID" in os.environ else None


def is_orphan() -> bool:
    """Whether its launcher is gone, which a thread asks now and then."""
    return launcher() is not None and os.getppid() != _FIRST_PARENT


def wake_as_orphan() -> None:
    """Have Linux continue this process, should it be stopped when its launcher ends: it then notices that itself."""
    if launcher() is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def _machine() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.stat(_PROC / 'self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return ""


def _stat(pid: int) -> tuple[str, int]:
    """State and start of a process; no letter if there is none."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError):
        return "", 0
