"""How a process of a distributed test ends."""

import os
import sys

import torch.distributed as dist


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
