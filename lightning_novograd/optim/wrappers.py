"""Modules around modules: what torch.compile, activation checkpointing and FSDP1 put in between."""

from torch import nn

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def plain_name(name: str) -> str:
    """The name of a parameter or module as it is without wrappers.

    Example:
        >>> plain_name("decoder._orig_mod.weight")
        'decoder.weight'

    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of its wrappers."""
    for name in _WRAPPERS:
        inner = module._modules.get(name)
        if inner is not None:
            return unwrapped(inner)
    return module
