"""The fused CUDA worker: NovoGrad for all layers of a device and dtype in three kernel launches (five with `luc`).

`grad_norms` sums the squares of each chunk of each gradient, `second_moments` adds a layer's chunks up and decides its
second moment, `update` writes moments and weights. The chunks' sums are added in a fixed order, without atomics: equal
input gives equal bits. Arithmetic is float32 whatever the parameters' dtype; it rounds once, when it is stored.

Addresses and sizes lie in tables on the device. They are uploaded through pinned memory, without a synchronization,
when an address changed (gradients usually get the same memory again in each step). A CUDA graph keeps the addresses it
was captured with: parameters, state and gradients must stay where they are, as for any captured optimizer, `lr` must be
a tensor on the device for a schedule to reach it, and one step must have run before the capture.

Float32, float16 and bfloat16 layers that are dense in memory, with gradient and moment laid out alike, take this path;
all others (float64, gradients of another layout or dtype) go to the foreach worker, as do sharded layers with `luc`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_novograd.optim.kernels.cuda import novograd as kernels
from lightning_novograd.optim.kernels.cuda.tables import AddressTable, ChunkTable
from lightning_novograd.optim.norms import accumulation_dtype
from lightning_novograd.optim.novograd.optimizer import _multi_tensor_novograd

CHUNK = 8192  # elements per program: small enough to fill a GPU from one QuartzNet, large enough that tables stay small
BLOCK = 2048  # elements per iteration of a program
WARPS = 8
_ELEMENTS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class _Layers:
    """The layers of one device and dtype that the kernels take, with their tables."""

    def __init__(self, indices: list[int], params: list[Tensor]) -> None:
        self.indices = indices
        self.device, self.dtype = params[indices[0]].device, params[indices[0]].dtype
        self.addresses = AddressTable(5, len(indices), self.device)
        self.chunks = ChunkTable([params[i].numel() for i in indices], CHUNK, self.device)

    def step(
        self,
        grads: list[Tensor],
        state_addresses: list[list[int]],
        sq_norms: list[Tensor] | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        options: dict[str, Any],
    ) -> None:
        """Launch the kernels over the layers; `options` are the worker's keyword arguments."""
        rows = [list(map(Tensor.data_ptr, grads)), *state_addresses]
        if len(self.indices) < len(grads):
            rows = [[row[i] for i in self.indices] for row in rows]
        num_layers, num_chunks, lr = len(self.indices), self.chunks.num_chunks, options["lr"]
        if len(rows) == 4:
            rows.append([0] * num_layers)
        averaging = 1 - options["beta1"] if options["grad_averaging"] else 1.0
        beta1, decay = float(options["beta1"]), float(averaging * options["weight_decay"])
        blocks = {"CHUNK": CHUNK, "BLOCK": BLOCK, "num_warps": WARPS}
        element = {"ELEMENT": _ELEMENTS[self.dtype]}
        if isinstance(lr, Tensor) and lr.device.type == "cpu" and self.device.type != "cpu":
            lr = lr.item()

        with _on(self.device):
            table = self.addresses.holding([a for row in rows for a in row], capturable=options["capturable"])
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
                float(options["beta2"]),
                float(1 - options["beta2"]),
                float(options["eps"]),
                float(-averaging if options["maximize"] else averaging),
                LR_ON_DEVICE=isinstance(lr, Tensor),
                AMSGRAD=options["amsgrad"],
                BLOCK=BLOCK,
            )
            if not num_chunks:
                return
            if options["luc"]:
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
                    float(options["luc_trust"]),
                    float(options["luc_eps"]),
                    BLOCK=BLOCK,
                )
            kernels.update[(num_chunks,)](*layout, factors, grad_scale, found_inf, beta1, decay, **element, **blocks)


class _Plan:
    """Which layers go to which kernels and which to the foreach worker, valid while `key` stays the same."""

    def __init__(
        self, key: Any, params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], scalars: list[Tensor]
    ) -> None:
        self.key = key
        self.others: list[int] = []
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, (param, grad, exp_avg) in enumerate(zip(params, grads, exp_avgs, strict=True)):
            fits = param.dtype in _ELEMENTS and _is_dense(param) and _same_layout(param, grad, exp_avg)
            if fits and all(s.dtype == torch.float32 for s in scalars[index :: len(params)]):
                groups.setdefault((param.device, param.dtype), []).append(index)
            else:
                self.others.append(index)
        self.groups = [_Layers(indices, params) for indices in groups.values()]


# By a param group's first moment: it belongs to one optimizer, and what was learned about the group goes with it.
_plans: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _fused_cuda_novograd(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    grad_sq_norms: list[Tensor] | None,
    layers: list[Tensor] | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    **options: Any,
) -> None:
    """One step over CUDA layers; `grad_sq_norms` are those of `grads` as they are, before `grad_scale` divides them."""
    if options["luc"] and layers is not None:  # the norms of sharded weights and moments need a collective
        groups, others = [], list(range(len(params)))
    else:
        states = [params, exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if options["amsgrad"] else [])]
        addresses = [list(map(Tensor.data_ptr, tensors)) for tensors in states]
        key = (
            addresses,
            list(map(Tensor.size, params)),
            list(map(Tensor.stride, params)),
            list(map(Tensor.stride, grads)),
            [grad.dtype for grad in grads],
        )
        plan = _plans.get(exp_avgs[0])
        if plan is None or plan.key != key:
            scalars = [*exp_avg_sqs, *(max_exp_avg_sqs if options["amsgrad"] else [])]
            plan = _plans[exp_avgs[0]] = _Plan(key, params, grads, exp_avgs, scalars)
        groups, others = plan.groups, plan.others
    for group in groups:
        group.step(grads, addresses, grad_sq_norms, grad_scale, found_inf, options)
        increment_version(tensors[i] for tensors in states for i in group.indices)
    if others:

        def take(tensors: list[Tensor]) -> list[Tensor]:
            return [tensors[i] for i in others]

        _foreach(
            take(params),
            take(grads),
            take(exp_avgs),
            take(exp_avg_sqs),
            take(max_exp_avg_sqs) if options["amsgrad"] else [],
            None if grad_sq_norms is None else take(grad_sq_norms),
            None if layers is None else take(layers),
            grad_scale,
            found_inf,
            options,
        )


def _foreach(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    grad_sq_norms: list[Tensor] | None,
    layers: list[Tensor] | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    options: dict[str, Any],
) -> None:
    """The foreach worker with `grad_scale` and `found_inf`: gradients are unscaled in copies, a skipped step undone."""
    if grad_scale is not None:
        factors = [grad_scale.to(grad.device, accumulation_dtype(grad.dtype)).reciprocal() for grad in grads]
        grads = [grad.to(accumulation_dtype(grad.dtype)) * f for grad, f in zip(grads, factors, strict=True)]
        if grad_sq_norms is not None:
            grad_sq_norms = [n * f.reshape(()).square() for n, f in zip(grad_sq_norms, factors, strict=True)]
    state = [*params, *exp_avgs, *exp_avg_sqs, *max_exp_avg_sqs]
    before = [] if found_inf is None else [tensor.clone() for tensor in state]
    _multi_tensor_novograd(
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_sq_norms, layers, None, None, **options
    )
    for tensor, old in zip(state, before, strict=bool(before)):
        assert found_inf is not None
        tensor.copy_(torch.where(found_inf.to(tensor.device).reshape(()) != 0, old, tensor))


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
