"""DDP of one process: what it hands to its communication hook, and when. Two ranks: test_ddp_ranks.py."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from tiny_speech import batch, loader, module, trainer
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from lightning_novograd.recipes.asr.training.callbacks import NonFiniteGuard
from lightning_novograd.recipes.common.engines.ddp import Communication, HookedDDPStrategy
from lightning_novograd.recipes.common.engines.strategy import build_strategy
from lightning_novograd.recipes.common.settings.distributed import DistributedSettings


@pytest.fixture(autouse=True)
def group(tmp_path, monkeypatch):
    """A process group of one, which Lightning takes as it finds it."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fit(strategy, batches, guard=None, **options):
    model = module(guard)
    made = trainer([guard] if guard else [], strategy=strategy, use_distributed_sampler=False, **options)
    made.fit(model, loader(batches))
    return model, made


@pytest.mark.parametrize("static_graph", [False, True])
@pytest.mark.parametrize("guard", [None, "skip"])
def test_gradients_are_sent_once_a_step(guard, static_graph):
    counted = Counter()

    def counting(state, bucket):
        counted[bucket.index()] += 1
        return allreduce_hook(state, bucket)

    strategy = HookedDDPStrategy(Communication(hook=counting), static_graph=static_graph)
    bad = {4} if guard else set()
    batches = [batch(i, value=float("nan") if i in bad else None) for i in range(9)]
    guard = guard and NonFiniteGuard(guard)
    _, made = fit(strategy, batches, guard, accumulate_grad_batches=3)
    assert made.global_step == 3
    assert counted == {0: 3}, "a static graph is learnt in the first micro-batch of all, which sends nothing either"
    assert guard is None or guard.skipped == 1


@pytest.mark.parametrize("hook", ["bf16", "fp16", "powersgd"])
def test_hooks_of_the_config_work_on_gradients(hook):
    options = {"comm_hook": hook} | ({"powersgd": {"start_step": 2}} if hook == "powersgd" else {})
    weights = []
    for chosen in (options, {}):
        strategy = build_strategy(DistributedSettings.read(chosen, ""), {"strategy": "ddp"}, 1)
        model, made = fit(strategy, [batch(i) for i in range(6)])
        assert made.global_step == 6
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    compressed, whole = weights
    assert not torch.equal(compressed, whole)
    torch.testing.assert_close(compressed, whole, atol=0.05, rtol=0.05)


def test_powersgd_remembers_no_nan():
    """Its error of a step is added to the next gradient, for ever."""
    settings = DistributedSettings.read({"comm_hook": "powersgd", "powersgd": {"start_step": 2}}, "")
    strategy = build_strategy(settings, {"strategy": "ddp"}, 1)
    guard = NonFiniteGuard("skip", max_consecutive=2)
    batches = [batch(i, value=float("nan") if i == 5 else None) for i in range(10)]
    model, made = fit(strategy, batches, guard)
    assert (guard.skipped, made.global_step) == (1, 10)
    state = strategy.communication.state
    assert state.iter >= 9
    assert all(torch.isfinite(error).all() for error in state.error_dict.values())
    assert all(torch.isfinite(p).all() for p in model.parameters())
