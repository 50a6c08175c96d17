"""train.py with a fault planted in one rank: FAULT is what, RANK_OF_FAULT where, FAULT_FOLDER takes notes.

A rank that has trained some batches writes its process id there; the file ``go`` lets the fault happen. Lightning's
launcher starts this file again for its other ranks.
"""

import os
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from lightning_novograd.recipes.asr import train
from lightning_novograd.recipes.asr.data.dataset import SpeechDataset
from lightning_novograd.recipes.asr.training import run as run_file
from lightning_novograd.recipes.common import command, console
from lightning_novograd.recipes.common.folder import process_rank
from lightning_novograd.recipes.common.restart import newest as newest_file

FOLDER, FAULT = Path(os.environ["FAULT_FOLDER"]), os.environ["FAULT"]


def is_time() -> bool:
    return process_rank() == int(os.environ["RANK_OF_FAULT"]) and (FOLDER / "go").exists()


class Planted(pl.Callback):
    """Notes that a rank trains; the error of the one that is to raise."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if FAULT == "raise" and is_time():
            raise ZeroDivisionError("planted")
        if FAULT == "nan" and trainer.global_step >= 2 and is_time():
            batch.wave_BS[0, 5] = torch.nan

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            partial = FOLDER / f".pid{trainer.global_rank}"
            partial.write_text(str(os.getpid()))
            partial.rename(FOLDER / f"pid{trainer.global_rank}")
        time.sleep(float(os.environ.get("PAUSE_OF_BATCH", "0")))


def planted_build(settings, plan, run_dir, callbacks):
    return build(settings, plan, run_dir, [*callbacks[:-1], Planted(), callbacks[-1]])


def planted_item(self, key):
    if FAULT == "hang" and is_time():
        time.sleep(3600)
    return load(self, key)


def planted_newest(run_dir):
    """A rank to which the disk does not show the newest checkpoint yet."""
    return None if FAULT == "behind" and process_rank() == int(os.environ["RANK_OF_FAULT"]) else newest(run_dir)


newest, newest_file.newest_checkpoint = newest_file.newest_checkpoint, planted_newest
build, run_file.build_trainer = run_file.build_trainer, planted_build
load, SpeechDataset.__getitem__ = SpeechDataset.__getitem__, planted_item
if __name__ == "__main__":
    console.outlive_readers()
    train.main()
    if dist.is_initialized():
        command.leave()
