"""Runs of the recipe in forked processes, which are killed where a test says; and what two runs have in common.

This process imports torch once, and every attempt is a fork of it: a run of eighteen optimizer steps takes seconds.
"""

import csv
import json
import os
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_module
from speech_runs import manifests

from lightning_novograd.recipes.asr.training import run as run_file
from lightning_novograd.recipes.common import loggers
from lightning_novograd.recipes.common.checkpoints import kept as checkpoints
from lightning_novograd.recipes.common.console import set_up_console
from lightning_novograd.recipes.common.restart.signals import Stopped, exit_code

# three epochs of six steps of two micro-batches; everything on that draws random numbers or keeps counters
EVERYTHING = [
    "data=manifest",
    "model=quartznet_small",
    "model.encoder.jasper=[{filters: 16, kernel: 11, stride: 2, separable: true, residual: false, dropout: 0.2}, "
    "{filters: 16, kernel: 13, repeat: 2, separable: true, residual: true, dropout: 0.2}]",
    "model.decoder.feat_in=16",
    "model.spec_augment.time_masks=1",
    "data.num_workers=2",
    "data.augment={speed: {min: 0.9, max: 1.1}, noise: {prob: 0.5, min_snr_db: 10, max_snr_db: 30}}",
    "+optim.ema=0.9",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "+trainer.enable_model_summary=false",
    "trainer.accumulate_grad_batches=2",
    "checkpoint.every_n_steps=2",
    "checkpoint.average=2",
    "data.eval_batch_size=6",
]
UTTERANCES = 26  # of the training set: two do not fill a global batch of four
TIMES = ("utt_per_s", "wall_s", "peak_memory_mb")


def options(corpus: Path, ranks: int = 1) -> list[str]:
    """Overrides of a run whose global batch is four utterances, on one rank or two."""
    split = ["trainer=ddp_cpu", "data.batch_size=1"] if ranks == 2 else ["data.batch_size=2"]
    # the group comes first: its file would overrule keys of EVERYTHING
    return [*split, *EVERYTHING, *manifests(corpus)]


class Kill(NamedTuple):
    """When a process ends itself with SIGKILL.

    `moment` is the name of a moment of :class:`Moments`, and `count` which of them it is, from 1.
    """

    moment: str
    count: int
    rank: int = 0


class Moments(pl.Callback):
    """Notes the order of the utterances, and does what it was told at a moment.

    Args:
        notes: a file that gets a line for each micro-batch.
        act: is told the name of each moment as it comes.
    """

    def __init__(self, notes: Path, act: Callable[[str], None]) -> None:
        self.notes, self.act = notes, act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        line = [trainer.current_epoch, batch_idx, trainer.global_rank, list(batch.places), float(batch.wave_BS.sum())]
        with self.notes.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.act("batch")

    def on_before_backward(self, trainer, pl_module, loss):
        self.act("forward")

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.act("window")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.act("batch end")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.act("validation batch" if trainer.state.fn == "fit" else "measured batch")

    def on_validation_epoch_end(self, trainer, pl_module):
        self.act("validation end")

    def on_train_epoch_end(self, trainer, pl_module):
        self.act("epoch end")

    def on_train_end(self, trainer, pl_module):
        self.act("train end")


