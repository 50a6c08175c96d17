"""Sparse and dense gradients: SparseAdam takes the former only, most optimizers only the latter."""

import logging

import pytest
import torch
from mistakes import refused
from torch import nn

from lightning_novograd import build_optimizers
from lightning_novograd.config import parse_optim
from lightning_novograd.config.build import build_optimizer

SPARSE = {"match": "embed.weight", "optimizer": "sparseadam"}
REST = {"match": "last.*", "optimizer": "adamw"}


class Words(nn.Module):
    """An embedding and what stands on it."""

    def __init__(self, sparse: bool = True, embedding: type[nn.Module] = nn.Embedding) -> None:
        super().__init__()
        self.embed, self.last = embedding(5, 3, sparse=sparse), nn.Linear(3, 1)

    def forward(self):
        return self.last(self.embed(torch.tensor([[1, 2]]))).square().mean()


class Own(nn.Module):
    """Looks its rows up in a way of its own."""

    def __init__(self, *_, **__):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3))

    def forward(self, rows):
        return nn.functional.embedding(rows, self.weight, sparse=True)


def step(model, block):
    optimizer = build_optimizers(block, model)["optimizer"]
    model().backward()
    optimizer.step()


@pytest.mark.parametrize("embedding", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_adam_for_what_is_not_sparse_is_refused_before_the_first_step(embedding):
    model = Words(embedding=embedding)
    problem = (
        "SparseAdam takes sparse gradients only, and that of 'last.weight' is dense (Linear); give the rest another "
        "optimizer: name: adamw, param_groups: [{match: 'embed.weight', optimizer: sparseadam}]"
    )
    with refused("optim.name", problem):
        build_optimizers({"name": "sparseadam"}, model)
    with refused("optim.name", problem):
        build_optimizer(parse_optim({"name": "sparseadam"}), model)
    with refused("optim.param_groups[0].optimizer.name", problem):
        build_optimizers({"name": "sgd", "param_groups": [{"match": "last.*", "optimizer": "sparseadam"}]}, model)
    step(model, {"name": "adamw", "param_groups": [SPARSE]})
    step(model, {"name": "sparseadam", "param_groups": [REST]})


def test_an_embedding_that_is_not_sparse_is_told_how_to_be():
    problem = "that of 'embed.weight' is dense (Embedding without sparse=True); make the embedding nn.Embedding(..., "
    with refused("optim.name", problem + "sparse=True) and give the rest another optimizer"):
        build_optimizers({"name": "sparseadam", "param_groups": [REST]}, Words(sparse=False))


def test_a_weight_that_is_tied_to_another_layer_has_a_dense_gradient():
    model = Words()
    model.last = nn.Linear(3, 5, bias=False)
    model.last.weight = model.embed.weight
    with refused("optim.name", "that of 'embed.weight' is dense (Linear)"):
        build_optimizers({"name": "sparseadam"}, model)
    model().backward()
    assert not model.embed.weight.grad.is_sparse


def test_what_others_do_with_their_parameters_is_not_known():
    step(Words(embedding=Own), {"name": "sparseadam", "param_groups": [REST]})
    build_optimizers({"name": "sparseadam"}, nn.ParameterList([torch.ones(2)]))


def test_frozen_layers_have_no_gradient():
    model = Words()
    model.last.requires_grad_(False)
    step(model, {"name": "sparseadam"})


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"name": "novograd"}, "NovoGrad does; write sparse=False, or give it SparseAdam in a rule, optimizer: sparse"),
        ({"name": "adamw"}, "AdamW does; write sparse=False"),
        ({"name": "sgd", "weight_decay": 0.1}, "SGD does with weight_decay; put the parameter into no_decay"),
        ({"name": "adagrad", "weight_decay": 0.1}, "Adagrad does with weight_decay"),
        ({"name": "sgd", "fused": True}, "SGD does with fused: true; remove it"),
        ({"name": "sgd", "larc": True}, "LARC does; write sparse=False"),
        ({"name": "sgd", "larc": True, "param_groups": [REST]}, "LARC does"),
    ],
    ids=str,
)
def test_a_sparse_gradient_that_will_be_refused_is_said(block, said, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="sparse"):
        step(Words(), block)
    (message,) = (record.getMessage() for record in caplog.records)
    start = "optim: the gradient of 'embed.weight' is sparse (nn.Embedding(sparse=True)), which the first step will "
    assert message.startswith(f"{start}refuse: {said}")


@pytest.mark.parametrize(
    "block",
    [
        {"name": "sgd", "momentum": 0.9},
        {"name": "sgd", "weight_decay": 0.1, "no_decay": ["embed.*"]},
        {"name": "adagrad"},
        {"name": "adamw", "param_groups": [SPARSE]},
    ],
    ids=str,
)
def test_a_sparse_gradient_that_is_taken_is_nothing_to_say(block, caplog):
    with caplog.at_level(logging.WARNING):
        step(Words(), block)
    assert not caplog.records
