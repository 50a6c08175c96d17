"""How long is a Composite's step, compared with the steps of its parts on their own?

Weights of more than one dimension are one part's, biases and normalization layers the other's. The Composite and the
parts alone step on layers of their own with the same random gradients, one after the other, in an order that is drawn
anew each time; the table has both medians and the median of the ratios.

python benchmarks/composite_step.py --model quartznet_15x5 --threads 4
"""

import argparse
import random
import statistics
from pathlib import Path

import torch
import yaml
from steps import timed

from lightning_novograd.optim import LARC, Composite, NovoGrad
from lightning_novograd.recipes.asr.model.jasper import JasperCTC

MODELS = Path(__file__).resolve().parent.parent / "conf" / "model"
SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
PARTS = {
    "NovoGrad + AdamW": lambda weights, others: [NovoGrad(weights, lr=0.01), AdamW(others, lr=1e-3)],
    "NovoGrad + AdamW, fused": lambda weights, others: [
        NovoGrad(weights, lr=0.01, fused=True),
        AdamW(others, lr=1e-3, fused=True),
    ],
    "SGD, fused + SGD, fused": lambda weights, others: [
        SGD(weights, lr=0.1, momentum=0.9, fused=True),
        SGD(others, lr=0.1, momentum=0.9, fused=True),
    ],
    "LARC(SGD) + SGD": lambda weights, others: [
        LARC(SGD(weights, lr=0.1, momentum=0.9), 1e-3),
        SGD(others, lr=0.1, momentum=0.9),
    ],
}


def make_parts(name, shapes, device):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(0.05 * torch.randn(shape, device=device)) for shape in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    return PARTS[name]([p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1])


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
    device = torch.device(args.device)
    model = JasperCTC.from_config(yaml.safe_load((MODELS / f"{args.model}.yaml").read_text()))
    shapes = [p.shape for p in model.parameters()]
    elements = sum(shape.numel() for shape in shapes)
    print(
        f"{args.model}: {len(shapes)} layers, {elements / 1e6:.1f} M weights, {args.threads} threads, {args.device}\n"
    )
    columns = ["parts", "alone, ms", "as a Composite, ms", "ratio"]
    print(f"| {' | '.join(columns)} |")
    print("|" + "---|" * len(columns))
    order = random.Random(0)
    for name in PARTS:
        alone, composite = make_parts(name, shapes, device), Composite(make_parts(name, shapes, device))
        steps = [lambda parts=alone: [part.step() for part in parts], composite.step]
        rounds = []
        for _ in range(args.steps + 3):
            turns = order.sample((0, 1), 2)
            seconds = {turn: timed(steps[turn], device) for turn in turns}
            rounds.append((seconds[0], seconds[1]))
        rounds = rounds[3:]
        medians = [1e3 * statistics.median(column) for column in zip(*rounds, strict=True)]
        ratio = statistics.median(whole / parts for parts, whole in rounds)
        print(f"| {name} | {medians[0]:.2f} | {medians[1]:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
