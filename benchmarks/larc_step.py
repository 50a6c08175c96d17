"""How long is a step under LARC, compared with the wrapped optimizer's own step?

Both take turns stepping on a QuartzNet's layers with random gradients; the table has both medians and their ratio.
On a GPU it also has, for the step under LARC, the ratio to torch's fused SGD alone, the share of a plain copy's speed
(as if LARC moved no bytes of its own), how often it waits for the GPU, and the time of a replay from a CUDA graph ("-":
it cannot be captured).

python benchmarks/larc_step.py --model quartznet_15x5 --threads 4
"""

import argparse
import statistics
from pathlib import Path

import torch
import yaml
from steps import copy_bandwidth, replay_seconds, synchronizations, timed

from lightning_novograd.optim import NovoGrad
from lightning_novograd.optim.larc.optimizer import LARC
from lightning_novograd.recipes.asr.model.jasper import JasperCTC

MODELS = Path(__file__).resolve().parent.parent / "conf" / "model"
OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "SGD, fused": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True),
    "NovoGrad": lambda params: NovoGrad(params, lr=0.01, betas=(0.95, 0.25), weight_decay=1e-3),
    "NovoGrad, luc": lambda params: NovoGrad(params, lr=0.01, betas=(0.95, 0.25), weight_decay=1e-3, luc=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "AdamW, fused": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-4),
}

# Bytes per float32 weight that a step alone must move, where it is not SGD's 20
BYTES = {"AdamW": 28, "AdamW, fused": 28}


def make_params(shapes, device):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(0.05 * torch.randn(shape, device=device)) for shape in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    return params


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="quartznet_15x5", choices=sorted(path.stem for path in MODELS.glob("*.yaml"))
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = JasperCTC.from_config(yaml.safe_load((MODELS / f"{args.model}.yaml").read_text()))
    shapes = [p.shape for p in model.parameters()]
    elements = sum(shape.numel() for shape in shapes)
    print(
        f"{args.model}: {len(shapes)} layers, {elements / 1e6:.1f} M weights, {args.threads} threads, {args.device}\n"
    )
    device = torch.device(args.device)
    columns = ["optimizer", "target", "layers clipped", "step, ms", "under LARC, ms", "ratio"]
    floor = copy = 0.0
    if device.type == "cuda":
        columns += ["ratio to SGD, fused", "% of copy", "waits", "graph replay, ms"]
        copy = copy_bandwidth(device)
        sgd = OPTIMIZERS["SGD, fused"](make_params(shapes, device))
        floor = 1e3 * statistics.median([timed(sgd.step, device) for _ in range(args.steps + 3)][3:])
    print(f"| {' | '.join(columns)} |")
    print("|" + "---|" * len(columns))
    for name, build in OPTIMIZERS.items():
        for trust_coefficient in (1e-4, 10.0):
            bare = build(make_params(shapes, device))
            larc = LARC(build(make_params(shapes, device)), trust_coefficient)
            times = [(timed(bare.step, device), timed(larc.step, device)) for _ in range(args.steps + 3)][3:]
            clipped = torch.cat([factors < 1 for _, factors in larc.factors]).float().mean()
            alone, wrapped = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
            row = f"{name} | {larc.target} | {clipped:.0%} | {alone:.2f} | {wrapped:.2f} | {wrapped / alone:.2f}"
            if device.type == "cuda":
                moved = BYTES.get(name, 20) * elements / wrapped / 1e6
                waits = synchronizations(larc)
                replay = replay_seconds(
                    lambda params, build=build, trust=trust_coefficient: LARC(build(params), trust),
                    make_params(shapes, device),
                    args.steps,
                )
                replayed = "-" if replay is None else f"{1e3 * statistics.median(replay):.2f}"
                row += f" | {wrapped / floor:.2f} | {100 * moved / copy:.0f} | {waits} | {replayed}"
            print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
