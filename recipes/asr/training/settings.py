"""The run's own part of the config: everything in ``conf/asr.yaml`` that is not optim, model or data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Self

from lightning_novograd.errors import ConfigError
from lightning_novograd.large_batch.plan import BatchPlan
from lightning_novograd.recipes.common.batches import plan
from lightning_novograd.recipes.common.section import Section, key, plain_mapping
from lightning_novograd.recipes.common.settings.run import CommonSettings


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingSettings(Section):
    """The ``early_stopping`` block.

    Args:
        patience: validations without an improvement after which the training ends; None: it never ends early.
        min_delta: what counts as an improvement, as a fraction (0.001: 0.1 % WER); a smaller one does not.
        monitor: what has to fall. The training also ends where it is no number.
    """

    patience: int | None = key(None, low=1)
    min_delta: float = key(0.0, low=0.0)
    monitor: str = key("dev_wer", allowed=("dev_wer", "dev_cer", "dev_loss"))


@dataclass(frozen=True, kw_only=True)
class PublishedSettings(Section):
    """The ``published`` block: what a recipe reached elsewhere, to be shown beside what the run reaches.

    Args:
        source: who published it.
        wer: word error rates, 0 to 1, by the name that ``data.dev`` and ``data.test`` have for the set.
    """

    source: str = key()
    wer: dict = key()

    def check(self) -> None:
        """Error rates are fractions, as in results.json."""
        for name, wer in self.wer.items():
            if isinstance(wer, bool) or not isinstance(wer, int | float) or not 0 <= wer <= 1:
                raise ConfigError(f"wer.{name}", f"must be a fraction from 0 to 1, not {wer!r}")


def _has_moved(name: str, saved: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether files may be the same ones in another place; the names of a corpus' parts are no paths.

    The sampler sees whether the corpus is the same one.
    """
    if name == "data.augment.noise.manifest" or (
        name in ("data.train", "data.dev", "data.test") and saved.get("data.name") == "manifest"
    ):
        before, now = _without_paths(saved.get(name)), _without_paths(ours.get(name))
        return before is not None and before == now
    return name == "data.root"


def _without_paths(manifests: Any) -> Any:
    if isinstance(manifests, list):
        return [_without_paths(one) for one in manifests]
    if isinstance(manifests, Mapping):
        return {**manifests, "manifest_filepath": ""}
    return "" if isinstance(manifests, str) else manifests


@dataclass(frozen=True, kw_only=True)
class RunSettings(CommonSettings):
    """A ``conf/asr.yaml``, checked at its top level; the blocks in it are read by the parts they configure.

    To the keys of :class:`CommonSettings`, with :meth:`JasperCTC.from_config` for `model` and :class:`DataConfig` for
    `data`, it adds those of speech.

    Args:
        init_from: run folder, checkpoint or ``.nemo`` archive whose weights a new run begins with.
        freeze: parameters that are not trained, see :func:`freeze`.
        early_stopping: see :class:`EarlyStoppingSettings`.
        num_samples: transcripts shown after each validation.
        published: see :class:`PublishedSettings`; None: nothing to compare with.
    """

    measure: ClassVar[str] = "dev WER"
    identity = replace(
        CommonSettings.identity,
        blocks=(*CommonSettings.identity.blocks, "init_from", "freeze"),
        same=(
            *CommonSettings.identity.same,
            *(f"data.{name}" for name in ("batch_seconds", "num_workers", "cache_audio", "cache_dir")),
        ),
        silent=(*CommonSettings.identity.silent, "num_samples", "published"),
        has_moved=_has_moved,
    )
    sections = MappingProxyType(
        {**CommonSettings.sections, "early_stopping": EarlyStoppingSettings, "published": PublishedSettings}
    )

    init_from: str | None = key(None)
    freeze: list | None = key(None)
    early_stopping: EarlyStoppingSettings = key(EarlyStoppingSettings())
    num_samples: int = key(3, low=0)
    published: PublishedSettings | None = key(None)

    def check(self) -> None:
        """What is said of speech goes with itself, and with the rest."""
        super().check()
        if self.init_from is not None and self.resume_from is not None:
            raise ConfigError("init_from", "and resume_from exclude each other: a run that goes on has its weights")
        for pattern in self.freeze or ():
            if not isinstance(pattern, str):
                raise ConfigError("freeze", f"must be a list of globs over parameter names, not {self.freeze!r}")
        if self.early_stopping.patience is not None and self.trainer.get("limit_val_batches") == 0:
            raise ConfigError("early_stopping.patience", "has nothing to watch with trainer.limit_val_batches=0")

    @classmethod
    def read(cls, cfg: Any, path: str) -> Self:
        """Build it from the composed config; errors in its sections have the full key path."""
        mapping = plain_mapping(cfg, path)
        if mapping.get("published", ...) is None:
            del mapping["published"]
        return super().read(mapping, path)


def published_results(settings: RunSettings) -> dict[str, Any]:
    """What the ``published`` block says of the sets that the run measures, for results.json; empty without one."""
    published = settings.published
    if published is None:
        return {}
    sets = {f"{split}_wer": settings.data.get(split) for split in ("dev", "test")}
    known = {name: published.wer[part] for name, part in sets.items() if part in published.wer}
    return {"published": {"source": published.source, **known, "wer": published.wer}}


def plan_batches(settings: RunSettings, per_device_batch_size: int) -> BatchPlan:
    """Split the global batch over devices, nodes and accumulation, exactly.

    Args:
        settings: whose ``large_batch`` and ``trainer`` blocks count.
        per_device_batch_size: utterances of one micro-batch, unless ``large_batch.max_per_device_batch_size`` is given.

    Raises:
        ConfigError: as :func:`plan.plan_batches`, or utterances are counted where batches are by seconds.
    """
    if settings.data.get("batch_seconds") is not None:
        _check_seconds(settings)
    return plan.plan_batches(settings, per_device_batch_size)


def _check_seconds(settings: RunSettings) -> None:
    """Refuse what counts utterances where batches are by seconds."""
    large_batch = settings.large_batch
    problem = "utterances, but data.batch_seconds counts seconds; give one of them"
    if (size := large_batch.global_batch_size) is not None:
        raise ConfigError("large_batch.global_batch_size", f"is {size} {problem}")
    if (size := large_batch.reference.global_batch_size) is not None:
        raise ConfigError("large_batch.reference.global_batch_size", f"is {size} {problem}")
    if large_batch.last == "keep":
        problem = "is of utterances that do not fill a global batch, and batches of data.batch_seconds leave none over"
        raise ConfigError("large_batch.last", f"'keep' {problem}; take drop")
