"""The Lightning module of the recipe: a batch through the acoustic model to its loss and error rates."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_novograd.recipes.asr.data.dataset import Batch
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.text.decode import greedy
from lightning_novograd.recipes.asr.text.metrics import ErrorRate
from lightning_novograd.recipes.asr.training.blank import CAUSES, Progress, Seen, diagnose, look_at
from lightning_novograd.recipes.asr.training.loss import ctc_loss, ctc_losses
from lightning_novograd.recipes.common.callbacks.guarded import GuardedSteps
from lightning_novograd.recipes.common.callbacks.nonfinite import DivergenceError, merge, shown

log = logging.getLogger(__name__)

_BLANK = "blank"  # key of checkpoints


class CTCModule(GuardedSteps, pl.LightningModule):
    """Jasper or QuartzNet trained with CTC; the optimizer comes from the ``optim`` block.

    The acoustic model is ``self.model``; below that prefix the state-dict keys are NeMo's. Logs ``train_loss``,
    ``train_wer``, ``dev_loss``, ``dev_wer``, ``dev_cer``, ``test_wer`` and ``test_cer``, error rates as fractions.
    Those of dev and test are of all ranks' utterances, ``train_loss`` and ``train_wer`` of the micro-batch at hand, on
    the first rank. Losses are means over utterances, or with ``model.ctc_reduction=mean_volume`` over characters. A
    loss of an evaluation that is not finite is a :class:`DivergenceError`; where `guard` skips steps, it is a warning,
    and the mean is over the other utterances (error rates are over all of them).

    Args:
        model: the model's config, see :meth:`JasperCTC.from_config`.
        optim: the optim block, see ``docs/optim_block.md``; None for a module that is only evaluated.
        num_samples: transcripts shown in the log after each validation.

    Raises:
        ConfigError: a key of `model` or `optim` is unknown, misspelt, or has an impossible value.
    """

    def __init__(self, model: Mapping[str, Any], optim: Mapping[str, Any] | None = None, num_samples: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters({"model": model, "optim": optim, "num_samples": num_samples})
        self.model = JasperCTC.from_config(model)
        if optim is not None:
            self.optim_config = optim
        self.num_samples = num_samples
        self.alphabet, self.reduction = self.model.alphabet, self.model.config.ctc_reduction
        self.train_wer = ErrorRate("word")
        self.dev_wer, self.dev_cer = ErrorRate("word"), ErrorRate("char")
        self.test_wer, self.test_cer = ErrorRate("word"), ErrorRate("char")
        # over utterances: Lightning's own mean over ranks truncates their number
        self.dev_loss, self.test_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self._seen, self._dev_losses, self._blank_causes = Seen(), list[float](), set[str]()
        self._lossless: list[str] = []  # utterances of an evaluation whose loss is not finite
        self._finite = 0  # and how many have one that is

    def forward(self, wave_BS: Tensor, wave_lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``(batch, frames, classes)`` and valid frames of waveforms ``(batch, samples)``."""
        return self.model(wave_BS, wave_lens_B)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """CTC loss of one micro-batch."""
        log_probs_BTV, lens_B, loss = self._loss(batch, partial(ctc_loss, reduction=self.reduction))
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.texts))
        every_n_steps = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the Trainer's connector
        if batch_idx == 0 or (self.global_step + 1) % every_n_steps == 0:
            wer = self.train_wer(greedy(log_probs_BTV.detach(), lens_B, self.alphabet), batch.texts)
            self.log("train_wer", wer, prog_bar=True, batch_size=len(batch.texts))
        return loss * batch.weight

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and error rates on the dev set; shows the first transcripts."""
        hypotheses = self._evaluate(batch, "dev")
        if batch_idx == 0:
            self._show_samples(hypotheses, batch.texts)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and error rates on the test set."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Refuse losses that are not finite, or say whose they are; warn of a model that says nothing."""
        self._check_losses("dev")
        self._check_blank()

    def on_test_epoch_end(self) -> None:
        """Refuse losses that are not finite, or say whose they are."""
        self._check_losses("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what the causes of a silent model are judged by, and which were named."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_BLANK] = {"dev_losses": list(self._dev_losses), "causes": sorted(self._blank_causes)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Know it again; checkpoints of other programs have none."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(_BLANK, {"dev_losses": [], "causes": []})
        self._dev_losses, self._blank_causes = list(saved["dev_losses"]), set(saved["causes"])

    def _loss(self, batch: Batch, function: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        log_probs_BTV, lens_B = self(batch.wave_BS, batch.wave_lens_B)
        loss = function(log_probs_BTV, lens_B, batch.targets_BU, batch.target_lens_B, self.alphabet.blank)
        return log_probs_BTV, lens_B, loss

    def _evaluate(self, batch: Batch, split: str) -> list[str]:
        loss, wer, cer = (getattr(self, f"{split}_{name}") for name in ("loss", "wer", "cer"))
        log_probs_BTV, lens_B, losses_B = self._loss(batch, ctc_losses)
        hypotheses = greedy(log_probs_BTV, lens_B, self.alphabet)
        if split == "dev" and not self._seen.spoken:  # what is seen of a model that speaks, nobody asks
            self._seen += look_at(log_probs_BTV, lens_B, hypotheses, batch, self.alphabet.blank)
        is_finite_B = torch.isfinite(losses_B).tolist()  # the decoder has waited for the device
        self._lossless += [place for place, is_finite in zip(batch.places, is_finite_B, strict=False) if not is_finite]
        self._finite += sum(is_finite_B)
        if self.reduction == "mean_volume":  # MeanMetric forgets weights where it leaves NaN alone (torchmetrics 1.9)
            losses_B = (losses_B / batch.target_lens_B).repeat_interleave(batch.target_lens_B)
        loss.update(losses_B[torch.isfinite(losses_B)])
        wer.update(hypotheses, batch.texts)
        cer.update(hypotheses, batch.texts)
        size = len(batch.texts)
        self.log(f"{split}_loss", loss, batch_size=size, on_epoch=True)
        self.log_dict({f"{split}_wer": wer, f"{split}_cer": cer}, batch_size=size, on_epoch=True, prog_bar=True)
        return hypotheses

    def _check_losses(self, split: str) -> None:
        """Raise on all ranks if one has seen a loss that is not finite; warn where bad steps are skipped."""
        of_ranks = merge(self.trainer, [(self._lossless, self._finite)])
        self._lossless, self._finite = [], 0
        if not (places := [place for of_rank, _ in of_ranks for place in of_rank]):
            return
        problem = f"{split} set: the loss of {shown(places)} is not finite (NaN or infinity)"
        if self.guard is None or self.guard.action == "raise":
            raise DivergenceError(problem)
        if not (finite := sum(count for _, count in of_ranks)):
            raise DivergenceError(f"{problem}, and no other is there")
        if self.trainer.is_global_zero:
            log.warning("%s; %s_loss is the mean over the other %d", problem, split, finite)

    def _check_blank(self) -> None:
        """Warn, once for each cause, where not one utterance of a validation has a transcript."""
        seen, self._seen = merge(self.trainer, [self._seen]), Seen()
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        self._dev_losses.append(float(self.dev_loss.compute()))
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        total = self.trainer.estimated_stepping_batches
        progress = Progress(
            self.trainer.global_step,
            int(total) if math.isfinite(total) else -1,
            max(float(group["lr"]) for group in groups),
            max(float(group.get("initial_lr", group["lr"])) for group in groups),
            self._dev_losses,
        )
        found = diagnose(sum(seen, Seen()), progress)
        if found is None or found[0] in self._blank_causes:
            return
        self._blank_causes.add(found[0])
        if self.trainer.is_global_zero:
            problem = "the model transcribes nothing: CTC's blank wins in every utterance of the dev set"
            log.warning("%s. Most likely: %s; %s. The usual causes: %s", problem, *found, CAUSES)

    @rank_zero_only
    def _show_samples(self, hypotheses: list[str], references: list[str]) -> None:
        for reference, hypothesis in list(zip(references, hypotheses, strict=True))[: self.num_samples]:
            log.info("reference  %s", reference)
            log.info("hypothesis %s", hypothesis)
            for logger in self.loggers:
                if isinstance(logger, pl.loggers.TensorBoardLogger):
                    text = f"    reference   {reference}\n    hypothesis  {hypothesis}"
                    logger.experiment.add_text("transcript", text, self.global_step)
