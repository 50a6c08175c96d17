"""What a run says, and where: on the console, in its log file, and in one line when it fails."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_novograd.errors import LightningNovoGradError
from lightning_novograd.recipes.common.faults.launch import LAUNCH
from lightning_novograd.recipes.common.faults.processes import Process, kill
from lightning_novograd.recipes.common.folder import FAILURE, is_one_of_many, process_rank, release_folder
from lightning_novograd.recipes.common.restart.signals import Stopped, exit_code, requeue
from lightning_novograd.recipes.common.way_on import way_on

# An attribute of records that the log file has, and a console that shows a progress bar has not
FILE_ONLY = "file_only"
PATIENCE = 2.0  # s that a rank gives others to say what is wrong
_speaking = threading.RLock()

# what a normal run would show of others, and nobody can do anything about: message, module, why
_WARNINGS = (
    # Lightning against a newer torch
    (r".isinstance\(treespec, LeafSpec\). is deprecated", r"lightning\.pytorch\.utilities\._pytree"),
    # claim_folder has looked into the folder, and a continued run belongs there
    (r"Checkpoint directory .* exists and is not empty", r"lightning\.pytorch\.callbacks\.model_checkpoint"),
    (r"Experiment logs directory .* exists and is not empty", r"lightning\.(fabric|pytorch)\.loggers\.csv_logs"),
    # of weights that are measured; the names that a run goes on with are put right by RestartPoint
    (r"The dirpath has changed from ", r"lightning\.pytorch\.callbacks\.model_checkpoint"),
)


class _Without(logging.Filter):
    """Drops the records whose beginning matches."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = re.compile(beginning)

    def filter(self, record: logging.LogRecord) -> bool:
        return self.beginning.match(record.getMessage()) is None


_NO_ADVERTISEMENT = _Without("\N{ELECTRIC LIGHT BULB} Tip: ")
# the same of their logs: logger, filter. A logger keeps no filter twice
_LINES = (
    ("lightning.pytorch.utilities.rank_zero", _NO_ADVERTISEMENT),
    ("lightning.fabric.utilities.rank_zero", _NO_ADVERTISEMENT),
    # the process that it speaks of has said why, unless a signal has ended it (a negative code)
    ("lightning.fabric.strategies.launchers.subprocess_script", _Without(r"\[rank: .* with code \d")),
)


class _NotFileOnly(logging.Filter):
    """Of a console: drops what is for the file alone."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, FILE_ONLY, False)


_NOT_FILE_ONLY = _NotFileOnly()


class _Unbroken:
    """A stdout that may go away, with its reader, its terminal or its disk: the run goes on, and has its log file.

    A training of days must not end because ``| head`` or a pager has. From then on the descriptor is /dev/null.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BlockingIOError:  # a reader that is slow
            return len(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BlockingIOError:
            pass
        except OSError:
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
    for name, rule in _LINES:
        logging.getLogger(name).addFilter(rule)
    consoles = [
        handler
        for name in (None, "lightning", "lightning.pytorch", "lightning.fabric")
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
    for handler in consoles:
        handler.addFilter(_NOT_FILE_ONLY)
    if process_rank():
        logging.captureWarnings(True)
        for handler in (*consoles, *_files_of_first_rank()):
            handler.setLevel(logging.ERROR)


def _files_of_first_rank() -> list[logging.FileHandler]:
    """Hydra's log file, unless it is this rank's own: Lightning gives those names, torchrun and SLURM do not."""
    files = (handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler))
    return [handler for handler in files if "_process_" not in Path(handler.baseFilename).name]


def one_line(error: BaseException) -> str:
    """What an error says, without the traceback that a DataLoader puts into the message of a worker's."""
    text, kind = str(error), type(error).__name__
    if text.startswith("Caught ") and "\nOriginal Traceback" in text:
        own = re.split(rf"^[\w.]*\b{kind}: ", text, flags=re.MULTILINE)
        text = own[-1] if len(own) > 1 else text.splitlines()[-1]
    return f"{kind}: {text.strip()}"


def fail(
    error: Exception,
    run_dir: Path,
    many: bool | None = None,
    peers: Sequence[subprocess.Popen] = (),
    culprit: Process | None = None,
) -> NoReturn:
    """End a run: what is wrong is said once, in a line if the error is one of ours, and in ``train.log`` too.

    Of several ranks the first to fail speaks; what the others run into when it is gone is not said. They end at once:
    threads of a broken process group have more to say.

    Args:
        error: what has gone wrong.
        run_dir: the run folder.
        many: whether there are other ranks; None for what the launcher says.
        peers: processes of other ranks that this one has started.
        culprit: a rank that will not end by itself.
    """
    ours, many = isinstance(error, LightningNovoGradError), is_one_of_many() if many is None else many
    if many and not _speaks(run_dir, patience=0.0 if ours else PATIENCE):
        _leave(run_dir, peers)
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    text = one_line(error) + notes if ours else "".join(traceback.format_exception(error)).rstrip()
    write_to_log(text, run_dir)
    if many:
        print(text, file=sys.stderr)
        if culprit is not None:
            kill(culprit)
        _leave(run_dir, peers)
    if ours:
        sys.exit(text)
    raise error


def stop(end: SystemExit, run_dir: Path) -> NoReturn:
    """End a run that was told to end, with the exit code that schedulers and shells know, and say how it goes on.

    Lightning ends with the code 0 on SIGTERM and 1 on Ctrl-C; a run that was preempted would pass for a finished one.

    Args:
        end: as Lightning raises it.
        run_dir: the run folder.
    """
    if isinstance(end, Stopped):
        if process_rank() == 0:
            name, way = signal.Signals(end.number).name, way_on(run_dir, end.checkpoint)
            logging.getLogger(__name__).error("ended by %s; %s", name, way)
        requeue(end)
        raise SystemExit(exit_code(end)) from None
    if isinstance(end, SIGTERMException):
        name, number = "SIGTERM", signal.SIGTERM
    elif isinstance(end.__context__, KeyboardInterrupt):
        name, number = "Ctrl-C", signal.SIGINT
    else:
        raise end
    if process_rank() == 0:
        logging.getLogger(__name__).error("ended by %s; %s", name, way_on(run_dir))
    raise SystemExit(128 + number) from None


def write_to_log(line: str, run_dir: Path) -> None:
    """Write an error to the first rank's log file, and to nothing else."""
    record = logging.LogRecord("train", logging.ERROR, __file__, 0, line, None, None)
    files = _files_of_first_rank()
    for handler in files:
        handler.handle(record)
    if not files and (log := run_dir / "train.log").exists():
        with contextlib.suppress(OSError), log.open("a") as file:
            file.write(f"[rank {process_rank()}] {line}\n")


def _speaks(run_dir: Path, patience: float) -> bool:
    """Whether no other rank has failed before, nor does within `patience` seconds.

    A thread of this rank that comes second waits until the first has spoken, and the process ends.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not LAUNCH.has_failed(run_dir):
        time.sleep(0.05)
    _speaking.acquire()
    return LAUNCH.fails_first(run_dir)


def _leave(run_dir: Path, peers: Sequence[subprocess.Popen]) -> NoReturn:
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
    if peers:
        LAUNCH.path(run_dir, FAILURE).unlink(missing_ok=True)
    release_folder(run_dir)
    os._exit(1)
