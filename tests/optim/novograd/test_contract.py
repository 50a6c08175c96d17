"""NovoGrad keeps the contract of torch.optim: what AdamW does with closures, hooks, copies, scalers and bad input.

So does a Composite of NovoGrads, to which most of the table is applied as well.
"""

import copy
import pickle

import pytest
import torch
from optim.composite.composites import in_two_parts
from optim_db import DTYPES, WORKERS, layers, set_grads

from lightning_novograd.optim import LARC, NovoGrad

OPTIMIZERS = {"novograd": NovoGrad, "composite": in_two_parts(NovoGrad)}
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


def parameter(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype))


def train(optimizer, params, steps):
    for step in steps:
        set_grads(params, step)
        optimizer.step()


def assert_equal(left, right):
    for kind in left:
        assert torch.equal(left[kind], right[kind]), kind


@every_optimizer
@pytest.mark.parametrize("worker", WORKERS)
def test_closure_runs_once_with_gradients_enabled(build, worker):
    param = parameter(3)
    optimizer = build([param], lr=0.1, **WORKERS[worker])
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == pytest.approx(parameter(3).square().sum().item())
    assert not torch.equal(param, parameter(3))


@every_optimizer
def test_hooks_run_around_the_step(build):
    param, events = parameter(3), []
    optimizer = build([param])
    optimizer.register_step_pre_hook(lambda *_: events.append(("pre", param.detach().clone())))
    optimizer.register_step_post_hook(lambda *_: events.append(("post", param.detach().clone())))
    param.grad = torch.ones(3)
    optimizer.step()
    assert [name for name, _ in events] == ["pre", "post"]
    assert torch.equal(events[0][1], parameter(3))
    assert torch.equal(events[1][1], param)
    assert not torch.equal(events[0][1], events[1][1])


@every_optimizer
@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("after", [0, 2])
def test_a_copy_continues_alike(build, copied, worker, after):
    params = layers(torch.float32, ["matrix", "vector", "long"])
    optimizer = build(params.values(), lr=0.1, amsgrad=True, **WORKERS[worker])
    train(optimizer, params, range(after))
    params2, optimizer2 = copied((params, optimizer))
    train(optimizer, params, range(after, after + 3))
    train(optimizer2, params2, range(after, after + 3))
    assert_equal(params, params2)
    assert repr(optimizer) == repr(optimizer2)


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, LARC], ids=["bare", "larc"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_a_copy_leaves_unscaling_to_whom_the_original_leaves_it(copied, wrap, unscales):
    inner = NovoGrad([parameter(3)], fused=True)
    inner._step_supports_amp_scaling = unscales
    twin = copied(copied(wrap(inner)))
    assert getattr(twin, "optimizer", twin)._step_supports_amp_scaling == unscales
    twin.load_state_dict(twin.state_dict())
    assert getattr(twin, "optimizer", twin)._step_supports_amp_scaling == unscales


@every_optimizer
@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-dim", "one-element"])
def test_lr_as_a_tensor_is_the_same_as_a_float(build, worker, shape):
    left, right = layers(torch.float32), layers(torch.float32)
    lr = torch.full(shape, 0.25)
    by_tensor = build(left.values(), lr=lr, **WORKERS[worker])
    by_float = NovoGrad(right.values(), lr=0.25, **WORKERS[worker])
    train(by_tensor, left, range(2))
    train(by_float, right, range(2))
    lr.fill_(0.5)  # as a scheduler does under CUDA graphs
    by_float.param_groups[0]["lr"] = 0.5
    train(by_tensor, left, range(2, 4))
    train(by_float, right, range(2, 4))
    for kind in left:
        torch.testing.assert_close(left[kind], right[kind], rtol=1e-6, atol=1e-7)


@every_optimizer
@pytest.mark.parametrize("worker", WORKERS)
def test_a_layer_frozen_and_unfrozen(build, worker):
    frozen, other = parameter(4, 3), parameter(5)
    optimizer = build([frozen, other], lr=0.1, weight_decay=0.1, **WORKERS[worker])

    def step(trained):
        for param in (frozen, other):
            param.grad = torch.ones_like(param) if id(param) in map(id, trained) else None
        optimizer.step()

    step([other])
    assert torch.equal(frozen, parameter(4, 3))
    assert frozen not in optimizer.state
    step([frozen, other])
    before, state = frozen.detach().clone(), copy.deepcopy(optimizer.state[frozen])
    step([other])
    assert torch.equal(frozen, before), "without a gradient there is no weight decay and no momentum"
    assert torch.equal(optimizer.state[frozen]["exp_avg"], state["exp_avg"])
    step([frozen])
    assert not torch.equal(frozen, before)


@every_optimizer
def test_a_group_added_in_mid_training(build):
    first, second = parameter(3), parameter(2)
    optimizer = build([first], lr=0.1)
    first.grad, second.grad = torch.ones(3), torch.ones(2)
    optimizer.step()
    optimizer.add_param_group({"params": [second], "lr": 1.0, "luc": True})
    assert optimizer.param_groups[1]["betas"] == (0.95, 0.98)
    optimizer.step()
    assert not torch.equal(second, parameter(2))


@every_optimizer
def test_nothing_to_do(build):
    param = parameter(3)
    optimizer = build([param])
    optimizer.step()
    assert optimizer.step(lambda: 1.5) == 1.5
    assert not optimizer.state


@every_optimizer
@pytest.mark.parametrize("worker", ["single", "default"])
@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True, "weight_decay": 0.1}, {"luc": True, "luc_trust": 0.5}], ids=str
)
def test_differentiable(build, worker, options):
    """The gradient of a weight after two steps, with respect to all that went in, against finite differences."""

    def two_steps(param, grad, exp_avg, exp_avg_sq):
        param = param.clone()
        optimizer = build([param], lr=0.1, eps=0.1, differentiable=True, **WORKERS[worker], **options)
        optimizer.state[param] = {"exp_avg": exp_avg.clone(), "exp_avg_sq": exp_avg_sq.clone()}
        for _ in range(2):
            param.grad = grad
            optimizer.step()
        return param, optimizer.state[param]["exp_avg"], optimizer.state[param]["exp_avg_sq"]

    inputs = [
        parameter(3, dtype=torch.float64),
        parameter(3, dtype=torch.float64) + 1,
        parameter(3, dtype=torch.float64),
    ]
    inputs = [t.detach().requires_grad_() for t in (*inputs, torch.tensor(2.0, dtype=torch.float64))]
    assert torch.autograd.gradcheck(two_steps, inputs)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=str)
