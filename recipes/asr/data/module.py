"""The data of a run: a corpus by name, and batches of it for every rank."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_novograd.errors import ConfigError, DataError, LightningNovoGradError, printable
from lightning_novograd.log import rank_zero_logger
from lightning_novograd.recipes.asr.data.audio import Header
from lightning_novograd.recipes.asr.data.augment import Augment
from lightning_novograd.recipes.asr.data.cache.headers import Headers
from lightning_novograd.recipes.asr.data.cache.samples import SampleFile
from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.corpora import get_corpus
from lightning_novograd.recipes.asr.data.corpora.base import Weighted
from lightning_novograd.recipes.asr.data.dataset import SpeechDataset, collate
from lightning_novograd.recipes.asr.data.manifest import Utterance, read_manifest
from lightning_novograd.recipes.asr.data.summary import summarize
from lightning_novograd.recipes.asr.text.alphabet import Alphabet
from lightning_novograd.recipes.common.data.loader import BatchLoader, ResumableLoader, fitting_workers
from lightning_novograd.recipes.common.data.mixture import Mixture
from lightning_novograd.recipes.common.data.sampler import EvalBatchSampler, GlobalBatchSampler
from lightning_novograd.recipes.common.data.steps import limited
from lightning_novograd.training.callbacks.batch_ramp import BatchRampScheduler

log = rank_zero_logger(__name__)

# what each of the trainer's functions needs; `stage` is one of them or its name
SETS = {
    TrainerFn.FITTING: ("train", "dev"),
    TrainerFn.VALIDATING: ("dev",),
    TrainerFn.TESTING: ("test",),
    TrainerFn.PREDICTING: ("test",),
}


class SpeechDataModule(LightningDataModule):
    """Batches of a corpus for training, development and test, the same ones however many ranks share them.

    `prepare_data` makes the corpus on one process of each node; `setup` reads and checks the manifests. Ranks,
    world size and accumulation are the trainer's; without a trainer it is one process and no accumulation.
    `trainer.use_distributed_sampler` may have either value.

    Args:
        config: the `data` group.
        alphabet: of the model.
        samples_to_frames: output frames of the model for numbers of samples (`JasperCTC.output_lengths`), to find
            audio that is too short for its text; None skips that.
        sample_rate: Hz, of the model.
        seed: of batches and augmentation.
        batch_size: instead of `config.loading.batch_size`, for a global batch that was solved.
        last: ``"drop"`` or ``"keep"`` the utterances that do not fill a global batch; see `GlobalBatchSampler`.
        reduction: of the losses of a step, which weighs micro-batches (``model.ctc_reduction``).

    Raises:
        DataError: in `setup`, for anything in a manifest or its audio that cannot be used.

    Example:
        >>> config = DataConfig.from_mapping({"name": "manifest", "train": "train.json", "dev": "dev.json"})
        >>> data = SpeechDataModule(config, Alphabet("ab "), batch_size=16)
        >>> data.batch_size
        16
    """

    def __init__(
        self,
        config: DataConfig,
        alphabet: Alphabet,
        *,
        samples_to_frames: Callable[[Tensor], Tensor] | None = None,
        sample_rate: int = 16000,
        seed: int = 0,
        batch_size: int | None = None,
        last: str = "drop",
        reduction: str = "mean_batch",
    ) -> None:
        super().__init__()
        self.config, self.alphabet, self.sample_rate, self.seed = config, alphabet, sample_rate, seed
        self.samples_to_frames = samples_to_frames
        self.last, self.reduction = last, reduction
        self.batch_size = batch_size or config.loading.batch_size
        self.eval_batch_size = config.loading.eval_batch_size or self.batch_size
        self.datasets: dict[str, SpeechDataset] = {}
        self._loaders: list[BatchLoader] = []
        self._mixture: Mixture | None = None  # of the training set, where its manifests have weights

    def _manifests(self) -> dict[str, tuple[Weighted, ...]]:
        """Of each set; those of a training set may be several."""
        corpus = get_corpus(self.config.name)
        manifests = corpus.prepare(self.config.corpus, self._cache_dir)
        sets = {split: (Weighted(path),) for split, path in vars(manifests).items() if path is not None}
        return {**sets, "train": corpus.training(self.config.corpus, manifests)}

    @property
    def _cache_dir(self) -> Path:
        return Path(os.path.expanduser(self.config.loading.cache_dir))

    @property
    def has_test_set(self) -> bool:
        """Whether the corpus has one (your own manifests need not)."""
        return "test" in self._manifests()

    def prepare_data(self) -> None:
        """Make the corpus if it is not there; under a trainer, look at its files once for all processes of a node."""
        self._manifests()
        if self.trainer is None or self.trainer.state.fn is None:
            return
        try:
            self._load(SETS[self.trainer.state.fn], first=True)
        except LightningNovoGradError:
            # every process finds it in setup; raised here, it would leave the others waiting for this one
            log.debug("found while preparing", exc_info=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the sets that `stage` needs."""
        # Lightning has just called prepare_data in the node's first process
        known = self.trainer is not None and self.trainer.local_rank != 0
        self._load(("train", "dev", "test") if stage is None else SETS[TrainerFn(stage)], trusted=known)

    def _load(self, needed: Sequence[str], *, first: bool = False, trusted: bool = False) -> None:
        """Read sets that have not been read.

        Args:
            needed: their names.
            first: this process also keeps for the others, and for later runs, what it finds.
            trusted: another process has just done that.
        """
        manifests = self._manifests()
        if "train" in needed:
            for source in manifests.get("test", ()):
                if not os.path.exists(source.path):  # the test set is read when the training is done
                    raise DataError(f"manifest {source.path} does not exist")
        for split in needed:
            if split in manifests and split not in self.datasets:
                headers = [Headers(source.path, self._cache_dir, trusted=trusted) for source in manifests[split]]
                try:
                    self.datasets[split] = self._read(split, manifests[split], headers, writable=first)
                finally:
                    if first:
                        for of_manifest in headers:
                            of_manifest.save()

    def _read(
        self, split: str, sources: Sequence[Weighted], headers: Sequence[Headers], *, writable: bool
    ) -> SpeechDataset:
        loading = self.config.loading
        augment = None
        if split == "train":
            augment = Augment(self.config.augment, seed=self.seed, sample_rate=self.sample_rate)
        fastest = 1.0 if augment is None else augment.fastest
        parts = [
            self._utterances(split, source, fastest, header_of)
            for source, header_of in zip(sources, headers, strict=True)
        ]
        utterances = [utterance for part in parts for utterance in part]
        if any(source.weight != 1.0 for source in sources):
            self._mixture = Mixture(list(map(len, parts)), [source.weight for source in sources])
            hours = sum(w * u.duration for w, u in zip(self._mixture.weights, utterances, strict=True)) / 3600
            log.info("an epoch hears %d utterances, %.2f h", self._mixture.size, hours)
        if split == "train":
            log.info("%s", printable(summarize(utterances, self.alphabet)))
        return SpeechDataset(
            utterances,
            self.alphabet,
            self.sample_rate,
            downmix=loading.downmix,
            cache=loading.cache_audio,
            cache_file=self._sample_file(sources, parts, headers, writable) if loading.cache_audio else None,
            augment=augment,
            keep_nonfinite=split == "train",  # NonFiniteGuard refuses or skips the optimizer step
        )

    def _utterances(
        self, split: str, source: Weighted, fastest: float, header_of: Callable[[Path], Header]
    ) -> list[Utterance]:
        loading, frames = self.config.loading, self.samples_to_frames
        utterances = read_manifest(
            source.path,
            self.alphabet,
            sample_rate=self.sample_rate,
            # fast audio is short audio
            samples_to_frames=None if frames is None else lambda samples: frames((samples.double() / fastest).long()),
            min_duration=loading.min_duration,
            max_duration=loading.max_duration,
            keep_all=split != "train",
            downmix=loading.downmix,
            header_of=header_of,
            normalize=self.config.normalize,
        )
        hours = sum(u.duration for u in utterances) / 3600
        weighted = "" if source.weight == 1.0 else f", weight {source.weight:g}"
        log.info(
            "%s set: %d utterances, %.2f h, from %s%s", split, len(utterances), hours, printable(source.path), weighted
        )
        return utterances

    def _sample_file(
        self, sources: Sequence[Weighted], parts: Sequence[list[Utterance]], headers: Sequence[Headers], writable: bool
    ) -> SampleFile:
        """Where the decoded samples of a set are kept: a name for the set, and what exactly is in it."""
        loading = self.config.loading
        paths = [os.path.abspath(source.path) for source in sources]
        settings = [self.sample_rate, loading.downmix]
        recordings = [
            [str(u.audio), u.offset, None if u.offset is None else u.duration, *of_manifest.stamp(u.audio)]
            for part, of_manifest in zip(parts, headers, strict=True)
            for u in part
        ]
        name = json.dumps([paths, settings, sum(map(len, parts))]).encode()
        path = self._cache_dir / "audio" / f"{hashlib.sha256(name).hexdigest()[:16]}.samples"
        return SampleFile(path, [settings, recordings], writable=writable)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches; the position survives a checkpoint."""
        dataset = self.datasets["train"]
        accumulate, shuffle = 1, True
        if (trainer := self.trainer) is not None:
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the Trainer's connector
            for callback in callbacks:
                if isinstance(callback, GradientAccumulationScheduler | BatchRampScheduler):
                    problem = f"{type(callback).__name__} would change the global batch size"
                    raise ConfigError("trainer.callbacks", problem)
            accumulate = trainer.accumulate_grad_batches
            shuffle = not trainer.overfit_batches  # type: ignore[attr-defined]  # set by the Trainer's set-up
        sampler = GlobalBatchSampler(
            dataset.durations,
            self.batch_size,
            accumulate=accumulate,
            seed=self.seed,
            shuffle=shuffle,
            batch_seconds=self.config.loading.batch_seconds,
            bucket_steps=self.config.loading.bucket_steps,
            mixture=self._mixture,
            lengths=dataset.lengths,
            last=self.last,
            counts=dataset.target_lens if self.reduction == "mean_volume" else None,
            sums=self.reduction == "sum",
            **self._place(),
        )
        if not getattr(trainer, "fast_dev_run", False):
            limited(len(sampler), accumulate, getattr(trainer, "limit_train_batches", None))
        if sampler.rank == 0:
            log.info("%.1f %% of the samples of an epoch's batches are padding", 100 * sampler.padding())
        loader = ResumableLoader(dataset, sampler, collate, **self._loading())
        self._loaders.append(loader)
        return loader

    def val_dataloader(self) -> BatchLoader:
        """The development set, every utterance once."""
        return self._eval_loader("dev")

    def test_dataloader(self) -> BatchLoader:
        """The test set, every utterance once.

        Raises:
            ConfigError: the corpus has none.
        """
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> BatchLoader:
        if split not in self.datasets:
            raise ConfigError(f"data.{split}", f"the corpus {self.config.name} has no {split} set")
        dataset = self.datasets[split]
        sampler = EvalBatchSampler(dataset.durations, self.eval_batch_size, **self._place())
        loader = BatchLoader(dataset, sampler, collate, **self._loading())
        self._loaders.append(loader)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """How long the utterances are that the model learns from, s: `transcribe.py` cuts recordings accordingly."""
        dataset = self.datasets.get("train")
        return {} if dataset is None else {"longest": max(dataset.durations)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the training set says it again."""

    def teardown(self, stage: str | None = None) -> None:
        """Let go of all worker processes."""
        while self._loaders:
            self._loaders.pop().close()

    def _place(self) -> dict[str, Any]:
        if self.trainer is None:
            return {"world_size": 1, "rank": 0}
        return {"world_size": self.trainer.world_size, "rank": self.trainer.global_rank}

    def _loading(self) -> dict[str, Any]:
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        num_workers = self.config.loading.num_workers
        if num_workers is None:
            num_workers = fitting_workers(1 if self.trainer is None else self.trainer.num_devices)
        return {"num_workers": num_workers, "pin_memory": cuda}
