"""How many processes this machine has room for."""

import os


def workers(requested: int | None = None) -> int:
    """Processes or threads to prepare with: what the machine lets this process use."""
    return requested or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