def test_compiled_step_equals_eager(options):
    def graph(module, _):
        graphs.append(module)
        return module.forward

    graphs = []
    left, right = (layers(torch.float32, ["matrix", "conv", "vector"]) for _ in range(2))
    eager = NovoGrad(left.values(), lr=torch.tensor(0.1), amsgrad=True, weight_decay=0.1, foreach=False)
    compiled = NovoGrad(right.values(), lr=torch.tensor(0.1), amsgrad=True, weight_decay=0.1, **options)
    torch._dynamo.reset()
    # As torch's own tests: without the wrapper that breaks the graph to switch gradients off.
    step = torch.compile(NovoGrad.step.__wrapped__.__wrapped__, backend=graph, fullgraph=True)
    for index in (2, 4, 2):  # every layer has a gradient in these
        set_grads(left, index)
        set_grads(right, index)
        eager.step()
        with torch.no_grad():
            step(compiled)
    assert len(graphs) == 1
    for kind in left:
        torch.testing.assert_close(left[kind], right[kind], rtol=1e-5, atol=1e-6)


@every_optimizer
@pytest.mark.slow
def test_step_compiled_by_inductor(build):
    left, right = (layers(torch.float32, ["matrix", "vector"]) for _ in range(2))
    eager, compiled = NovoGrad(left.values(), lr=0.1), build(right.values(), lr=0.1)
    torch._dynamo.reset()
    step = torch.compile(compiled.step)
    for index in (2, 4):
        set_grads(left, index)
        set_grads(right, index)
        eager.step()
        step()
    for kind in left:
        torch.testing.assert_close(left[kind], right[kind], rtol=1e-5, atol=1e-6)


