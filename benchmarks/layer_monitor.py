"""How much of a training step does LayerMonitor cost?

Trains a QuartzNet on random features with Lightning and measures the time inside the monitor's hooks, logging
included, as a share of the whole. On a GPU every hook waits for the device before and after, so its kernels count too.

python benchmarks/layer_monitor.py --model quartznet_5x5 --every-n-steps 50
"""

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc.optimizer import LARC
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.training.callbacks import LayerMonitor

MODELS = Path(__file__).resolve().parent.parent / "conf" / "model"


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TimedMonitor(LayerMonitor):
    """Adds up the time in its own hooks; they are the only ones that run in a training step."""

    seconds = 0.0

    def timed(self, hook, *args):
        synchronize()
        start = time.perf_counter()
        hook(*args)
        synchronize()
        self.seconds += time.perf_counter() - start

    def on_before_optimizer_step(self, *args):
        self.timed(super().on_before_optimizer_step, *args)

    def _after_step(self, *args):
        self.timed(super()._after_step, *args)

    def on_train_batch_end(self, *args):
        self.timed(super().on_train_batch_end, *args)


class RandomSpeech(pl.LightningModule):
    def __init__(self, model, larc):
        super().__init__()
        self.model = JasperCTC.from_config(yaml.safe_load((MODELS / f"{model}.yaml").read_text()))
        self.larc = larc

    def training_step(self, x_BCT, batch_idx):
        lens_B = torch.full((len(x_BCT),), x_BCT.shape[2], device=x_BCT.device)
        log_probs_BTV, out_lens_B = self.model.encode_features(x_BCT, lens_B)
        texts_BL = torch.randint(0, log_probs_BTV.shape[2] - 1, (len(x_BCT), 20), device=x_BCT.device)
        text_lens_B = torch.full((len(x_BCT),), 20, device=x_BCT.device)
        return torch.nn.functional.ctc_loss(
            log_probs_BTV.transpose(0, 1), texts_BL, out_lens_B, text_lens_B, blank=log_probs_BTV.shape[2] - 1
        )

    def configure_optimizers(self):
        optimizer = NovoGrad(self.parameters(), lr=0.01, betas=(0.95, 0.25), weight_decay=1e-3)
        return LARC(optimizer, trust_coefficient=1e-3) if self.larc else optimizer


class Stopwatch(pl.Callback):
    """Seconds of training after the first step, which pays for start-up."""

    def on_train_batch_end(self, trainer, *args):
        synchronize()
        self.end = time.perf_counter()
        if trainer.global_step == 1:
            self.start = self.end


def measure(args, larc, folder):
    monitor, stopwatch = TimedMonitor(args.every_n_steps, folder), Stopwatch()
    batch = torch.randn(args.batch_size, 64, args.frames)
    trainer = pl.Trainer(
        max_steps=args.steps + 1,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(folder),
        callbacks=[stopwatch, monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        RandomSpeech(args.model, larc), torch.utils.data.DataLoader([batch] * (args.steps + 1), batch_size=None)
    )
    total = stopwatch.end - stopwatch.start
    return len(monitor.names), len(monitor.records), total / args.steps, monitor.seconds / args.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quartznet_5x5", choices=sorted(path.stem for path in MODELS.glob("*.yaml")))
    parser.add_argument("--steps", type=int, default=100, help="a multiple of --every-n-steps")
    parser.add_argument("--every-n-steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--frames", type=int, default=400, help="10 ms each")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| optimizer | layers | records | step, ms | monitor, ms per step | share |")
    print("|---|---|---|---|---|---|")
    for larc in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            layers, records, step, monitor = measure(args, larc, folder)
        name = "LARC(NovoGrad)" if larc else "NovoGrad"
        print(f"| {name} | {layers} | {records} | {1e3 * step:.1f} | {1e3 * monitor:.2f} | {monitor / step:.2%} |")


if __name__ == "__main__":
    main()
