"""How much of a training step does GradientNoiseScale cost?

Trains a QuartzNet on random features with Lightning and accumulation; measures the time inside the callback's hooks,
those of autograd and logging included, as a share of the whole. On a GPU every hook but autograd's waits for the device
before and after, so its kernels count too; those of autograd's hooks count as the time of launching them.

python benchmarks/noise_scale.py --model quartznet_5x5 --every-n-steps 10
"""

import argparse
import logging
import tempfile
import time
import warnings

import lightning.pytorch as pl
import torch
from layer_monitor import MODELS, RandomSpeech, Stopwatch, synchronize
from lightning.pytorch.loggers import CSVLogger

from lightning_novograd.training.callbacks import GradientNoiseScale


class TimedNoiseScale(GradientNoiseScale):
    """Adds up the time in its own hooks; they are the only ones that run in a training step."""

    seconds = 0.0

    def timed(self, hook, *args, wait=True):
        if wait:
            synchronize()
        start = time.perf_counter()
        hook(*args)
        if wait:
            synchronize()
        self.seconds += time.perf_counter() - start

    def on_train_batch_start(self, *args):
        self.timed(super().on_train_batch_start, *args)

    def _on_gradient(self, *args):
        self.timed(super()._on_gradient, *args, wait=False)

    def on_after_backward(self, *args):
        self.timed(super().on_after_backward, *args)

    def on_before_optimizer_step(self, *args):
        self.timed(super().on_before_optimizer_step, *args)

    def on_train_batch_end(self, *args):
        self.timed(super().on_train_batch_end, *args)


def measure(args, match, folder):
    callback, stopwatch = TimedNoiseScale(args.every_n_steps, match, folder=folder), Stopwatch()
    batch = torch.randn(args.batch_size, 64, args.frames)
    trainer = pl.Trainer(
        max_steps=args.steps + 1,
        accumulate_grad_batches=args.accumulate,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(folder),
        callbacks=[stopwatch, callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [batch] * ((args.steps + 1) * args.accumulate)
    trainer.fit(RandomSpeech(args.model, larc=False), torch.utils.data.DataLoader(batches, batch_size=None))
    total = stopwatch.end - stopwatch.start
    return len(callback._params), len(callback.records), total / args.steps, callback.seconds / args.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="quartznet_5x5", choices=sorted(path.stem for path in MODELS.glob("*.yaml")))
    parser.add_argument("--steps", type=int, default=40, help="a multiple of --every-n-steps")
    parser.add_argument("--every-n-steps", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="of a micro-batch")
    parser.add_argument("--frames", type=int, default=400, help="10 ms each")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| parameters | tensors | records | step, ms | callback, ms per step | share |")
    print("|---|---|---|---|---|---|")
    for match in ("norm", "*"):
        with tempfile.TemporaryDirectory() as folder:
            params, records, step, callback = measure(args, match, folder)
        print(f"| `{match}` | {params} | {records} | {1e3 * step:.1f} | {1e3 * callback:.2f} | {callback / step:.2%} |")


if __name__ == "__main__":
    main()