@every_optimizer
@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("bad", [False, True], ids=["finite", "inf"])
def test_grad_scaler(build, worker, bad):
    """Unscaled steps equal those without a scaler; a skipped step changes nothing."""
    scaled, plain = (layers(torch.float32, ["conv", "vector", "long"]) for _ in range(2))
    optimizer = build(scaled.values(), lr=0.1, weight_decay=0.01, **WORKERS[worker])
    reference = NovoGrad(plain.values(), lr=0.1, weight_decay=0.01, foreach=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train(reference, plain, [1])
    set_grads(scaled, 1)
    for param in scaled.values():
        param.grad = scaler.scale(param.grad)
    scaler.step(optimizer)
    scaler.update()
    for kind in scaled:
        torch.testing.assert_close(scaled[kind], plain[kind], rtol=1e-5, atol=1e-7)
    if bad:
        before = copy.deepcopy((scaled, [optimizer.state[p] for p in scaled.values()]))
        set_grads(scaled, 2)
        scaled["vector"].grad[3] = torch.inf
        scaler.scale(torch.tensor(1.0))
        scaler.step(optimizer)
        scaler.update()
        assert_equal(scaled, before[0])
        for param, state in zip(scaled.values(), before[1], strict=True):
            assert all(torch.equal(optimizer.state[param][key], value) for key, value in state.items())
        assert scaler.get_scale() == 512.0
    assert not hasattr(optimizer, "grad_scale")


@every_optimizer
@pytest.mark.parametrize("options", [{}, {"luc": True}, {"amsgrad": True, "maximize": True}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_fused_unscales_without_writing_the_gradients(build, dtype, options):
    scaled, plain = layers(dtype), layers(dtype)
    optimizer = build(scaled.values(), lr=0.1, fused=True, **options)
    assert optimizer._step_supports_amp_scaling
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    set_grads(scaled, 2)
    for param in scaled.values():
        param.grad.mul_(4)
    grads = {kind: param.grad.clone() for kind, param in scaled.items()}
    optimizer.step()
    train(NovoGrad(plain.values(), lr=0.1, fused=True, **options), plain, [2])
    for kind, param in scaled.items():
        assert torch.equal(param.grad, grads[kind])
        torch.testing.assert_close(param, plain[kind])


@every_optimizer
def test_capturable_needs_an_accelerator(build):
    param = parameter(2)
    optimizer = build([param], capturable=True)
    param.grad = torch.ones(2)
    with pytest.raises(AssertionError, match="If capturable=True, params must be on supported devices"):
        optimizer.step()


@pytest.mark.parametrize("worker", WORKERS)
def test_sparse_gradients_are_refused_before_anything_changed(worker):
    dense, embedding = parameter(3), torch.nn.Embedding(4, 2, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = NovoGrad([dense, embedding.weight], **WORKERS[worker])
    dense.grad = torch.ones(3)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, parameter(3))
    assert torch.equal(embedding.weight, before)


@every_optimizer
def test_fused_refuses_complex_parameters(build):
    param = parameter(2, dtype=torch.complex64)
    optimizer = build([param], fused=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="fused=True"):
        optimizer.step()


def test_pieces_of_layers_are_refused():
    flat = parameter(6)
    flat._fsdp_flattened = True
    with pytest.raises(ValueError, match=r"FSDP1.*use\s+FSDP2"):
        NovoGrad([flat])
    zero3 = parameter(0)
    zero3.ds_id = 7
    with pytest.raises(ValueError, match=r"DeepSpeed.*fully_shard"):
        NovoGrad([zero3])


@every_optimizer
def test_a_partition_in_the_place_of_layers_is_refused(build):
    """DeepSpeed's ZeRO puts one flat tensor per group into an optimizer that was built on layers."""
    optimizer = build([parameter(4, 3), parameter(4)])
    partition = torch.zeros(8, requires_grad=True)
    partition.grad = torch.ones(8)
    optimizer.param_groups[0]["params"] = [partition]
    with pytest.raises(ValueError, match=r"flattened partition.*fully_shard"):
        optimizer.step()


def test_fsdp1_marks_what_is_refused():
    """The mark that is looked for is the one that torch sets."""
    from torch.distributed.fsdp._common_utils import _set_fsdp_flattened

    param = parameter(4)
    _set_fsdp_flattened(param)
    with pytest.raises(ValueError, match="FSDP1"):
        NovoGrad([param])


@every_optimizer
def test_one_cycle_moves_the_first_beta(build):
    param = parameter(3)
    optimizer = build([param], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    first = optimizer.param_groups[0]["betas"]
    param.grad = torch.ones(3)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["betas"][0] < first[0]
    assert optimizer.param_groups[0]["betas"][1] == 0.98
