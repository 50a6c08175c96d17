"""NovoGrad and AdamW under the same code on real speech: a table of error rates, and the picture of README.md.

    OMP_NUM_THREADS=1 python benchmarks/novograd_adamw.py --fsdd CLONE --out NAME     # trains, then draws
    python benchmarks/novograd_adamw.py --out NAME                                    # draws what is there

CLONE is a clone of https://github.com/Jakobovski/free-spoken-digit-dataset. It writes NAME.csv and NAME.png.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import textwrap
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
PRESET = ROOT / "conf/optim/novograd.yaml"
SEEDS = (1, 2)
STYLES = ("-", ":")
# AdamW's learning rate is the best of three that were tried with another implementation of the same model
CONTENDERS = {"NovoGrad": ["optim=novograd"], "AdamW": ["optim=adamw", "optim.lr=0.02"]}
COLORS = {"NovoGrad": "tab:blue", "AdamW": "tab:orange"}
FIELDS = ["optimizer", "seed", "step", "lr", "train_loss", "dev_wer", "test_wer"]
KEYS = ("name", "lr", "betas", "weight_decay", "sched", "warmup_ratio", "min_lr")


def train(name: str, seed: int, fsdd: str) -> list[dict[str, str]]:
    """Rows of `metrics.csv` that have a loss or an error rate, of one run."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["recipes/asr/train.py", "data=fsdd", f"data.root={fsdd}", "model=quartznet_small", "logger=csv"]
        command += ["trainer.max_epochs=8", f"seed={seed}", f"hydra.run.dir={folder}", *CONTENDERS[name]]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        return read_metrics(Path(folder), name, seed)


def read_metrics(folder: Path, name: str, seed: int) -> list[dict[str, str]]:
    """One row for each optimizer step that was logged, and one for the end."""
    by_step: dict[int, dict[str, str]] = defaultdict(dict)
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            by_step[int(row["step"]) + 1] |= {key: value for key, value in row.items() if value}
    rows = [
        {"step": step, "lr": first_rate(row), "train_loss": row["train_loss"]}
        for step, row in by_step.items()
        if "train_loss" in row
    ]
    end = json.loads((folder / "results.json").read_text())
    rows.append({"step": end["optimizer_steps"], "dev_wer": end["dev_wer"], "test_wer": end["test_wer"]})
    return [{"optimizer": name, "seed": seed, **row} for row in rows]


def first_rate(row: dict[str, str]) -> str:
    """The learning rate of the first param group; its column has the names of the optimizer and the group."""
    return next(value for key, value in row.items() if key.startswith("lr-"))


def yaml_of_preset() -> str:
    """The preset's lines as a reader would write them: without comments and what is null."""
    lines = [line.split("#")[0].rstrip() for line in PRESET.read_text().splitlines()]
    return "\n".join(line for line in lines if line.split(":")[0].strip() in KEYS)


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """The YAML, the learning rate that it made, and the losses of both optimizers."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    text, rate, losses = figure.subplots(1, 3, width_ratios=[0.8, 1, 1.35])
    text.axis("off")
    block = "optim:\n" + textwrap.indent(yaml_of_preset(), "  ")
    text.text(0, 0.5, block, family="monospace", fontsize=10.5, va="center", transform=text.transAxes)
    text.set_title("what you write", loc="left")

    steps, rates = curve(rows, "NovoGrad", 1, "lr")
    rate.plot(steps, rates, color=COLORS["NovoGrad"])
    rate.set_title("the learning rate that this run logged", loc="left")
    rate.set(xlabel="optimizer step", ylim=(0, None), xlim=(0, None))

    for name, color in COLORS.items():
        for seed, style in zip(SEEDS, STYLES, strict=True):
            label = f"{name}, seed {seed}: WER dev {rates_of(rows, name, seed)}"
            losses.plot(
                *curve(rows, name, seed, "train_loss"), color=color, linewidth=1.3, linestyle=style, label=label
            )
    losses.set(xlabel="optimizer step", yscale="log", xlim=(0, None))
    losses.set_title("training loss (CTC), the same code for both", loc="left")
    losses.legend(loc="upper right", fontsize=9)
    for axes in (rate, losses):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def curve(rows: list[dict[str, str]], name: str, seed: int, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of one run."""
    own = [row for row in rows if (row["optimizer"], row["seed"]) == (name, str(seed)) and row[column]]
    return [int(row["step"]) for row in own], [float(row[column]) for row in own]


def rates_of(rows: list[dict[str, str]], name: str, seed: int) -> str:
    """The error rates of the last step."""
    (dev,), (test,) = (curve(rows, name, seed, column)[1] for column in ("dev_wer", "test_wer"))
    return f"{dev:.1%}, test {test:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fsdd", help="the clone to train on; without it nothing is trained")
    parser.add_argument("--out", type=Path, required=True, help="path of the CSV and the PNG file, without suffix")
    options = parser.parse_args()
    runs = options.out.with_suffix(".csv")
    if options.fsdd:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for seed in SEEDS for name in CONTENDERS for row in train(name, seed, options.fsdd)]
        with runs.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with runs.open() as file:
        rows = list(csv.DictReader(file))
    draw(rows, options.out.with_suffix(".png"))
    for name in CONTENDERS:
        for seed in SEEDS:
            print(f"{name}, seed {seed}: WER dev {rates_of(rows, name, seed)}")


if __name__ == "__main__":
    main()
