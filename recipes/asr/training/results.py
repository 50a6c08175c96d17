"""What a run has reached: error rates, measured at its end, and how they are said."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_novograd.large_batch.plan import BatchPlan
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.asr.training.settings import RunSettings
from lightning_novograd.recipes.asr.weights.average import write_average
from lightning_novograd.recipes.common import results as common
from lightning_novograd.recipes.common.callbacks.memory import describe_peaks
from lightning_novograd.recipes.common.way_on import AVERAGE

log = logging.getLogger(__name__)

# in the order of results.json
_NAMES = ("dev_wer", "test_wer", "dev_cer", "test_cer")


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
    if count is None:
        return common.measured_weights(settings, checkpoints, run_dir)
    if trainer.is_global_zero:
        names = ", ".join(path.name for path in write_average(run_dir, test, count))
        log.info("the mean of the %s epochs is measured: %s", test, names)
    trainer.strategy.barrier()
    return str(run_dir / "checkpoints" / AVERAGE)


def measure(
    trainer: pl.Trainer, module: CTCModule, data: SpeechDataModule, checkpoint: str | None
) -> dict[str, float | None]:
    """Error rates of the dev and the test set; None for those of a set that there is not, or that a limit leaves out.

    Args:
        trainer: after `fit`.
        module: with the weights of the last step.
        data: the corpus.
        checkpoint: weights to measure instead.
    """
    return common.measure(trainer, module, data, checkpoint, _NAMES)


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
