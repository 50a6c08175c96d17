"""DDP with a communication hook, on the CPU too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from lightning_novograd.recipes.common.settings.distributed import DistributedSettings

_HOOKS: dict[str, Callable[..., Any]] = {
    "bf16": default_hooks.bf16_compress_hook,
    "fp16": default_hooks.fp16_compress_hook,
    "powersgd": powerSGD_hook,
}
_WRAPPERS = {"bf16": default_hooks.bf16_compress_wrapper, "fp16": default_hooks.fp16_compress_wrapper}


class Communication(NamedTuple):
    """What DDP does with a bucket of gradients, and what it remembers for that."""

    state: PowerSGDState | None = None
    hook: Callable[..., Any] | None = None
    wrapper: Callable[..., Any] | None = None

    @classmethod
    def of(cls, settings: DistributedSettings) -> "Communication":
        """The hooks of torch that the block names."""
        state, options = None, settings.powersgd
        if settings.comm_hook == "powersgd":
            state = PowerSGDState(
                process_group=None,
                matrix_approximation_rank=options.rank,
                start_powerSGD_iter=options.start_step,
                min_compression_rate=options.min_compression_rate,
                orthogonalization_epsilon=options.epsilon,
            )
        hook = None if settings.comm_hook is None else _HOOKS[settings.comm_hook]
        wrapper = None if settings.comm_wrapper is None else _WRAPPERS[settings.comm_wrapper]
        return cls(state, hook, wrapper)


class HookedDDPStrategy(DDPStrategy):
    """Lightning's DDP, with what it lacks for communication hooks.

    - Lightning registers a hook on GPUs alone; gloo knows them too.
    - PowerSGD adds the error of a step to the next gradient. After a step that :class:`NonFiniteGuard` has left out,
      that error is NaN; it is dropped.
    - A static graph is learnt in a first backward pass that sends gradients; with accumulation Lightning would have it
      send none, an internal error of torch's. So DDP is told that the first micro-batch of a process sends them, and
      its hook leaves them as they are: sent, they would be rounded otherwise than in a run that was not interrupted.

    Args:
        communication: see :class:`Communication`.
        options: of Lightning's ``DDPStrategy``.
    """

    def __init__(self, communication: Communication, **options: Any) -> None:
        state, hook, wrapper = communication
        super().__init__(ddp_comm_state=state, ddp_comm_hook=hook, ddp_comm_wrapper=wrapper, **options)
        self.communication = communication
        self._graph_is_known, self._learns_graph = True, False

    def configure_ddp(self) -> None:
        """Wrap the model, and register the hook where Lightning does not."""
        assert self.lightning_module is not None
        accumulates = self.lightning_module.trainer.accumulate_grad_batches > 1
        self._graph_is_known = not (accumulates and self._ddp_kwargs.get("static_graph"))
        state, hook, wrapper = self.communication
        if hook is not None and wrapper is not None:
            hook = wrapper(hook)
        if not self._graph_is_known:
            hook = self._unless_learning(hook or default_hooks.allreduce_hook)
        self._ddp_comm_hook, self._ddp_comm_wrapper = hook, None
        super().configure_ddp()
        if hook is not None and self.root_device.type != "cuda":
            assert isinstance(self.model, DistributedDataParallel)

            def over_gloo(state, bucket):  # DDP reads annotations
                return hook(state, bucket)

            # DDP refuses bf16's hooks by their names where there is no NCCL; gloo knows bf16
            self.model.register_comm_hook(state, over_gloo)

    def _unless_learning(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def sending(state, bucket):  # DDP reads annotations
            return (noop_hook if self._learns_graph else hook)(state, bucket)

        return sending

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Lightning's: send no gradients in a micro-batch that is not the last of its step."""
        if self._graph_is_known:
            with super().block_backward_sync():
                yield
            return
        assert isinstance(self.model, DistributedDataParallel)
        self._graph_is_known = self._learns_graph = True
        try:
            yield
        finally:
            self._learns_graph = False
        # else the next forward pass would have all ranks take the first one's BatchNorm statistics
        self.model.require_forward_param_sync = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Drop what PowerSGD remembers of gradients that were not finite."""
        guard, state = getattr(self.lightning_module, "guard", None), self.communication.state
        if state is not None and guard is not None and guard.is_skipping:
            for remembered in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
                remembered.clear()
