"""Section 4 and appendix A of NovoGrad's paper: ``python recipes/deep_linear/train.py [--out DIR]``.

SGD, Adam, AdamW and NovoGrad minimize (w1*w2 - 1)^2 for 500 steps with the paper's settings. Prints a table of who
diverges and how far from the flat minima the others end, and writes it to DIR with the paths over the contours of the
loss (figures 2 and 6 to 9) and two maps: of learning rate and weight decay, and of starting points.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_novograd.recipes.deep_linear.network import BETAS, OPTIMIZERS, STEPS, Run, train
from lightning_novograd.recipes.deep_linear.pictures import draw_map, draw_paths


@dataclass(frozen=True)
class Setting:
    """What all four optimizers train with.

    Args:
        name: of the files.
        figure: in the paper.
        claim: what the paper says about it.
        lr: learning rate.
        weight_decay: L2 or decoupled, as the optimizer has it.
        start: w1 and w2. The paper shows its starting points only in its pictures; these are ours.
    """

    name: str
    figure: int
    claim: str
    lr: float = 0.2
    weight_decay: float = 0.1
    start: tuple[float, float] = (0.1, 8.0)


SETTINGS = (
    Setting("baseline", 6, "all converge; Adam oscillates wildly, NovoGrad is the most stable"),
    Setting("high_lr", 7, "SGD and Adam diverge, AdamW and NovoGrad converge", lr=1.0),
    Setting("high_weight_decay", 8, "all diverge except NovoGrad", weight_decay=0.5),
    Setting("bad_start", 9, "AdamW diverges, SGD and NovoGrad are the most robust", start=(-2.0, 4.0)),
)
LRS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0)
WEIGHT_DECAYS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0)
STARTS = (-4.0, -2.0, -1.0, -0.3, 0.3, 1.0, 2.0, 4.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="deep_linear", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/deep_linear"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s, as in the paper")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, not {arguments.steps}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = ["| setting | " + " | ".join(OPTIMIZERS) + " | the paper |", "|---|" + "---|" * (len(OPTIMIZERS) + 1)]
    for setting in SETTINGS:
        runs = {
            name: train(block, setting.lr, setting.weight_decay, setting.start, arguments.steps)
            for name, block in OPTIMIZERS.items()
        }
        title = f"lr {setting.lr:g}, weight decay {setting.weight_decay:g}, start {setting.start}"
        draw_paths(runs, title, arguments.out / f"{setting.name}.png")
        cells = (outcome(run) for run in runs.values())
        lines.append(f"| {title} | {' | '.join(cells)} | figure {setting.figure}: {setting.claim} |")
    lines += ["", *maps(arguments.out, arguments.steps)]
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(f"\nTable and pictures are in {arguments.out}.")
    return 0


def outcome(run: Run) -> str:
    """A cell of the table: distance from the nearer flat minimum, and the largest loss of the last 100 steps."""
    return f"diverges at step {len(run.path)}" if run.diverged else f"{run.distance:.3f}, {run.final_loss:.0e}"


def maps(folder: Path, steps: int) -> list[str]:
    """Draw both maps; the table of how much of each ends below a loss of 0.01."""
    base = SETTINGS[0]
    by_settings = {
        name: [[train(block, lr, decay, base.start, steps).final_loss for lr in LRS] for decay in WEIGHT_DECAYS]
        for name, block in OPTIMIZERS.items()
    }
    by_start = {
        name: [[train(block, base.lr, base.weight_decay, (w1, w2), steps).final_loss for w1 in STARTS] for w2 in STARTS]
        for name, block in OPTIMIZERS.items()
    }
    title = f"start {base.start}, betas {BETAS}"
    draw_map(by_settings, ("learning rate", LRS), ("weight decay", WEIGHT_DECAYS), title, folder / "map_settings.png")
    title = f"lr {base.lr:g}, weight decay {base.weight_decay:g}, betas {BETAS}"
    draw_map(by_start, ("start: $w_1$", STARTS), ("start: $w_2$", STARTS), title, folder / "map_starts.png")
    lines = ["| loss stays below 0.01, of | " + " | ".join(OPTIMIZERS) + " |", "|---|" + "---|" * len(OPTIMIZERS)]
    for what, losses in (("learning rates and weight decays", by_settings), ("starting points", by_start)):
        good = (sum(loss < 0.01 for row in rows for loss in row) for rows in losses.values())
        size = sum(len(row) for row in next(iter(losses.values())))
        lines.append(f"| {size} {what} | {' | '.join(map(str, good))} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
