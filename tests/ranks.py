"""Processes of distributed tests: how they begin and end."""

import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist


def run_ranks(script: Path, processes: int, *arguments: object, cwd: Path | None = None, **environment: str) -> None:
    """Run a program as so many ranks, or alone, with one thread each; fails with what they wrote if one does."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, arguments)]
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **ours, **environment})
    assert done.returncode == 0, done.stdout + done.stderr


def leave() -> None:
    """End this process at once, with success.

    The interpreter's own exit can abort while one of gloo's worker threads is late, and a rank of a test cannot always
    join them: under FSDP2 a cache of torch's keeps the group (docs/gloo_exit.md). What the test asks for has been said.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
