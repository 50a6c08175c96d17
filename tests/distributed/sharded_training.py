"""Trains a model whose layers are spread over processes; started once per rank by test_sharded_layers.py.

python sharded_training.py RANK WORLD_SIZE FOLDER: what the cases found goes to FOLDER/WORLD_SIZE.pt. Four ranks read
the checkpoint that two ranks wrote.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_novograd.optim import Composite, NovoGrad

STEPS = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "amsgrad": {"amsgrad": True, "betas": (0.9, 0.25)},
    "luc": {"luc": True, "luc_trust": 0.05},
    "composite": {"composite": True},
}


def make_model(extra_layers: int = 0) -> nn.Sequential:
    """Layers of 7, 5 and 3 rows: over 2 or 4 ranks, shards differ in size and some are empty."""
    torch.manual_seed(0)
    middle = [nn.Linear(5, 5) for _ in range(extra_layers)]
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), *middle, nn.Linear(5, 3, bias=False))


def make_optimizer(model: nn.Module, composite: bool = False, **options: Any) -> NovoGrad | Composite:
    """Two param groups: a group has no all-reduce of its own. Or two optimizers, which ought to make the same steps."""
    params = list(model.parameters())
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}]
    options = {"lr": 0.05, "weight_decay": 0.01, **options}
    return Composite([NovoGrad([group], **options) for group in groups]) if composite else NovoGrad(groups, **options)


def batch(step: int, part: int = 0, parts: int = 1) -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).chunk(parts)[part]


def train(model, optimizer, steps=STEPS, first=0, part=0, parts=1) -> None:
    for step in range(first, first + steps):
        model(batch(step, part, parts)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def outcome(model, optimizer) -> dict[str, list[Tensor]]:
    """Weights and states of whole layers, in the order of the model."""
    states = [optimizer.state[p] for p in model.parameters()]
    return {"weights": [full(p) for p in model.parameters()]} | {
        key: [full(s[key]) for s in states] for key in sorted(states[0])
    }


def one_process(steps: int = STEPS, **options: Any) -> dict[str, list[Tensor]]:
    model = make_model()
    optimizer = make_optimizer(model, **options)
    train(model, optimizer, steps)
    return outcome(model, optimizer)


def fsdp2(mesh: DeviceMesh, extra_layers: int = 0) -> nn.Module:
    model = make_model(extra_layers)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(mesh: DeviceMesh) -> nn.Module:
    """The last layer stays an ordinary one, as norms and embeddings often do."""
    # hidden activations stay DTensors: their 7 features do not divide evenly
    return parallelize_module(
        make_model(), mesh, {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
    )


def fsdp2_and_tensor_parallel(mesh: DeviceMesh) -> nn.Module:
    model = tensor_parallel(mesh["tp"])
    model[4] = parallelize_module(model[4], mesh["tp"], ColwiseParallel(output_layouts=Replicate()))
    return fully_shard(model, mesh=mesh["dp"])


def train_sharded(model: nn.Module, part: int, parts: int, **options: Any) -> dict[str, list[Tensor]]:
    optimizer = make_optimizer(model, **options)
    train(model, optimizer, part=part, parts=parts)
    return outcome(model, optimizer)


def partial_gradients(mesh: DeviceMesh) -> dict[str, Any]:
    """Gradients that are still sums to be made over the ranks, and gradients sharded otherwise than their layer."""
    torch.manual_seed(0)
    whole = [torch.randn(5, 3) for _ in range(4)]
    rank, size = mesh.get_local_rank(), mesh.size()
    replicated = nn.Parameter(distribute_tensor(whole[0], mesh, [Replicate()]))
    sharded = nn.Parameter(distribute_tensor(whole[1], mesh, [Shard(0)]))
    share = whole[2] * (1 if rank == 0 else 0) + (rank - (size - 1) / 2)  # adds up to whole[2]
    replicated.grad = DTensor.from_local(share, mesh, [Partial()])
    sharded.grad = distribute_tensor(whole[3], mesh, [Shard(1)])
    before = sharded.grad.to_local().clone()
    plain = [nn.Parameter(w.clone()) for w in whole[:2]]
    for param, grad in zip(plain, whole[2:], strict=True):
        param.grad = grad
    NovoGrad([replicated, sharded], lr=0.1).step()
    NovoGrad(plain, lr=0.1).step()
    return {
        "actual": [full(replicated), full(sharded)],
        "expected": [p.detach() for p in plain],
        "grad untouched": torch.equal(sharded.grad.to_local(), before),
    }


def all_reduces(model: nn.Module, part: int, parts: int, **options: Any) -> int:
    """How often one step communicates; anything but an all-reduce would be an error."""
    optimizer = make_optimizer(model, **options)
    train(model, optimizer, steps=1, part=part, parts=parts)
    model(batch(1, part, parts)).square().mean().backward()
    with CommDebugMode() as communication:
        optimizer.step()
    counts = {str(op): count for op, count in communication.get_comm_counts().items() if count}
    assert all("all_reduce" in op or "allreduce" in op for op in counts), counts
    return sum(counts.values())


def bad_gradient(mesh: DeviceMesh) -> list[bool]:
    """Which layers stay finite when one rank's shard of one layer's gradient holds a NaN."""
    model = fsdp2(mesh)
    optimizer = make_optimizer(model)
    model(batch(0)).square().mean().backward()
    if mesh.get_local_rank() == 0:
        model[2].weight.grad.to_local()[0, 0] = torch.nan
    optimizer.step()
    return [bool(full(p).isfinite().all()) for p in model.parameters()]


def save_half_way(mesh: DeviceMesh, folder: Path, **options: Any) -> None:
    model = fsdp2(mesh)
    optimizer = make_optimizer(model, amsgrad=True, **options)
    train(model, optimizer, steps=3, part=mesh.get_local_rank(), parts=mesh.size())
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def resume_half_way(mesh: DeviceMesh, folder: Path, **options: Any) -> dict[str, list[Tensor]]:
    model = fsdp2(mesh)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    optimizer = make_optimizer(model, amsgrad=True, **options)
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    train(model, optimizer, steps=STEPS - 3, first=3, part=mesh.get_local_rank(), parts=mesh.size())
    return outcome(model, optimizer)


def zero_redundancy(rank: int, size: int, **options: Any) -> list[Tensor]:
    model = make_model()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(
        parallel.parameters(), optimizer_class=NovoGrad, lr=0.05, weight_decay=0.01, **options
    )
    train(parallel, optimizer, part=rank, parts=size)
    return [full(p) for p in model.parameters()]


def zero_redundancy_parts(rank: int, size: int) -> list[list[Tensor]]:
    """A Composite of such optimizers: the weights after training at a stretch, and with a state dict in between."""
    results = []
    for saved in (False, True):
        model = make_model()
        parallel = nn.parallel.DistributedDataParallel(model)

        def make_parts(params: list[nn.Parameter]) -> Composite:
            halves = (params[:2], params[2:])
            return Composite(
                [ZeroRedundancyOptimizer(half, optimizer_class=NovoGrad, lr=0.05, weight_decay=0.01) for half in halves]
            )

        optimizer = make_parts(list(parallel.parameters()))
        train(parallel, optimizer, 2, part=rank, parts=size)
        if saved:
            for part in optimizer.optimizers:
                part.consolidate_state_dict()
            state_dict = [optimizer.state_dict() if rank == 0 else None]
            dist.broadcast_object_list(state_dict)
            optimizer = make_parts(list(parallel.parameters()))
            optimizer.load_state_dict(state_dict[0])
        train(parallel, optimizer, STEPS - 2, first=2, part=rank, parts=size)
        results.append([full(p) for p in model.parameters()])
    return results


def fsdp1(use_orig_params: bool) -> str:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(make_model(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    try:
        optimizer = NovoGrad(model.parameters())
        model(batch(0)).square().mean().backward()
        optimizer.step()
    except ValueError as error:
        return str(error)
    return "no error"


def lightning_model_parallel(size: int, folder: Path) -> dict[str, Any]:
    """Lightning's strategy for FSDP2 and tensor parallelism trains, saves, and goes on from its checkpoint."""
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import ModelParallelStrategy

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model()

        def configure_model(self) -> None:
            for layer in self.model:
                if isinstance(layer, nn.Linear) and not isinstance(layer.weight, DTensor):
                    fully_shard(layer, mesh=self.device_mesh["data_parallel"])

        def training_step(self, x):
            return self.model(x).square().mean()

        def configure_optimizers(self):
            return make_optimizer(self.model)

    def fit(epochs: int, steps: range, ckpt_path: Path | None) -> Module:
        strategy = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=size,
            strategy=strategy,
            max_epochs=epochs,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Module()
        data = torch.stack([batch(step, dist.get_rank(), size) for step in steps])
        loader = torch.utils.data.DataLoader(data, batch_size=None)
        trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(folder / f"{epochs}.ckpt")
        assert isinstance(module.model[0].weight, DTensor)
        return module

    fit(1, range(3), None)
    return {"weights": [full(p) for p in fit(2, range(3, STEPS), folder / "1.ckpt").model.parameters()]}


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{size}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    rows = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
    sharded = partial(train_sharded, part=rank, parts=size)
    cases: dict[str, Callable[[], Any]] = {
        **{f"fsdp2 {name}": partial(lambda o: sharded(fsdp2(mesh), **o), o) for name, o in OPTIONS.items()},
        **{
            f"tensor parallel {name}": partial(lambda o: train_sharded(tensor_parallel(mesh), 0, 1, **o), o)
            for name, o in OPTIONS.items()
        },
        "partial gradients": lambda: partial_gradients(mesh),
        "bad gradient": lambda: bad_gradient(mesh),
        "all-reduces fsdp2": lambda: [all_reduces(fsdp2(mesh, n), rank, size) for n in (0, 6)],
        "all-reduces fsdp2 luc": lambda: all_reduces(fsdp2(mesh, 6), rank, size, luc=True),
        "all-reduces tensor parallel": lambda: all_reduces(tensor_parallel(mesh), 0, 1),
        "zero redundancy": lambda: zero_redundancy(rank, size),
        "zero redundancy composite": lambda: zero_redundancy_parts(rank, size),
    }
    if size == 2:
        cases |= {
            "hsdp default": lambda: sharded(fsdp2(init_device_mesh("cpu", (2, 1), mesh_dim_names=("r", "s")))),
            "fsdp1": lambda: [fsdp1(use_orig_params) for use_orig_params in (False, True)],
            "save": lambda: save_half_way(mesh, folder / "checkpoint"),
            "save composite": lambda: save_half_way(mesh, folder / "checkpoint of parts", composite=True),
            "zero redundancy bucket view": lambda: zero_redundancy(rank, size, parameters_as_bucket_view=True),
            "lightning": lambda: lightning_model_parallel(size, folder),
        }
    if size == 4:
        dp = rank // 2
        cases |= {
            **{f"hsdp {name}": partial(lambda o: sharded(fsdp2(rows), **o), o) for name, o in OPTIONS.items()},
            **{
                f"fsdp2 and tensor parallel {name}": partial(
                    lambda o: train_sharded(fsdp2_and_tensor_parallel(rows), dp, 2, **o), o
                )
                for name, o in OPTIONS.items()
            },
            "all-reduces hsdp": lambda: all_reduces(fsdp2(rows), rank, size),
            "all-reduces fsdp2 and tensor parallel": lambda: all_reduces(fsdp2_and_tensor_parallel(rows), dp, 2),
            "resume": lambda: resume_half_way(mesh, folder / "checkpoint"),
            "resume composite": lambda: resume_half_way(mesh, folder / "checkpoint of parts", composite=True),
        }
    results = {name: case() for name, case in cases.items()}
    if rank == 0:
        torch.save(results, folder / f"{size}.pt")
    sys.path.append(str(Path(__file__).parents[1]))
    from ranks import leave

    leave()


if __name__ == "__main__":
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(size), "NODE_RANK": "0"}
    main(rank, size, folder)
