"""The memory of the optimizer's state before it is there, against what it takes when it is."""

import pytest
import torch
from tiny_speech import MODEL, batch, loader, module, trainer

from lightning_novograd.recipes.asr.training.freezing import freeze
from lightning_novograd.recipes.asr.training.module import CTCModule
from lightning_novograd.recipes.common.batches.memory import describe_state, outline, state_bytes


def held(optimizer: torch.optim.Optimizer) -> int:
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(
    "optim",
    [
        {"name": "novograd"},
        {"name": "adamw"},
        {"name": "sgd", "momentum": 0.9},
        {"name": "sgd", "momentum": 0.9, "larc": {"trust_coefficient": 0.01}},
        {"name": "novograd", "param_groups": [{"match": "*decoder*", "optimizer": {"name": "adamw", "lr": 0.1}}]},
    ],
    ids=lambda optim: "-".join([optim["name"], *list(optim)[1:]]),
)
def test_it_is_what_a_run_holds_after_its_first_step(optim):
    model, made = module(**optim, sched=None), trainer()
    freeze(model, ["*mconv*"])
    made.fit(model, loader([batch(0)]))
    described = describe_state(model, {}, 1)
    assert f" {held(made.optimizers[0]) / 1e6:.4g} MB, for " in described


def test_sharded_state_is_spread_by_the_first_dimension():
    weight, bias = (torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((10, 3), (2,)))
    optimizer = torch.optim.Adam([weight, bias])
    assert state_bytes(optimizer) == 2 * 4 * (30 + 2) + 2 * 4
    assert state_bytes(optimizer, shards=4) == 2 * 4 * (3 * 3 + 1) + 2 * 4  # the first of four ranks has 3 rows


def test_what_the_strategy_and_the_precision_say():
    model = CTCModule(MODEL, {"name": "sgd", "momentum": 0.9})
    whole = describe_state(model, {}, 1)
    assert whole == "optimizer state (SGD): 0.005036 MB, for 0.00126 M parameters"  # 1259 of 4 bytes
    assert "on each of 4 ranks, for" in describe_state(model, {"strategy": "ddp"}, 4)
    assert "on each of 4 ranks (spread over the 4 ranks), for" in describe_state(model, {"strategy": "fsdp2"}, 4)
    assert {p.dtype for p in outline(model, {"precision": "bf16-true"}).parameters()} == {torch.bfloat16}
    assert {p.device.type for p in outline(model, {}).parameters()} == {"meta"}


def test_an_optimizer_that_cannot_be_tried_ends_no_run():
    model = CTCModule(MODEL, {"name": "lbfgs"})
    assert describe_state(model, {}, 1).startswith("optimizer state (LBFGS): known after the first step only, for ")
