"""Does a model that has heard synthesized digits learn real ones better than a new one, in as many steps?

    OMP_NUM_THREADS=1 python benchmarks/transfer.py --fsdd CLONE

Trains quartznet_small on espeak_digits once, then on connected digits of real speakers (FSDD) for a few hundred steps,
from scratch and with `init_from`, everything else alike. Prints a table of dev and test WER; the test speaker of FSDD
is never heard in training.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = Path(__file__).resolve().parent.parent / "recipes" / "asr" / "train.py"


def train(run_dir: Path, *overrides: str) -> dict[str, float]:
    """Run train.py; what its results.json holds."""
    quiet = ("trainer.enable_progress_bar=false", "logger=csv")
    command = [sys.executable, str(TRAIN), "model=quartznet_small", *quiet, *overrides, f"hydra.run.dir={run_dir}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads((run_dir / "results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("NOVOGRAD_TEST_DATA")
    parser.add_argument("--fsdd", default=data and f"{data}/fsdd", help="default: $NOVOGRAD_TEST_DATA/fsdd")
    parser.add_argument("--first-epochs", type=int, default=8, help="on espeak_digits, 100 steps each")
    parser.add_argument("--epochs", type=int, default=4, help="on FSDD, 62 steps each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    if not arguments.fsdd:
        parser.error("--fsdd or NOVOGRAD_TEST_DATA: where the recordings are")
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        digits = ("data=espeak_digits", "data.batch_size=32", "data.letters=0")
        found = train(first, *digits, f"trainer.max_epochs={arguments.first_epochs}")
        print(f"espeak_digits: {found['optimizer_steps']} steps, test WER {100 * found['test_wer']:.2f} %", flush=True)
        both = {"from scratch": (), "init_from": (f"init_from={first}",)}
        tuned = {"init_from, encoder at lr x 0.1": ("+optim.param_groups=[{match: 'model.encoder.*', lr_mult: 0.1}]",)}
        ways = both | {name: (*both["init_from"], *more) for name, more in tuned.items()}
        print("| | seed | steps | dev WER, % | test WER, % |\n|---|---|---|---|---|", flush=True)
        for name, overrides in ways.items():
            runs = []
            for seed in arguments.seeds:
                fsdd = ("data=fsdd", f"data.root={arguments.fsdd}", f"trainer.max_epochs={arguments.epochs}")
                run_dir = Path(folder) / f"{len(runs)}-{name.replace(' ', '-').replace(',', '')}"
                runs.append(train(run_dir, *fsdd, f"seed={seed}", *overrides))
                row(name, seed, runs[-1]["optimizer_steps"], runs[-1]["dev_wer"], runs[-1]["test_wer"])
            medians = (statistics.median(run[f"{split}_wer"] for run in runs) for split in ("dev", "test"))
            row(name, "median", runs[0]["optimizer_steps"], *medians)


def row(name: str, seed: int | str, steps: float, dev: float, test: float) -> None:
    """One line of the table."""
    print(f"| {name} | {seed} | {steps} | {100 * dev:.2f} | {100 * test:.2f} |", flush=True)


if __name__ == "__main__":
    main()
