"""What a run has reached: error rates, measured at its end, and how they are said."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

from lightning_novograd.errors import DataError
from lightning_novograd.large_batch.plan import BatchPlan
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.training.callbacks.memory import describe_peaks
from lightning_novograd.recipes.asr.training.folder import process_rank
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.asr.weights.average import write_average
from lightning_novograd.recipes.asr.weights.checkpoint import read_checkpoint
from lightning_novograd.recipes.asr.weights.run_folder import AVERAGE

log = logging.getLogger(__name__)

# in results.json: what came of the training, not of the measurement behind it
_OF_TRAINING = (
    *("epochs", "global_batch_size", "global_batch_seconds", "wall_s", "peak_memory_mb"),
    *("stopped_early", "skipped_steps"),
)


def measured_weights(
    trainer: pl.Trainer, settings: RunSettings, checkpoints: list[ModelCheckpoint], run_dir: Path
) -> str | None:
    """The file of the weights that are measured, an average made for it; None for those of the last step.

    Args:
        trainer: after `fit`.
        settings: whose ``checkpoint`` block counts.
        checkpoints: of :func:`build_checkpoints`, the one by dev WER first.
        run_dir: of the run.

    Raises:
        DataError: there are none to choose from.
    """
    test, count = settings.checkpoint.test, settings.checkpoint.average
    if count is None and test == "best":
        return best_checkpoint(checkpoints)
    if count is None:
        # without a file Lightning takes the one that a SLURM job was requeued with, not the weights that there are
        requeued, last = any(run_dir.glob("hpc_ckpt_*.ckpt")), run_dir / "checkpoints" / "last.ckpt"
        return str(last) if requeued and last.exists() and SLURMEnvironment.detect() else None
    if trainer.is_global_zero:
        names = ", ".join(path.name for path in write_average(run_dir, test, count))
        log.info("the mean of the %s epochs is measured: %s", test, names)
    trainer.strategy.barrier()
    return str(run_dir / "checkpoints" / AVERAGE)


def measure(
    trainer: pl.Trainer,
    module: CTCModule,
    data: SpeechDataModule,
    checkpoint: str | None,
    names: Sequence[str] = ("dev_wer", "test_wer", "dev_cer", "test_cer"),
) -> dict[str, float | None]:
    """Error rates of the dev and the test set; None for those of a set that there is not, or that a limit leaves out.

    Args:
        trainer: after `fit`.
        module: with the weights of the last step.
        data: the corpus.
        checkpoint: weights to measure instead.
        names: of the metrics, in the order that they have in results.json.
    """
    metrics: dict[str, float] = {}
    for evaluate in (trainer.validate, trainer.test) if data.has_test_set else (trainer.validate,):
        for measured in evaluate(module, datamodule=data, ckpt_path=checkpoint, verbose=False, weights_only=True):
            metrics.update(measured)
    return {name: metrics.get(name) for name in names}


def best_checkpoint(checkpoints: Sequence[ModelCheckpoint]) -> str:
    """The file of the best epoch by dev WER.

    Raises:
        DataError: none was kept: the training has ended before its first validation.
    """
    best = checkpoints[0].best_model_path
    if not best:
        raise DataError("checkpoint.test is 'best', but the training has ended before its first validation")
    return best


def batch_of_step(plan: BatchPlan, seconds: float | None) -> dict[str, float | None]:
    """How much one optimizer step hears, for results.json.

    Args:
        plan: of the batches.
        seconds: of audio in a micro-batch, where batches are by seconds: no number of utterances is theirs then.

    Example:
        >>> batch_of_step(BatchPlan(24, 4, 2, 1, 3), 60.0)
        {'global_batch_size': None, 'global_batch_seconds': 360.0}
    """
    if seconds is None:
        return {"global_batch_size": plan.global_batch_size}
    size = round(seconds * plan.world_size * plan.accumulate_grad_batches, 6)
    return {"global_batch_size": None, "global_batch_seconds": size}


def describe_plan(plan: BatchPlan, seconds: float | None) -> str:
    """The plan of the batches in words.

    Args:
        plan: of the batches.
        seconds: of audio in a micro-batch, where batches are by seconds.

    Example:
        >>> describe_plan(BatchPlan(24, 4, 2, 1, 3), 60.0)
        'global batch 360 s of audio = 60 s per device x 2 devices x 1 nodes x 3 accumulated'
    """
    if seconds is None:
        return str(plan)
    size = batch_of_step(plan, seconds)["global_batch_seconds"]
    return (
        f"global batch {size:.12g} s of audio = {seconds:.12g} s per device x {plan.devices} devices "
        f"x {plan.num_nodes} nodes x {plan.accumulate_grad_batches} accumulated"
    )


def results_of_training(run_dir: Path, step: int, rate: str = "utt_per_s") -> dict[str, Any]:
    """What results.json says of a training that has ended, to be kept where it is only measured again.

    Args:
        run_dir: of the run.
        step: optimizer steps of the training.
        rate: the name of its speed.

    Returns:
        No speed, where it says nothing: nothing is trained on now.
    """
    try:
        results = json.loads((run_dir / "results.json").read_text())
    except (OSError, ValueError):
        results = None
    if not isinstance(results, dict) or results.get("optimizer_steps") != step:
        return {rate: None}
    return {name: results[name] for name in (rate, *_OF_TRAINING) if name in results}


def set_results_aside(run_dir: Path) -> None:
    """Give the results of what is continued a name with its number of steps: they are not those of the run to come.

    So too the average that they were measured with.
    """
    if process_rank():
        return
    path, average = run_dir / "results.json", run_dir / "checkpoints" / AVERAGE
    if path.is_file():
        try:
            steps = int(json.loads(path.read_text())["optimizer_steps"])
        except (ValueError, KeyError, TypeError):
            steps = 0
        path.replace(run_dir / f"results_step{steps:07d}.json")
    if average.is_file():
        try:
            reached = read_checkpoint(average, map_location="meta").get("global_step")
        except DataError:  # damaged
            reached = None
        steps = reached if isinstance(reached, int) else 0
        average.replace(average.with_name(f"{average.stem}_step{steps:07d}{average.suffix}"))


def report(results: dict[str, Any], run_dir: Path, trained: bool = True) -> None:
    """Say the result in the last lines of the log; of a run that was only measured, what is of the training before."""
    size, seconds, rate = results["global_batch_size"], results.get("global_batch_seconds"), results["utt_per_s"]
    log.info(
        "%s%d epochs, %d optimizer steps of %s, %s%.0f s in all; see %s",
        "" if trained else "only measured; the training was " if rate is not None else "only measured; ",
        results["epochs"],
        results["optimizer_steps"],
        f"{size} utterances" if seconds is None else f"{seconds:.12g} s of audio",
        "" if rate is None else f"{rate:.1f} utterances/s, ",
        results["wall_s"],
        run_dir,
    )
    if reason := results.get("stopped_early"):
        log.info("%s", reason)
    if skipped := results.get("skipped_steps"):
        log.warning("%d of these steps were left out: a loss or a gradient was not finite", skipped)
    if peaks := results.get("peak_memory_mb"):
        log.info("peak memory of the first process: %s", describe_peaks(peaks))
    published = results.get("published", {})
    for split in ("dev", "test"):
        wer, cer = results[f"{split}_wer"], results[f"{split}_cer"]
        if wer is None:
            continue
        beside = published.get(f"{split}_wer")
        compared = "" if beside is None else f"   published WER {100 * beside:.2f} % ({published['source']})"
        log.info("%-4s WER %6.2f %%   CER %6.2f %%%s", split, 100 * wer, 100 * cer, compared)
