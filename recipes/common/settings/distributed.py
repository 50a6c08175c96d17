"""The ``distributed`` block: how the processes of a run share a model and its gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from lightning_novograd.errors import ConfigError
from lightning_novograd.recipes.common.section import Section, join, key, plain_mapping


@dataclass(frozen=True, kw_only=True)
class PowerSgdSettings(Section):
    """The ``distributed.powersgd`` block, torch's ``PowerSGDState``.

    A gradient of ``n x m`` is sent as ``P Q^T`` with ``P`` of ``n x rank`` and ``Q`` of ``m x rank``; what is lost is
    added to the next step's gradient (error feedback).

    Args:
        rank: of the approximation; 1 to 4 are usual.
        start_step: optimizer steps with whole gradients before the first compressed one; those of the warmup at least.
            Counted from the start of the process, also where a run is continued.
        min_compression_rate: a gradient is compressed where that makes it smaller by more than this factor.
        epsilon: added to the norm of a column, so that a gradient of zeros does not become NaN.

    Source: Vogels, Karimireddy, Jaggi, arXiv 1905.13727.
    """

    rank: int = key(1, low=1, high=1024)
    start_step: int = key(1000, low=2)  # DDP arranges its buckets anew after the first
    min_compression_rate: float = key(2.0, low=1.0)
    epsilon: float = key(1e-8, low=0.0, below=1.0)


@dataclass(frozen=True, kw_only=True)
class DistributedSettings(Section):
    """The ``distributed`` block, see :func:`build_strategy`.

    Args:
        process_group_timeout: s that a process waits for the others in a collective; then it ends with an error. Also
            for a corpus that the first process makes.
        bucket_cap_mb: MB of gradients that DDP sends in one all-reduce; None: 25, torch's.
        gradient_as_bucket_view: whether gradients are parts of DDP's buckets, not copied to them: less memory, by the
            size of the gradients.
        static_graph: whether every step uses the same parameters in the same order: DDP then learns the order once.
        comm_hook: how DDP sends gradients: ``"bf16"`` and ``"fp16"`` round them, ``"powersgd"`` sends factors of low
            rank; None: as they are.
        comm_wrapper: what rounds the factors of PowerSGD besides, ``"bf16"`` or ``"fp16"``.
        powersgd: see :class:`PowerSgdSettings`.
    """

    process_group_timeout: float = key(1800.0, above=0.0, high=1e7)
    bucket_cap_mb: float | None = key(None, above=0.0)
    gradient_as_bucket_view: bool = key(False)
    static_graph: bool = key(False)
    comm_hook: str | None = key(None, allowed=("bf16", "fp16", "powersgd", None))
    comm_wrapper: str | None = key(None, allowed=("bf16", "fp16", None))
    powersgd: PowerSgdSettings = key(PowerSgdSettings())

    def check(self) -> None:
        """What belongs to PowerSGD needs it."""
        if self.comm_hook == "powersgd":
            return
        if self.comm_wrapper is not None:
            problem = f"{self.comm_wrapper!r} is for comm_hook=powersgd; alone it is comm_hook={self.comm_wrapper}"
            raise ConfigError("comm_wrapper", problem)
        if self.powersgd != PowerSgdSettings():
            raise ConfigError("powersgd", "is for comm_hook=powersgd, and would do nothing")

    @classmethod
    def read(cls, cfg: Any, path: str) -> Self:
        """Build it from a mapping; errors name the full path of a key."""
        mapping = plain_mapping(cfg, path)
        if isinstance(mapping.get("powersgd"), Mapping):
            mapping["powersgd"] = PowerSgdSettings.read(mapping["powersgd"], join(path, "powersgd"))
        return super().read(mapping, path)

    def of_ddp(self) -> list[str]:
        """The keys that are set, and that only DDP knows."""
        default = DistributedSettings()
        names = [field.name for field in fields(self) if field.name != "process_group_timeout"]
        return [name for name in names if getattr(self, name) != getattr(default, name)]
