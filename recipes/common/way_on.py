"""What is said of how a run goes on that has ended before its time."""

from pathlib import Path

# the mean of several epochs' weights, with which nothing goes on
AVERAGE = "average.ckpt"

# where a run leaves what it can go on from; those of the first line lack nothing of their moment
_WHERE = (
    ("checkpoints/last*.ckpt", "checkpoints/step*.ckpt", "hpc_ckpt_*.ckpt"),
    ("checkpoints/*.ckpt",),
)


def way_on(run_dir: Path, checkpoint: str | Path | None = None) -> str:
    """How a run goes on.

    Args:
        run_dir: the run folder.
        checkpoint: that it has ended with; None: the newest there.

    Example:
        >>> way_on(Path("run"), "run/checkpoints/last.ckpt")
        'resume=auto goes on, from run/checkpoints/last.ckpt'
    """
    checkpoint = checkpoint or newest_written(run_dir)
    return "no checkpoint was written yet" if checkpoint is None else f"resume=auto goes on, from {checkpoint}"


def note_way_on(error: Exception, run_dir: Path) -> None:
    """Add to an error that has ended a training how it goes on, if it can."""
    if (checkpoint := newest_written(run_dir)) is not None:
        error.add_note(f"({way_on(run_dir, checkpoint)})")


def newest_written(run_dir: Path) -> Path | None:
    """The checkpoint that was written last, of those that a run goes on from; none of them is read."""
    for patterns in _WHERE:
        paths = (path for pattern in patterns for path in run_dir.glob(pattern) if path.name != AVERAGE)
        if written := {path: path.stat().st_mtime_ns for path in paths}:
            return max(written, key=lambda path: written[path])
    return None
