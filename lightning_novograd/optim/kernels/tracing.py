"""Whether single tensor operations are looked at, which compiled kernels would hide."""

import torch

# A torch release may lack it.
_num_modes_before_dispatch = getattr(torch._ops, "_len_torch_dispatch_stack_pre_dispatch", lambda: 0)


def is_traced() -> bool:
    """Whether torch.compile, make_fx, a dispatch mode or a transform of torch.func is at work.

    They work on torch's own operations: a kernel that writes memory behind them would not be in a graph, or raise. Nor
    may values be read: in a graph they would stay what they were, and fake tensors have none.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or _num_modes_before_dispatch() > 0
        or is_transformed()
    )


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work, as vmap: it has rules for neither foreach operations nor `out=`."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None
