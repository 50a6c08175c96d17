"""How well does the speech recipe scale over ranks of one thread each, and where does a step's time go?

Whole runs of train.py, loading, metrics, logging and synchronization included, with the same batch on each rank (weak
scaling). Each round runs every arrangement once: one rank alone; N ranks under DDP; N independent runs of one rank at
once, which share memory bandwidth, cache and clock as N ranks do, and send each other nothing. Two efficiencies:

    against one rank:    rate(N ranks) / (N * rate(one rank alone))
    against independent: rate(N ranks) / sum of the rates of N independent runs

The first is what a user gains, the second what DDP costs. One more round runs under Lightning's profiler.

python benchmarks/ddp_scaling.py --corpus DIR --model quartznet_small --rounds 5
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

# of Lightning's simple profiler: what a training step is made of
PARTS = {
    "waiting for a batch": r"\[_TrainingEpochLoop\]\.train_dataloader_next",
    "forward and loss": r"\[Strategy\]\w+\.training_step",
    "backward, with its all-reduces": r"\[Strategy\]\w+\.backward",
    "whole step": r"run_training_batch",
    "whole epoch": r"run_training_epoch",
}
ROW = re.compile(r"^\|\s+(.*?)\s*\|\s*([\d.e+-]+)\s*\|\s*(\d+)\s*\|\s*([\d.e+-]+)\s*\|")


def command(arguments: argparse.Namespace, ranks: int, folder: Path, extra: list[str]) -> list[str]:
    """A run of as many ranks."""
    trainer = ["trainer=ddp_cpu", f"trainer.devices={ranks}"] if ranks > 1 else ["trainer=cpu"]
    data = ["data=manifest", *(f"data.{split}={arguments.corpus / split}.json" for split in ("train", "dev"))]
    return [
        *(sys.executable, "-m", "lightning_novograd.recipes.asr.train", f"model={arguments.model}", *data, *trainer),
        *(f"data.batch_size={arguments.batch_size}", "data.num_workers=0", "data.cache_audio=true"),
        *("data.bucket_steps=10", "trainer.enable_progress_bar=false", "trainer.limit_val_batches=0", "logger=csv"),
        *("trainer.max_epochs=-1", f"trainer.max_steps={arguments.steps}", f"hydra.run.dir={folder}"),
        *arguments.overrides,
        *extra,
    ]


def run(arguments: argparse.Namespace, ranks: list[int], *extra: str) -> tuple[float, str]:
    """Runs of so many ranks each, at once: utterances per second of all, and what the first has said."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, str(i)) for i in range(len(ranks))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        logs = [open(f"{path}.log", "w+") for path in folders]  # noqa: SIM115
        processes = [
            subprocess.Popen(command(arguments, n, path, list(extra)), stdout=log, stderr=log, env=environment)
            for n, path, log in zip(ranks, folders, logs, strict=True)
        ]
        failed = [process.wait() for process in processes]
        said = []
        for log in logs:
            log.seek(0)
            said.append(log.read())
            log.close()
        if any(failed):
            raise SystemExit("\n".join(text[-3000:] for text in said))
        return sum(json.loads((path / "results.json").read_text())["utt_per_s"] for path in folders), said[0]


def profile(said: str, steps: int) -> dict[str, float]:
    """Milliseconds of a step by part, from the profiler's table of the first rank."""
    rows = {match[1]: float(match[4]) for match in map(ROW.match, said.splitlines()) if match}
    found = {
        part: sum(total for action, total in rows.items() if re.fullmatch(pattern, action))
        for part, pattern in PARTS.items()
    }
    whole, step = found.pop("whole epoch"), found.pop("whole step")
    forward, backward = found["forward and loss"], found["backward, with its all-reduces"]
    found["guard, clipping, optimizer"] = step - forward - backward
    found["callbacks and logging"] = whole - step - found["waiting for a batch"]
    return {part: 1000 * total / steps for part, total in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with train.json and dev.json")
    parser.add_argument("--model", default="quartznet_small")
    parser.add_argument("--batch-size", type=int, default=32, help="of each rank")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="*", help="default: 2, and 4 where there are 4 cores")
    parser.add_argument("overrides", nargs="*", help="of every run, after --: -- distributed.static_graph=true")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    several = arguments.ranks or [n for n in (2, 4) if n <= cores]
    print(f"{platform.processor() or platform.machine()}, {cores} cores, torch {torch.__version__}, one thread a rank")
    print(f"{arguments.model}, {arguments.batch_size} utterances a rank and step, {arguments.steps} steps a run\n")

    run(arguments, [1])  # decodes the audio and fills caches
    arrangements = {"1 rank": [1]}
    for n in several:
        arrangements |= {f"{n} ranks": [n], f"{n} independent": [1] * n}
    rates: dict[str, list[float]] = {name: [] for name in arrangements}
    for number in range(arguments.rounds):
        names = list(arrangements)
        for name in names if number % 2 else reversed(names):  # no arrangement is always the first
            rates[name].append(run(arguments, arrangements[name])[0])

    print("| arrangement | utterances/s, median | smallest | largest |\n|---|---|---|---|")
    for name, seen in rates.items():
        print(f"| {name} | {statistics.median(seen):.1f} | {min(seen):.1f} | {max(seen):.1f} |")
    print("\n| ranks | efficiency against one rank alone | against independent runs |\n|---|---|---|")
    for n in several:
        # of the same round: what slows the machine down for a minute slows all of a round
        pairs = zip(rates[f"{n} ranks"], rates["1 rank"], rates[f"{n} independent"], strict=True)
        alone, independent = zip(*((ours / (n * one), ours / apart) for ours, one, apart in pairs), strict=True)
        print(f"| {n} | {statistics.median(alone):.3f} | {statistics.median(independent):.3f} |")

    print("\nms of a step on the first rank, under Lightning's profiler:\n")
    columns = {
        name: profile(run(arguments, ranks, "trainer.profiler=simple")[1], arguments.steps)
        for name, ranks in arrangements.items()
    }
    print(f"| part | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for part in next(iter(columns.values())):
        print(f"| {part} | {' | '.join(f'{column[part]:.1f}' for column in columns.values())} |")
    print(f"| sum | {' | '.join(f'{sum(column.values()):.1f}' for column in columns.values())} |")
    print("\nWhat `backward` takes longer with ranks than with independent runs is sending and waiting for each other.")


if __name__ == "__main__":
    main()