def _planted(notes: Path, act: Callable[[str], None]) -> None:
    """Have `act` told of moments in this process: those of a fit, and those of a checkpoint that is written."""
    build, save, fsync = run_file.build_trainer, torch.save, os.fsync
    remove = checkpoints.WholeCheckpoints.remove_checkpoint

    def build_trainer(settings, plan, run_dir, callbacks):
        return build(settings, plan, run_dir, [Moments(notes, act), *callbacks])

    def saved(content, file):
        save(content, file)
        file.flush()
        whole = file.tell()
        os.ftruncate(file.fileno(), whole // 2)
        act("half written")
        os.ftruncate(file.fileno(), 0)
        file.seek(0)
        save(content, file)

    def synced(descriptor):
        act("synced")
        fsync(descriptor)

    def removed(self, path):
        act("removed")
        remove(self, path)

    run_file.build_trainer = build_trainer
    checkpoints.torch = type("torch", (), {"save": staticmethod(saved)})
    checkpoints.os = type("os", (), {**vars(os), "fsync": staticmethod(synced)})
    checkpoints.WholeCheckpoints.remove_checkpoint = removed
    loggers.AppendingWriter.save = _told(loggers.AppendingWriter.save, act)


def _told(save, act):
    def saved(self):
        act("row")
        save(self)

    return saved


class Attempt:
    """The ranks of a run, forked; as of a job that ends as a whole when one of them does.

    Args:
        run_dir: of the run; what its processes print is in ``attempt.log``.
        overrides: of the config.
        act: is called in each rank with its number and the name of each moment.
        ranks: how many.
    """

    def __init__(
        self, run_dir: Path, overrides: Sequence[str], act: Callable[[int, str], None] = lambda *a: None, ranks: int = 1
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        port = _free_port()
        self.pids = [self._fork(rank, overrides, act, ranks, port) for rank in range(ranks)]
        self.codes: dict[int, int] = {}

    def _fork(self, rank, overrides, act, ranks, port) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setpgid(0, 0)
            log = os.open(self.run_dir / "attempt.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if ranks > 1:
                os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
                os.environ |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
            torch.set_num_threads(1)
            set_up_console()
            _planted(self.run_dir / "order.jsonl", lambda moment: act(rank, moment))
            with initialize_config_module("lightning_novograd.conf", version_base="1.3"):
                run_file.run(compose("asr", overrides=list(overrides)), self.run_dir)
            code = 0
        except SystemExit as end:
            code = exit_code(end) if isinstance(end, Stopped) else end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self, limit: float = 120.0) -> list[int]:
        """Exit codes of all ranks, negative for signals; those that are left when one has failed are killed."""
        deadline, failed_at = time.monotonic() + limit, None
        while len(self.codes) < len(self.pids):
            for pid in self.pids:
                if pid not in self.codes:
                    self._poll(pid)
            if failed_at is None and any(code < 0 for code in self.codes.values()):
                failed_at = time.monotonic()
            late = time.monotonic() > deadline
            if late or failed_at is not None:
                self.kill()
            assert not late, f"not done in {limit:g} s: {self.said()[-2000:]}"
            time.sleep(0.01)
        return [self.codes[pid] for pid in self.pids]

    def _poll(self, pid: int) -> None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            self.codes[pid] = os.waitstatus_to_exitcode(status)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to every rank that is left."""
        for pid in self.pids:
            if pid not in self.codes:
                os.kill(pid, number)

    def said(self) -> str:
        return (self.run_dir / "attempt.log").read_text()


def killing(kill: Kill) -> Callable[[int, str], None]:
    """Ends a rank at a moment, as a machine does that loses its power."""
    seen: Counter[str] = Counter()

    def act(rank: int, moment: str) -> None:
        seen[moment] += 1
        if rank == kill.rank and moment == kill.moment and seen[moment] == kill.count:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything that two runs of one config must have in common, bit for bit."""
    last = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    results = json.loads((run_dir / "results.json").read_text())
    lines = [json.loads(line) for line in (run_dir / "order.jsonl").read_text().splitlines()]
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    return {
        "last.ckpt": _comparable({name: last[name] for name in last if name != "callbacks"}, run_dir),
        "callbacks": _comparable(last["callbacks"], run_dir),
        "results.json": {name: value for name, value in results.items() if name not in TIMES},
        "metrics.csv": rows,
        # of what was heard twice the later one counts: the steps behind the checkpoint are made again
        "order": {f"{epoch}:{batch}:{rank}": what for epoch, batch, rank, *what in lines},
        "files": sorted(path.name for path in (run_dir / "checkpoints").iterdir()),
    }


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Paths of the values that differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = {**ours, **theirs}
        return [d for n in names for d in differences(ours.get(n, "<none>"), theirs.get(n, "<none>"), f"{path}/{n}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [d for i, pair in enumerate(zip(ours, theirs, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    return [] if ours == theirs else [f"{path}: {str(ours)[:200]} != {str(theirs)[:200]}"]


def _comparable(value: Any, run_dir: Path) -> Any:
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), value.contiguous().reshape(-1).view(torch.uint8).tolist()]
    if isinstance(value, dict):
        # Lightning saves the score of ModelCheckpoint's last save, does not restore it, and never reads it
        kept = {str(name).replace(str(run_dir), "RUN"): v for name, v in value.items() if name != "current_score"}
        return {name: _comparable(item, run_dir) for name, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item, run_dir) for item in value]
    return value.replace(str(run_dir), "RUN") if isinstance(value, str) else value


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
