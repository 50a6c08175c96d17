"""The two-weight network: its gradient, its trainings against the update rules written out, and what is reported."""

import math

import pytest
import torch

from lightning_novograd.recipes.deep_linear.network import BETAS, OPTIMIZERS, DeepLinear, Run, train


@pytest.mark.parametrize("start", [(0.2, 4.0), (-2.0, 4.0), (0.0, 0.0), (1.0, 1.0)])
def test_the_gradient_is_autograds(start):
    ours, theirs = DeepLinear(start), DeepLinear(start)
    ours.set_gradients()
    theirs().backward()
    assert [p.grad for p in ours.parameters()] == [p.grad for p in theirs.parameters()]


def written_out(name: str, lr: float, decay: float, start: tuple[float, float], steps: int) -> list[tuple[float, ...]]:
    """The four update rules, weight by weight, in plain Python; every weight is a layer."""
    b1, b2 = BETAS
    w, m, v, path = list(start), [0.0, 0.0], [0.0, 0.0], [start]
    for step in range(1, steps + 1):
        slope = 2 * (w[0] * w[1] - 1)
        for i, g in enumerate((slope * w[1], slope * w[0])):
            if name in ("SGD", "Adam"):
                g += decay * w[i]
            if name == "NovoGrad":
                v[i] = g * g if step == 1 else b2 * v[i] + (1 - b2) * g * g
                g = g / (math.sqrt(v[i]) + 1e-8) + decay * w[i]
            else:
                v[i] = b2 * v[i] + (1 - b2) * g * g
            m[i] = b1 * m[i] + (1 - b1) * g
            move = m[i]
            if name in ("Adam", "AdamW"):
                move = m[i] / (1 - b1**step) / (math.sqrt(v[i] / (1 - b2**step)) + 1e-8)
                w[i] -= lr * decay * w[i] if name == "AdamW" else 0.0
            w[i] -= lr * move
        path.append(tuple(w))
    return path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_path_is_that_of_the_rule_written_out(name):
    run = train(OPTIMIZERS[name], lr=0.2, weight_decay=0.1, start=(0.3, 3.0), steps=20)
    expected = written_out(name, 0.2, 0.1, (0.3, 3.0), 20)
    torch.testing.assert_close(torch.tensor(run.path), torch.tensor(expected), rtol=1e-6, atol=1e-9)


def test_a_training_that_diverges_ends_there():
    run = train(OPTIMIZERS["SGD"], lr=1.0, weight_decay=0.1, start=(0.1, 8.0))
    assert run.diverged
    assert 1 < len(run.path) < 500
    assert run.final_loss == run.distance == math.inf
    assert all(math.isfinite(w) for point in run.path for w in point)


@pytest.mark.parametrize(
    ("end", "distance"), [((1.0, 1.0), 0.0), ((-1.0, -1.0), 0.0), ((1.0, -1.0), 2.0), ((4, 5), 5.0)]
)
def test_the_distance_is_that_from_the_nearer_minimum(end, distance):
    assert Run([(9.0, 9.0), end], diverged=False).distance == distance


def test_the_final_loss_is_the_largest_of_the_last_hundred():
    path = [(3.0, 1.0)] + [(2.0, 1.0)] + [(1.0, 1.0)] * 99
    assert Run(path, diverged=False).final_loss == 1.0
    assert Run(path[:1] + path[2:] + path[2:3], diverged=False).final_loss == 0.0


def test_novograd_stays_with_the_curve_where_sgd_is_lost():
    """The paper's figure 7, and what its text says of it."""
    start, options = (0.1, 8.0), {"lr": 1.0, "weight_decay": 0.1}
    assert train(OPTIMIZERS["SGD"], start=start, **options).diverged
    assert train(OPTIMIZERS["NovoGrad"], start=start, **options).distance < 0.1
