"""The fused CUDA worker: NovoGrad for all layers of a device and dtype in three kernel launches (five with `luc`).

`grad_norms` sums the squares of each chunk of each gradient, `second_moments` adds a layer's chunks up and decides its
second moment, `update` writes moments and weights. The chunks' sums are added in a fixed order, without atomics: equal
input gives equal bits. Arithmetic is float32 whatever the parameters' dtype; it rounds once, when it is stored.

Addresses and sizes lie in tables on the device. They are uploaded through pinned memory, without a synchronization,
when an address changed (gradients usually get the same memory again in each step). A CUDA graph keeps the addresses it
was captured with: parameters, state and gradients must stay where they are, as for any captured optimizer, `lr` must be
a tensor on the device for a schedule to reach it, and one step must have run before the capture, in which nothing is
compiled and no pinned memory allocated. What a graph reads is kept for as long as the parameters' state.

Float32, float16 and bfloat16 layers that are dense in memory, with gradient and moment laid out alike, take this path;
all others (float64, gradients of another layout or dtype) go to the foreach worker, as do sharded layers with `luc`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_novograd.optim.kernels.cuda import novograd as kernels
from lightning_novograd.optim.kernels.cuda.tables import AddressTable, ChunkTable, is_capturing
from lightning_novograd.optim.novograd.layers import Layers
from lightning_novograd.optim.novograd.options import Options
from lightning_novograd.optim.novograd.scaled import scaled_novograd

CHUNK = 8192  # elements per program: small enough to fill a GPU from one QuartzNet, large enough that tables stay small
BLOCK = 2048  # elements per iteration of a program
WARPS = 8
_ELEMENTS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class _Addresses(NamedTuple):
    """Where the layers' tensors lie, in the order of the rows of the kernels' `table`."""

    grads: list[int]
    params: list[int]
    exp_avgs: list[int]
    exp_avg_sqs: list[int]
    max_exp_avg_sqs: list[int]  # zeros without amsgrad

    @classmethod
    def of(cls, layers: Layers, amsgrad: bool) -> "_Addresses":
        return cls(
            _addresses(layers.grads),
            _addresses(layers.params),
            _addresses(layers.exp_avgs),
            _addresses(layers.exp_avg_sqs),
            _addresses(layers.max_exp_avg_sqs) if amsgrad else [0] * len(layers.params),
        )

    def row_after_row(self, indices: Sequence[int]) -> list[int]:
        """The table of the layers at `indices`, flat."""
        if len(indices) == len(self.params):
            return [address for row in self for address in row]
        return [row[i] for row in self for i in indices]


def _addresses(tensors: list[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


class _Launches:
    """The kernels' launches for the layers of one device and dtype that they take, with their tables."""

    def __init__(self, indices: list[int], params: list[Tensor]) -> None:
        self.indices = indices
        self.device, self.dtype = params[indices[0]].device, params[indices[0]].dtype
        self.addresses = AddressTable(len(_Addresses._fields), len(indices), self.device)
        self.chunks = ChunkTable([params[i].numel() for i in indices], CHUNK, self.device)

    def step(
        self,
        addresses: _Addresses,
        sq_norms: list[Tensor] | None,
        options: Options,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Launch the kernels; `addresses` and `sq_norms` are those of all layers of the param group."""
        num_layers, num_chunks, lr = len(self.indices), self.chunks.num_chunks, options.lr
        beta1, decay = float(options.beta1), float(options.decay)
        blocks = {"CHUNK": CHUNK, "BLOCK": BLOCK, "num_warps": WARPS}
        element = {"ELEMENT": _ELEMENTS[self.dtype]}
        if isinstance(lr, Tensor):  # `functional` has read it, if it is on a CPU
            lr = lr.to(self.device, non_blocking=True)

        with _on(self.device):
            table = self.addresses.holding(addresses.row_after_row(self.indices), capturable=options.capturable)
            grad_scale, found_inf = (_to(t, self.device) for t in (grad_scale, found_inf))
            norms = None if sq_norms is None else torch.stack([sq_norms[i] for i in self.indices])
            workspace = torch.empty(2 * (num_chunks + num_layers), dtype=torch.float32, device=self.device)
            partial_sums, factors = workspace.split([2 * num_chunks, 2 * num_layers])
            layout = (table, num_layers, self.chunks.sizes, self.chunks.first_chunks, self.chunks.layer_of_chunk)

            if norms is None and num_chunks:
                kernels.grad_norms[(num_chunks,)](*layout, partial_sums, grad_scale, **element, **blocks)
            kernels.second_moments[(num_layers,)](
                table,
                num_layers,
                self.chunks.first_chunks,
                partial_sums,
                norms,
                factors,
                grad_scale,
                found_inf,
                lr if isinstance(lr, Tensor) else float(lr),
                float(options.beta2),
                float(1 - options.beta2),
                float(options.eps),
                float(options.signed_averaging),
                LR_ON_DEVICE=isinstance(lr, Tensor),
                AMSGRAD=options.amsgrad,
                BLOCK=BLOCK,
            )
            if not num_chunks:
                return
            if options.luc:
                kernels.luc_norms[(num_chunks,)](
                    *layout, num_chunks, partial_sums, factors, grad_scale, found_inf, beta1, decay, **element, **blocks
                )
                kernels.clip_step_sizes[(num_layers,)](
                    num_layers,
                    self.chunks.first_chunks,
                    num_chunks,
                    partial_sums,
                    factors,
                    found_inf,
                    float(options.luc_trust),
                    float(options.luc_eps),
                    BLOCK=BLOCK,
                )
            kernels.update[(num_chunks,)](*layout, factors, grad_scale, found_inf, beta1, decay, **element, **blocks)


class _Plan:
    """Which layers go to which kernels and which to the foreach worker, valid while `key` stays the same."""

    def __init__(self, key: Any, layers: Layers, amsgrad: bool) -> None:
        self.key = key
        self.is_captured = False  # whether a CUDA graph reads its tables
        self.captured: list[_Plan] = []  # older ones, whose tables graphs read for as long as the parameters live
        self.others: list[int] = []
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, param in enumerate(layers.params):
            scalars = [layers.exp_avg_sqs[index], *([layers.max_exp_avg_sqs[index]] if amsgrad else [])]
            if (
                param.dtype in _ELEMENTS
                and _is_dense(param)
                and _same_layout(param, layers.grads[index], layers.exp_avgs[index])
                and all(scalar.dtype == torch.float32 for scalar in scalars)
            ):
                groups.setdefault((param.device, param.dtype), []).append(index)
            else:
                self.others.append(index)
        self.groups = [_Launches(indices, layers.params) for indices in groups.values()]


# By a param group's first scalar of state: it belongs to one optimizer, and what was learned about the group goes with
# it. (Of a complex layer, the other tensors are new views in each step.)
_plans: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def fused_cuda_novograd(
    layers: Layers, options: Options, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> None:
    """One step over CUDA layers; `layers.grad_sq_norms` are those of the gradients before `grad_scale` divides them."""
    if options.luc and layers.wholes is not None:  # the norms of sharded weights and moments need a collective
        scaled_novograd(layers, options, grad_scale, found_inf)
        return
    addresses = _Addresses.of(layers, options.amsgrad)
    if (
        0 in addresses.grads
    ):  # of an empty layer, or of zeros without memory, as forward-mode differentiation makes them
        layers = replace(layers, grads=[grad.clone() if grad._is_zerotensor() else grad for grad in layers.grads])
        addresses = addresses._replace(grads=_addresses(layers.grads))
    plan = _plan(layers, addresses, options.amsgrad)
    written = [layers.params, layers.exp_avgs, layers.exp_avg_sqs]
    written += [layers.max_exp_avg_sqs] if options.amsgrad else []
    for group in plan.groups:
        group.step(addresses, layers.grad_sq_norms, options, grad_scale, found_inf)
        increment_version(tensors[i] for tensors in written for i in group.indices)
    if plan.others:
        scaled_novograd(layers.take(plan.others), options, grad_scale, found_inf)


def _plan(layers: Layers, addresses: _Addresses, amsgrad: bool) -> _Plan:
    """The plan of the last step, or a new one if any tensor but the gradients moved, or a layout changed."""
    key = (
        addresses[1:],
        list(map(Tensor.size, layers.params)),
        list(map(Tensor.stride, layers.params)),
        list(map(Tensor.stride, layers.grads)),
        [tensor.dtype for tensor in chain(layers.grads, layers.params, layers.exp_avgs)],
    )
    owner = layers.exp_avg_sqs[0]
    plan = _plans.get(owner)
    if plan is None or plan.key != key:
        new = _Plan(key, layers, amsgrad)
        if plan is not None:
            new.captured = plan.captured + ([plan] if plan.is_captured else [])
        plan = _plans[owner] = new
    plan.is_captured |= any(is_capturing(group.device) for group in plan.groups)
    return plan


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order of dimensions."""
    return tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(tensor)


def _same_layout(param: Tensor, *others: Tensor) -> bool:
    # Strides of dimensions of one element mean nothing, and is_contiguous knows it.
    return all(
        t.dtype == param.dtype and (t.stride() == param.stride() or (t.is_contiguous() and param.is_contiguous()))
        for t in others
    )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)
