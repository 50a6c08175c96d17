"""What a run says, and where: on the console, in its log file, and in one line when it fails."""

import contextlib
import logging
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_novograd.errors import LightningNovoGradError
from lightning_novograd.recipes.asr.training.folder import FAILURE, is_one_of_many, process_rank

# An attribute of records that the log file has, and a console that shows a progress bar has not
FILE_ONLY = "file_only"
PATIENCE = 2.0  # s that a rank gives others to say what is wrong

# what a normal run would show of others, and nobody can do anything about: message, module, why
_WARNINGS = (
    # Lightning against a newer torch
    (r".isinstance\(treespec, LeafSpec\). is deprecated", r"lightning\.pytorch\.utilities\._pytree"),
    # claim_folder has looked into the folder, and a continued run belongs there
    (r"Checkpoint directory .* exists and is not empty", r"lightning\.pytorch\.callbacks\.model_checkpoint"),
    (r"Experiment logs directory .* exists and is not empty", r"lightning\.(fabric|pytorch)\.loggers\.csv_logs"),
    # a run that is continued in another folder chooses its best checkpoints anew
    (r"The dirpath has changed from ", r"lightning\.pytorch\.callbacks\.model_checkpoint"),
)
# the same of their logs: logger, beginning of the message
_LINES = (
    ("lightning.pytorch.utilities.rank_zero", "\N{ELECTRIC LIGHT BULB} Tip: "),  # an advertisement
    ("lightning.fabric.utilities.rank_zero", "\N{ELECTRIC LIGHT BULB} Tip: "),
    # the process that it speaks of has said why
    ("lightning.fabric.strategies.launchers.subprocess_script", "[rank: "),
)


class _Without(logging.Filter):
    """Drops the records that begin so."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


class _NotFileOnly(logging.Filter):
    """Of a console: drops what is for the file alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, FILE_ONLY, False)


class _Unbroken:
    """A stdout whose reader may go away: the run goes on, and what it says is in its log file.

    A training of days must not end because ``| head`` or a pager has. From then on the descriptor is /dev/null.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)
        with contextlib.suppress(OSError):
            self._stream.flush()


def outlive_readers() -> None:
    """Let stdout and stderr lose their readers."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Unbroken):
            setattr(sys, name, _Unbroken(stream))


def shows_bar(wanted: bool) -> bool:
    """Whether there is a progress bar: where it is wanted and stdout is a terminal."""
    return wanted and sys.stdout is not None and sys.stdout.isatty()


def set_up_console() -> None:
    """Leave out what nobody can do anything about; and on ranks but the first everything except errors.

    Called when Hydra has set up the logging. What other ranks say is in log files of their own, if they have any.
    """
    for message, module in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, module=module)
    for name, beginning in _LINES:
        logging.getLogger(name).addFilter(_Without(beginning))
    consoles = [h for h in logging.getLogger().handlers if is_console(h)]
    for handler in consoles:
        handler.addFilter(_NotFileOnly())
    if process_rank():
        logging.captureWarnings(True)
        lightning = [h for name in ("lightning", "lightning.pytorch", "lightning.fabric") for h in handlers_of(name)]
        for handler in (*consoles, *lightning, *files_of_first_rank()):
            handler.setLevel(logging.ERROR)


def is_console(handler: logging.Handler) -> bool:
    """Whether it writes to a stream that is no file of its own."""
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def handlers_of(name: str) -> list[logging.Handler]:
    """The handlers of a logger itself."""
    return logging.getLogger(name).handlers


def log_files() -> list[logging.FileHandler]:
    """Hydra's log file."""
    return [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]


def files_of_first_rank() -> list[logging.FileHandler]:
    """The log file, where torchrun or SLURM have all ranks write the same one; Lightning gives them names."""
    return [h for h in log_files() if "_process_" not in Path(h.baseFilename).name]


def one_line(error: BaseException) -> str:
    """What an error says, without the traceback that a DataLoader puts into the message of a worker's."""
    text, kind = str(error), type(error).__name__
    if text.startswith("Caught ") and "\nOriginal Traceback" in text:
        own = re.split(rf"^[\w.]*\b{kind}: ", text, flags=re.MULTILINE)
        text = own[-1] if len(own) > 1 else text.splitlines()[-1]
    return f"{kind}: {text.strip()}"


def fail(error: Exception, run_dir: Path, peers: Sequence[subprocess.Popen] = ()) -> NoReturn:
    """End a run: what is wrong is said once, in a line if the error is one of ours, and in ``train.log`` too.

    Of several ranks the first to fail speaks; what the others run into when it is gone is not said. They end at once:
    threads of a broken process group have more to say.

    Args:
        error: what has gone wrong.
        run_dir: the run folder.
        peers: processes of other ranks that this one has started.
    """
    ours, many = isinstance(error, LightningNovoGradError), is_one_of_many()
    if many and not _speaks(run_dir, patience=0.0 if ours else PATIENCE):
        _leave(peers)
    text = one_line(error) if ours else "".join(traceback.format_exception(error)).rstrip()
    write_to_log(text, run_dir)
    if many:
        print(text, file=sys.stderr)
        _leave(peers)
    if ours:
        sys.exit(text)
    raise error


def write_to_log(line: str, run_dir: Path) -> None:
    """Write an error to the first rank's log file, and to nothing else."""
    record = logging.LogRecord("train", logging.ERROR, __file__, 0, line, None, None)
    files = files_of_first_rank()
    for handler in files:
        handler.handle(record)
    if not files and (log := run_dir / "train.log").exists():
        with contextlib.suppress(OSError), log.open("a") as file:
            file.write(f"[rank {process_rank()}] {line}\n")


def _speaks(run_dir: Path, patience: float) -> bool:
    """Whether no other rank has failed before, nor does within `patience` seconds; the file system decides."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not (run_dir / FAILURE).exists():
        time.sleep(0.05)
    try:
        os.close(os.open(run_dir / FAILURE, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError:  # a disk that is full
        pass
    return True


def _leave(peers: Sequence[subprocess.Popen]) -> NoReturn:
    """End the process with an error, and those that it has started: they may wait for it until a timeout of hours."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    deadline = time.monotonic() + PATIENCE
    for peer in peers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            peer.wait(max(deadline - time.monotonic(), 0.0))
        peer.kill()
    os._exit(1)
