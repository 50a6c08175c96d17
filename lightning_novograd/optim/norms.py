"""Squared L2 norms of whole layers, wherever their elements live.

A layer is one parameter tensor. Norms are accumulated in float32 (float64 for float64 tensors) and returned as 0-dim
tensors on the layer's device: nothing here synchronizes with an accelerator. The norm of a DTensor is that of the
whole tensor: every rank sums the squares of its shard, and the partial sums of all layers of a mesh travel in one
all-reduce.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

if torch.distributed.is_available():
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Partial, Replicate

    _DTENSOR: tuple[type, ...] = (DTensor,)
else:
    _DTENSOR = ()

# A float32 sum over millions of squares loses digits: at 2e7 elements on a CPU, torch.linalg.vector_norm is wrong by
# 1e-3 and torch.dot by 1e-4. Summing blocks in float32 and the blocks' sums in float64 keeps the error below 1e-6 at
# any size, also where all values are equal, so that their roundings all go one way.
_BLOCK = 1 << 9  # elements per block
_DOT = 1 << 16  # up to this many elements torch.dot is nearly as exact (3e-5 for equal values), and faster
_COPIED = 1 << 20  # elements that are copied at a time, where they are of half precision or have holes between them


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which norms and second moments of `dtype` tensors are kept: float64 for float64, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor, so that this process may hold only a part of it."""
    return isinstance(tensor, _DTENSOR)


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of many tensors is a DTensor: looks at each kind of tensor once."""
    return any(issubclass(kind, _DTENSOR) for kind in set(map(type, tensors)))


def local_shard(tensor: Tensor) -> Tensor:
    """What this process holds of a DTensor; any other tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    assert isinstance(tensor, DTensor)
    local = tensor.to_local()
    return local.wait() if isinstance(local, AsyncCollectiveTensor) else local


def placed_like(grad: Tensor, param: Tensor) -> Tensor:
    """`grad` laid out as `param`: tensor parallelism may leave a gradient as unreduced partial sums."""
    if not is_sharded(param):
        return grad
    assert isinstance(param, DTensor)
    if not isinstance(grad, DTensor):
        raise RuntimeError(
            f"a parameter is a DTensor on {param.device_mesh} but its gradient is a {type(grad).__name__}"
        )
    if any(isinstance(placement, Partial) for placement in param.placements):
        raise RuntimeError(
            f"a parameter has placements {param.placements}: redistribute it to Shard or Replicate first"
        )
    if grad.placements == param.placements and grad.device_mesh == param.device_mesh:
        return grad
    return grad.redistribute(param.device_mesh, param.placements)


def real_view(tensor: Tensor) -> Tensor:
    """A complex tensor as a real one with a last dimension of two, in the same memory; any other tensor as it is.

    Raises:
        RuntimeError: the tensor's conjugate bit is set: memory holds other values than the tensor.

    """
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def squared_norms(tensors: Sequence[Tensor], layers: Sequence[Tensor] | None = None) -> list[Tensor]:
    r"""The squared L2 norm :math:`\sum_i |x_i|^2` of every tensor; DTensors cost one all-reduce per mesh in all.

    Every rank of a mesh must call this with the same tensors in the same order, as for any operation on DTensors.

    Args:
        tensors: real or complex tensors of any dtype, layout and device.
        layers: where `tensors` are local shards, the DTensors (Shard or Replicate) they are laid out as.

    Returns:
        0-dim tensors, float32 (float64 for float64 tensors), each on its tensor's device; alike on all ranks.

    Example:
        >>> import torch
        >>> squared_norms([torch.tensor([3.0, 4.0]), torch.ones(2, 2, dtype=torch.bfloat16)])
        [tensor(25.), tensor(4.)]

    """
    norms = _local_squared_norms([local_shard(tensor) for tensor in tensors])
    by_mesh: dict[DeviceMesh, list[int]] = {}
    layers = tensors if layers is None else layers
    for index, layer in enumerate(layers):
        if is_sharded(layer):
            by_mesh.setdefault(layer.device_mesh, []).append(index)  # type: ignore[attr-defined]
    for mesh, indices in by_mesh.items():
        totals = _all_reduce(mesh, [norms[i] for i in indices], [layers[i] for i in indices])
        for index, total in zip(indices, totals, strict=True):
            norms[index] = total
    return norms


def _local_squared_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    tensors = [real_view(t.resolve_conj()) for t in tensors]
    compiling = torch.compiler.is_compiling()
    norms: list[Tensor | None] = [None] * len(tensors)
    by_dtype: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        # Compiled, small layers are better off in one operation for all; large ones would lose digits in it.
        if tensor.device.type == "cpu" and not (compiling and tensor.numel() <= _DOT):
            norms[index] = cpu_squared_norm(tensor)
        else:
            by_dtype.setdefault((tensor.device, tensor.dtype), []).append(index)
    for (_, dtype), indices in by_dtype.items():
        roots = torch._foreach_norm([tensors[i] for i in indices], 2, dtype=accumulation_dtype(dtype))
        for index, square in zip(indices, torch._foreach_mul(roots, roots), strict=True):
            norms[index] = square
    return [norm for norm in norms if norm is not None]


def cpu_squared_norm(tensor: Tensor) -> Tensor:
    """The squared norm of one real tensor on the CPU, summed block by block."""
    # The shape says nothing about how long the sums would be: rows may be many and short, or few and long.
    flat = tensor if tensor.dim() == 1 else tensor.reshape(-1)
    numel, narrow = flat.numel(), tensor.dtype not in (torch.float32, torch.float64)
    if not narrow and numel <= _DOT:
        return torch.dot(flat, flat)
    if narrow or not flat.is_contiguous():
        dtype = accumulation_dtype(tensor.dtype)
        parts = [cpu_squared_norm(part.to(dtype).contiguous()) for part in flat.split(_COPIED)]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]
    rest = numel % _BLOCK
    blocks = torch.linalg.vector_norm((flat[:-rest] if rest else flat).view(-1, _BLOCK), dim=1).double()
    total = torch.dot(blocks, blocks)
    if rest:
        total += torch.dot(flat[-rest:], flat[-rest:])
    return total.to(tensor.dtype)


def _all_reduce(mesh: "DeviceMesh", norms: list[Tensor], layers: list[Tensor]) -> list[Tensor]:
    """Sum partial squared norms over the mesh dimensions along which any of the layers is sharded."""
    coordinate = mesh.get_coordinate()
    placements = [layer.placements for layer in layers]  # type: ignore[attr-defined]
    sharded_dims = [d for d in range(mesh.ndim) if any(not isinstance(p[d], Replicate) for p in placements)]
    if coordinate is None or not sharded_dims:
        return norms
    # A layer replicated along a summed dimension is counted once: by the ranks at coordinate 0.
    counted = [all(coordinate[d] == 0 or not isinstance(p[d], Replicate) for d in sharded_dims) for p in placements]
    dtype = torch.float64 if any(n.dtype == torch.float64 for n in norms) else torch.float32
    partial = torch.stack(
        [n.to(dtype) if c else n.new_zeros((), dtype=dtype) for n, c in zip(norms, counted, strict=True)]
    )
    total = partial.to(mesh.device_type)
    if len(sharded_dims) == mesh.ndim > 1 and mesh.size() == torch.distributed.get_world_size():
        torch.distributed.all_reduce(total)
    else:
        for dim in sharded_dims:
            torch.distributed.all_reduce(total, group=mesh.get_group(dim))
    total = total.to(partial.device)
    return [t.to(n.dtype) for t, n in zip(total.unbind(), norms, strict=True)]
