"""Whether single tensor operations are looked at, which compiled kernels would hide."""

import torch


def is_traced() -> bool:
    """Whether torch.compile, make_fx, a dispatch mode or a transform of torch.func is at work.

    They work on torch's own operations: a kernel that writes memory behind them would not be in a graph, or raise.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
