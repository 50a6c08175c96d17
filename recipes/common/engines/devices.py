"""Which devices a run has, and how many."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry

from lightning_novograd.errors import ConfigError


def accelerator_of(trainer: Mapping[str, Any]) -> str:
    """Lightning's name of what ``trainer.accelerator`` means on this machine: ``"cpu"``, ``"cuda"``, ..."""
    name = trainer.get("accelerator", "auto")
    if name == "auto":
        name = "cuda" if AcceleratorRegistry.get("cuda").is_available() else "cpu"
    return "cuda" if name == "gpu" else name


def count_devices(trainer: Mapping[str, Any]) -> int:
    """Devices per node that ``trainer.devices`` means, counted as the Trainer does.

    Raises:
        ConfigError: there is no such device on this machine.
    """
    name, devices = accelerator_of(trainer), trainer.get("devices", "auto")
    if isinstance(devices, list):
        return len(devices)
    if isinstance(devices, int) and devices > 0:
        return devices
    if devices not in ("auto", -1, "-1") or name not in AcceleratorRegistry:
        raise ConfigError("trainer.devices", f"must be a number of devices, a list of them or 'auto', not {devices!r}")
    accelerator = AcceleratorRegistry.get(name)
    count = accelerator.auto_device_count() if accelerator.is_available() else 0
    if count < 1:
        problem = f"{devices!r}: this machine has no device for accelerator={name}"
        raise ConfigError("trainer.devices", f"{problem}; a number plans for another machine")
    return count
