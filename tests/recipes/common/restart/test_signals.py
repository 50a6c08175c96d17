"""A signal ends a run between two optimizer steps, or at once where there are none."""

import logging
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from tiny_speech import batch, loader, module, trainer

from lightning_novograd.recipes.asr.training.callbacks import NonFiniteGuard
from lightning_novograd.recipes.common.checkpoints.kept import StepCheckpoint
from lightning_novograd.recipes.common.console import stop
from lightning_novograd.recipes.common.data.loader import ResumableLoader, stand_apart
from lightning_novograd.recipes.common.data.sampler import GlobalBatchSampler
from lightning_novograd.recipes.common.restart.place import RestartPoint
from lightning_novograd.recipes.common.restart.signals import (
    ENDING,
    Inbox,
    StopAtSignal,
    Stopped,
    end_peers,
    exit_code,
    listening,
    requeue,
)

BATCHES = loader([batch(i) for i in range(8)])


class Signals(Callback):
    """Has this process get a signal at a moment."""

    def __init__(self, hook, index, number) -> None:
        self.seen = 0
        self.handlers = []

        def come(trainer, *args):
            self.handlers.append(signal.getsignal(number))
            self.seen += 1
            if self.seen == index:
                os.kill(os.getpid(), number)

        setattr(self, hook, come)


def fit(folder, signals, *callbacks, **options):
    inbox, guard = Inbox(), NonFiniteGuard()
    ours = [guard, signals, *callbacks, RestartPoint(), StopAtSignal(inbox, folder)]
    made = trainer(ours, **{"accumulate_grad_batches": 2, "enable_checkpointing": True, "max_epochs": 2, **options})
    before = [signal.getsignal(number) for number in ENDING]
    with pytest.raises(Stopped) as caught, listening(inbox):
        made.fit(module(guard), BATCHES, loader([batch(20), batch(21)]))
    assert [signal.getsignal(number) for number in ENDING] == before
    assert all(handler == inbox.note for handler in signals.handlers), "Lightning has installed none of its own"
    return caught.value, made


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize(
    ("hook", "index", "steps"),
    [
        ("on_train_batch_start", 5, 3),  # inside a window: at its end
        ("on_train_batch_end", 6, 4),  # behind a step: at the next one
        ("on_validation_batch_start", 2, 4),
        ("on_train_epoch_end", 1, 5),
    ],
)
def test_a_training_ends_with_a_checkpoint_between_two_steps(tmp_path, hook, index, steps, number):
    end, made = fit(tmp_path, Signals(hook, index, number))
    assert (end.number, end.code, end.together, made.global_step) == (number, 128 + number, True, steps)
    assert end.checkpoint == str(tmp_path / f"step{steps:07d}.ckpt")
    saved = torch.load(end.checkpoint, weights_only=True)
    assert saved["global_step"] == steps


def test_it_is_the_checkpoint_of_the_step_if_there_is_one(tmp_path):
    by_step = StepCheckpoint(tmp_path, 3)
    end, _ = fit(tmp_path, Signals("on_train_batch_start", 5, signal.SIGTERM), by_step)
    assert end.checkpoint == str(tmp_path / "step0000003.ckpt")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_fit_start", "on_train_end"])
def test_before_and_behind_the_training_nothing_is_lost(tmp_path, hook):
    end, made = fit(tmp_path, Signals(hook, 1, signal.SIGTERM), num_sanity_val_steps=1)
    assert (end.code, end.checkpoint) == (143, None)
    assert made.global_step == (8 if hook == "on_train_end" else 0)


def test_slurm_saves_and_requeues_by_lightnings_own_function_but_not_inside_the_handler(tmp_path, monkeypatch):
    asked = []
    environment = SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)
    for name, value in {"SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", lambda cmd: asked.append(cmd))
    signals = Signals("on_train_batch_start", 5, signal.SIGUSR1)
    end, made = fit(tmp_path, signals, default_root_dir=tmp_path, plugins=[environment])
    assert (end.code, made.global_step, asked) == (138, 3, [["scontrol", "requeue", "17"]])
    assert torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"] == 3


def test_no_rank_ends_while_the_first_one_requeues(tmp_path, monkeypatch):
    """srun --kill-on-bad-exit=1 would end that call too."""
    happened = []
    environment = SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)
    for name, value in {"SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(
        "lightning.pytorch.trainer.connectors.signal_connector.call", lambda cmd: happened.append("requeued")
    )
    monkeypatch.setattr(SingleDeviceStrategy, "barrier", lambda self, name=None: happened.append("barrier"))
    fit(tmp_path, Signals("on_train_batch_start", 5, signal.SIGUSR1), default_root_dir=tmp_path, plugins=[environment])
    assert "barrier" in happened[happened.index("requeued") :]


@pytest.mark.parametrize("name", ["register_signal_handlers", "_slurm_sigusr_handler_fn"])
def test_another_lightning_whose_handlers_are_not_replaced_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.delattr(_SignalConnector, name)
    made = trainer([StopAtSignal(Inbox(), tmp_path)], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match=f"_SignalConnector has no {name}, which"):
        made.fit(module(), BATCHES)


