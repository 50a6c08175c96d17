"""Train a tiny model for a few optimizer steps and save its weights; run by test_ddp_update.py, alone or per rank.

usage: ddp_update.py MANIFEST OUT BATCH_SIZE ACCUMULATE WORLD_SIZE [REDUCTION LAST]
"""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.training.module import CTCModule

BLOCK = {"repeat": 1, "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False, "separable": True}
MODEL = {
    "labels": [" ", "a", "b"],
    "preprocessor": {"features": 16, "dither": 0.0},
    "encoder": {
        "feat_in": 16,
        "activation": "relu",
        "jasper": [
            {**BLOCK, "filters": 8, "kernel": [5], "stride": [2]},
            {**BLOCK, "filters": 8, "kernel": [5], "repeat": 2, "residual": True},
        ],
    },
    "decoder": {"feat_in": 8, "num_classes": 3},
}
OPTIM = {
    "name": "novograd",
    "lr": 0.05,
    "betas": [0.95, 0.25],
    "weight_decay": 0.01,
    "sched": {"name": "CosineAnnealing", "warmup_steps": 1},
}


class FrozenBatchNorm(pl.Callback):
    """Keeps BatchNorm's statistics fixed: those of half a batch cannot equal those of the whole."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for module in pl_module.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()


def main(
    manifest: str,
    out: str,
    batch_size: str,
    accumulate: str,
    world_size: str,
    reduction: str = "mean_batch",
    last: str = "drop",
) -> None:
    """Three epochs of a few optimizer steps each."""
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    module = CTCModule({**MODEL, "ctc_reduction": reduction}, OPTIM)
    config = DataConfig.from_mapping({"name": "manifest", "train": manifest, "dev": manifest})
    data = SpeechDataModule(config, module.alphabet, batch_size=int(batch_size), last=last, reduction=reduction)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=int(world_size),
        strategy="ddp" if int(world_size) > 1 else "auto",
        precision="64-true",
        max_epochs=3,
        accumulate_grad_batches=int(accumulate),
        limit_val_batches=0,
        callbacks=[FrozenBatchNorm()],
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    trainer.fit(module, data)
    if trainer.is_global_zero:
        torch.save({"weights": module.state_dict(), "steps": trainer.global_step}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.path.append(str(Path(__file__).parents[1]))
    from ranks import leave

    leave()
