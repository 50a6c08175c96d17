"""Jobs of several ranks, begun by each launcher, in which something happens to one rank."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from speech_runs import QUICK, manifests

PLANTED = Path(__file__).with_name("planted_train.py")
LAUNCHERS = ("lightning", "torchrun", "slurm")
START, END = 120.0, 60.0  # s in which a job must train, and must be over once something has happened


class Job:
    """Two ranks on the CPU, until they are told to end or end themselves.

    Args:
        launcher: ``"lightning"`` (the first rank starts the other), ``"torchrun"``, ``"slurm"`` (each by itself).
        folder: for the run folder and what the processes print.
        overrides: of the config.
        fault: what is planted, see planted_train.py.
        rank: where.
        ranks: how many; one has no launcher.
        run_dir: the run folder, if it is not in `folder`.
        obeys_modes: whether a superuser's processes may write only where the modes of files let them.
    """

    def __init__(
        self,
        launcher: str,
        folder: Path,
        overrides: list[str],
        fault: str = "",
        rank: int = 1,
        ranks: int = 2,
        run_dir: Path | None = None,
        obeys_modes: bool = False,
    ) -> None:
        self.overrides = overrides
        self.folder, self.run_dir, self.ranks = folder, run_dir or folder / "run", ranks
        self.mark, self.port = uuid.uuid4().hex, free_port()
        self.output = folder / "output.txt"
        arguments = [*overrides, f"hydra.run.dir={self.run_dir}"]
        if ranks > 1:
            arguments = ["trainer=ddp_cpu", f"trainer.devices={ranks}", *arguments]
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "COV_"))},
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "FAULT_FOLDER": str(folder),
            "FAULT": fault,
            "RANK_OF_FAULT": str(rank),
            "MARK_OF_JOB": self.mark,
        }
        self.processes = []
        with self.output.open("w") as output:

            def begin(command: list[str], **more: str) -> None:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        stdout=output,
                        stderr=output,
                        env={**env, **more},
                        cwd=folder,
                        preexec_fn=_obey_modes if obeys_modes else None,
                    )
                )

            program = [str(PLANTED), *arguments]
            if launcher == "torchrun":
                where = [f"--nproc-per-node={ranks}", "--master-addr=127.0.0.1", f"--master-port={self.port}"]
                begin([sys.executable, "-m", "torch.distributed.run", *where, *program])
            elif launcher == "slurm":
                common = {"SLURM_NTASKS": str(ranks), "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_JOB_ID": "7"}
                common |= {"SLURM_JOB_NAME": "train", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
                for number in range(ranks):
                    place = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
                    begin([sys.executable, *program], **common, **place)
            else:
                begin([sys.executable, *program])

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.left():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def wait_until_it_trains(self) -> list[int]:
        """The process ids of the ranks."""
        files = [self.folder / f"pid{rank}" for rank in range(self.ranks)]
        deadline = time.monotonic() + START
        while not all(file.exists() for file in files):
            assert time.monotonic() < deadline, f"does not train: {self.said()}"
            assert self.left(), f"has ended: {self.said()}"
            time.sleep(0.1)
        return [int(file.read_text()) for file in files]

    def left(self) -> list[int]:
        """Processes of the job that there still are, loader workers too; none that waits to be reaped."""
        for process in self.processes:
            process.poll()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError):
                    if f"MARK_OF_JOB={self.mark}".encode() in (folder / "environ").read_bytes():
                        found.append(int(folder.name))
        return found

    def wait_until_over(self, within: float = END) -> float:
        """How long the last process takes to end, s."""
        began = time.monotonic()
        while self.left():
            assert time.monotonic() - began < within, f"{self.left()} are left after {within} s: {self.said()}"
            time.sleep(0.1)
        return time.monotonic() - began

    def said(self) -> str:
        return self.output.read_text()

    def codes(self) -> list[int]:
        return [process.wait() for process in self.processes]


def _obey_modes() -> None:
    """Give up, for the program that comes, the right of a superuser to write anywhere (CAP_DAC_OVERRIDE)."""
    drop, dac_override = 24, 1  # PR_CAPBSET_DROP
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).prctl(drop, dac_override, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_CAPBSET_DROP)")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def is_free(port: int, within: float = 10.0) -> bool:
    """Whether another job can have the port; the system takes a moment to clear what a killed one has left."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", port))
            return True
        time.sleep(0.2)
    return False


def long_run(corpus: Path, *more: str) -> list[str]:
    """A run that does not end by itself, and writes checkpoints."""
    return [
        *(word for word in QUICK if "max_epochs" not in word),
        *manifests(corpus),
        "trainer.max_epochs=100000",
        "optim.sched.max_steps=1000000",
        "checkpoint.every_n_steps=2",
        "trainer.check_val_every_n_epoch=5",
        "data.batch_size=2",
        *more,
    ]