def test_the_votes_travel_with_the_guards_number():
    """No further collective for them."""
    inbox, guard, reduced = Inbox([2, 15]), NonFiniteGuard(), []

    def reduce(votes, reduce_op):
        reduced.append(votes.tolist())
        return votes + torch.tensor([0.0, 0.0, 1.0])  # another rank has got 15

    guard.inbox = inbox
    strategy = SimpleNamespace(reduce=reduce)
    assert guard._sum(SimpleNamespace(strategy=strategy), torch.tensor(False)) == 0
    assert (reduced, inbox.agreed, inbox.number) == ([[0.0, 0.0, 0.0]], 15, None)
    inbox.is_training = True
    inbox.note(2, None)
    assert guard._sum(SimpleNamespace(strategy=strategy), torch.tensor(True)) == 1
    assert (reduced[1], inbox.agreed) == ([1.0, 1.0, 0.0], 2)


def forked(act) -> tuple[int, str]:
    """Exit code, or minus a signal, of a process that does this, and what it wrote."""
    reads, writes = os.pipe()
    if not (pid := os.fork()):
        try:
            act(lambda text: os.write(writes, text.encode()))
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def test_a_second_signal_ends_the_process_at_once():
    def act(say):
        inbox = Inbox()
        with listening(inbox):
            inbox.is_training, inbox.peers = True, [SimpleNamespace(kill=lambda: say("peer killed"))]
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                say("noted, ")

    assert forked(act) == (-signal.SIGTERM, "noted, peer killed")


def test_python_hands_out_signals_to_the_main_thread_alone():
    done = []
    thread = threading.Thread(target=lambda: [listening(Inbox()).__enter__(), done.append(True)])
    thread.start()
    thread.join()
    assert done


@pytest.mark.parametrize(
    ("environment", "together", "code"),
    [
        ({}, True, 143),
        ({"LOCAL_RANK": "0"}, True, 143),
        ({"LOCAL_RANK": "1"}, True, 0),  # Lightning's launcher would kill the first rank, which speaks for all
        ({"LOCAL_RANK": "1"}, False, 143),
        ({"LOCAL_RANK": "1", "RANK": "1", "TORCHELASTIC_RUN_ID": "a"}, True, 143),
        # srun --kill-on-bad-exit=1 would kill it
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, True, 0),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, True, 143),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, False, 143),
    ],
)
def test_exit_codes(monkeypatch, environment, together, code):
    for name in ("LOCAL_RANK", "RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert exit_code(Stopped(signal.SIGTERM, together=together)) == code


def test_what_is_said(tmp_path, caplog):
    for checkpoint, way in (
        (None, "no checkpoint was written yet"),
        ("a/step0000007.ckpt", "resume=auto goes on, from a/step0000007.ckpt"),
    ):
        caplog.clear()
        with pytest.raises(SystemExit) as caught, caplog.at_level(logging.ERROR):
            stop(Stopped(signal.SIGINT, checkpoint), tmp_path)
        assert (caught.value.code, caplog.messages) == (130, [f"ended by SIGINT; {way}"])


def test_processes_that_were_started_end_too():
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    peers = [subprocess.Popen(sleeps), subprocess.Popen([sys.executable, "-c", ""])]
    end_peers(Stopped(15), peers)
    assert peers[0].wait() == -signal.SIGKILL


def test_signals_to_a_whole_run_do_not_reach_its_loaders():
    def act(say):
        stand_apart(0)
        signal.raise_signal(signal.SIGINT)
        say("apart" if os.getpgid(0) == os.getpid() != os.getpgid(os.getppid()) else "together")

    assert forked(act) == (0, "apart")
    made = ResumableLoader([], GlobalBatchSampler([1.0], 1), list, num_workers=1)
    assert made._loader.worker_init_fn is stand_apart


@pytest.mark.parametrize(
    ("environment", "end", "asked"),
    [
        ({}, {}, "7"),
        ({"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}, {}, "5_3"),
        ({}, {"together": True}, "7"),  # behind the training, before the test set
        ({}, {"is_settled": True}, None),
        ({}, {"number": signal.SIGTERM}, None),
        ({"SLURM_PROCID": "1"}, {}, None),
        ({"SLURM_NTASKS": None}, {}, None),  # no job of SLURM's
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_job_whose_time_is_up_outside_of_the_training_is_requeued(
    monkeypatch, tmp_path, caplog, environment, end, asked, fails
):
    """Lightning would ask for it in the training alone."""
    in_slurm = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "asr"}
    for name, value in {**in_slurm, **environment}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked\n" + "echo no such job >&2; exit 1\n" * fails)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with caplog.at_level(logging.INFO):
        requeue(Stopped(**{"number": signal.SIGUSR1, **end}))
    asks = tmp_path / "asked"
    assert (asks.read_text() if asks.exists() else None) == (asked and f"requeue {asked}\n")
    said = "could not be put into the queue again: no such job" if fails else "is in the queue again"
    assert caplog.messages == ([f"SLURM job {asked} {said}"] if asked else [])


def test_other_ranks_of_such_a_job_end_without_an_error(monkeypatch):
    """srun --kill-on-bad-exit=1 would end the first one, which asks for the requeue."""
    for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "asr"}.items():
        monkeypatch.setenv(name, value)
    assert exit_code(Stopped(signal.SIGUSR1)) == 0
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert exit_code(Stopped(signal.SIGUSR1)) == 128 + signal.SIGUSR1
