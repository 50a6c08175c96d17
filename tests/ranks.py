"""How a process of a distributed test ends."""

import os
import sys

import torch.distributed as dist


def leave() -> None:
    """End this process at once, with success.

    The interpreter's own exit now and then aborts on a busy machine ("terminate called without an active exception")
    when a thread of gloo is still winding up; what the test asks for has been said by then.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
