"""Whether gradients are clipped once, and by whoever can."""

from typing import Any

from lightning_novograd.config import OptimConfig
from lightning_novograd.errors import ConfigError


def check_clipping(config: OptimConfig, trainer: Any, automatic: bool) -> None:
    """Refuse two bounds, and a bound that nobody would hold.

    Args:
        config: the block.
        trainer: that may clip too.
        automatic: whether the module has automatic optimization.

    Raises:
        ConfigError: the block and the Trainer clip, or LARC and one of them, or nobody would.

    """
    key = next((k for k in ("grad_clip_norm", "grad_clip_value") if getattr(config, k) is not None), None)
    if key is not None and trainer.gradient_clip_val == 0:
        problem = f"Lightning clips by one bound, and the Trainer has gradient_clip_val={trainer.gradient_clip_val}"
        raise ConfigError(f"{config.path}.{key}", f"{getattr(config, key)}, but {problem}; leave it out")
    by_trainer = trainer.gradient_clip_val or None
    if key is not None and by_trainer is not None:
        problem = f"{getattr(config, key)}, but the Trainer clips too (gradient_clip_val={by_trainer}); give one"
        raise ConfigError(f"{config.path}.{key}", problem)
    if key is not None and not automatic:
        problem = "Lightning does not clip under manual optimization; call self.clip_gradients in training_step"
        raise ConfigError(f"{config.path}.{key}", problem)
    if config.larc is not None and by_trainer is not None and not config.larc.allow_grad_clip:
        problem = f"LARC bounds the step, and the Trainer clips gradients (gradient_clip_val={by_trainer})"
        raise ConfigError(f"{config.path}.larc", f"{problem}; larc.allow_grad_clip: true allows both")
