"""Which tensors the C++ kernels may be given: what torch's stable ABI cannot tell is asked here, in Python."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import Parameter

_PLAIN = {Tensor, Parameter}


def unsuited(*lists: Sequence[Tensor]) -> list[int]:
    """Indices of layers of which a tensor is of a subclass or has its negative bit set.

    A subclass may have its memory elsewhere, as DTensors have; with the bit, memory holds the negative of the values.

    Args:
        lists: each with one tensor per layer, or empty.

    """
    if all(_PLAIN.issuperset(map(type, tensors)) and not any(map(Tensor.is_neg, tensors)) for tensors in lists):
        return []
    return sorted(
        {i for tensors in lists for i, t in enumerate(tensors) if type(t) not in _PLAIN or t.is_neg()},
    )
