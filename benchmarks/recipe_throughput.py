"""How fast does the speech recipe train, and where does the time go, beside NeMo's EncDecCTCModel on the same data?

Whole runs of `train.py` and, where a Python with NeMo is given, of NeMo's trainer, one after the other, on one corpus
of `prepare.py`: utterances per second of the training loop with its loading, metrics and logging, validation left out.
Then the parts of a step, and a large model's forward, CTC and backward pass.

python benchmarks/recipe_throughput.py --corpus DIR --nemo-python .venv-nemo/bin/python
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

from lightning_novograd.recipes.asr.data.config import DataConfig
from lightning_novograd.recipes.asr.data.module import SpeechDataModule
from lightning_novograd.recipes.asr.model.jasper import JasperCTC
from lightning_novograd.recipes.asr.text.decode import greedy
from lightning_novograd.recipes.asr.training.loss import ctc_loss
from lightning_novograd.recipes.common.allocator import keep_freed_memory

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "conf" / "model"
SHAPE = (4, 64, 800)  # of the large model's features


def ours(corpus: Path, model: str, epochs: int, folder: Path, overrides: list[str]) -> dict[str, float]:
    """One run of train.py: utterances/s, peak memory of its process in MB."""
    command = [sys.executable, "-m", "lightning_novograd.recipes.asr.train", "data=manifest", f"model={model}"]
    command += [f"data.{split}={corpus / split}.json" for split in ("train", "dev")]
    command += [
        "data.num_workers=0",
        "data.cache_audio=true",
        "data.batch_size=32",
        "data.bucket_steps=10",
        "trainer.enable_progress_bar=false",
    ]
    command += [f"trainer.max_epochs={epochs}", f"hydra.run.dir={folder}", "logger=csv", *overrides]
    peak_mb = run(command)
    results = json.loads((folder / "results.json").read_text())
    return {"utterances/s": results["utt_per_s"], "peak MB": peak_mb}


def nemo(python: str, corpus: Path, model: str, epochs: int, folder: Path) -> dict[str, float]:
    """The same with NeMo."""
    folder.mkdir()
    out = folder / "nemo.json"
    command = [python, str(HERE / "nemo_throughput.py"), "train", str(MODELS / f"{model}.yaml"), str(corpus)]
    peak_mb = run([*command, str(epochs), str(out)])
    return {**json.loads(out.read_text()), "peak MB": peak_mb}


def nemo_step(python: str, model: str, folder: Path, repeats: int) -> float:
    """Seconds of the large model's pass in NeMo."""
    out = folder / "step.json"
    command = [python, str(HERE / "nemo_throughput.py"), "step", str(MODELS / f"{model}.yaml")]
    run([*command, json.dumps(SHAPE), str(repeats), str(out)])
    return json.loads(out.read_text())["seconds"]


def run(command: list[str]) -> float:
    """Run a process to its end; its peak memory in MB."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return usage.ru_maxrss / 1024


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` calls after one."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def large_step(model: str, repeats: int, dtype: torch.dtype | None = None) -> float:
    """Seconds of forward, CTC and backward; features of SHAPE."""
    network = JasperCTC.from_config(yaml.safe_load((MODELS / f"{model}.yaml").read_text())).train()
    x_BCT = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    lens_B = torch.full(SHAPE[:1], SHAPE[2])
    targets_BU = torch.randint(0, len(network.alphabet), (SHAPE[0], 60), generator=torch.Generator().manual_seed(2))
    target_lens_B = torch.full(SHAPE[:1], 60)

    def work() -> None:
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            log_probs_BTV, out_lens_B = network.encode_features(x_BCT, lens_B)
        ctc_loss(log_probs_BTV, out_lens_B, targets_BU, target_lens_B, network.alphabet.blank).backward()

    return seconds(work, repeats)


def parts(corpus: Path, model: str, steps: int) -> tuple[dict[str, float], float]:
    """Median milliseconds of the parts of a training step, and the share of the samples that are padding."""
    network = JasperCTC.from_config(yaml.safe_load((MODELS / f"{model}.yaml").read_text())).train()
    config = {"name": "manifest", "batch_size": 32, "bucket_steps": 10, "cache_audio": True}
    data = SpeechDataModule(
        DataConfig.from_mapping({**config, **{split: str(corpus / f"{split}.json") for split in ("train", "dev")}}),
        network.alphabet,
        samples_to_frames=network.output_lengths,
    )
    data.setup("fit")
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)
    times: dict[str, list[float]] = {}
    samples = padded = 0
    batches = iter(data.train_dataloader())
    for _ in range(steps):
        clock = Clock(times)
        batch = next(batches)
        clock.lap("load and collate")
        x_BCT, lens_B = network.preprocessor(batch.wave_BS, batch.wave_lens_B)
        clock.lap("features")
        log_probs_BTV, out_lens_B = network.encode_features(x_BCT, lens_B)
        clock.lap("forward")
        loss = ctc_loss(log_probs_BTV, out_lens_B, batch.targets_BU, batch.target_lens_B, network.alphabet.blank)
        clock.lap("CTC")
        loss.backward()
        clock.lap("backward")
        optimizer.step()
        optimizer.zero_grad()
        clock.lap("optimizer")
        greedy(log_probs_BTV.detach(), out_lens_B, network.alphabet)
        clock.lap("greedy decoding")
        samples += int(batch.wave_lens_B.sum())
        padded += batch.wave_BS.numel()
    data.teardown()
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}, 1 - samples / padded


class Clock:
    """Laps of one step, added to lists by name."""

    def __init__(self, times: dict[str, list[float]]) -> None:
        self.times, self.since = times, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.times.setdefault(name, []).append(now - self.since)
        self.since = now


def has_bf16_units() -> bool:
    """Whether the CPU multiplies bfloat16 itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def machine() -> str:
    with open("/proc/cpuinfo") as info:
        names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder with train.json and dev.json")
    parser.add_argument("--model", default="quartznet_small")
    parser.add_argument("--large", default="quartznet_15x5")
    parser.add_argument("--nemo-python", help="a Python that has NeMo")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, in turns")
    parser.add_argument("--repeats", type=int, default=5, help="passes of the large model")
    parser.add_argument("overrides", nargs="*", help="of the config of train.py")
    arguments = parser.parse_args()
    print(machine())
    keep_freed_memory()  # as train.py does
    if arguments.corpus is not None:
        compare_runs(arguments)
        print_parts(arguments)
    compare_steps(arguments)
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def compare_runs(arguments: argparse.Namespace) -> None:
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "NeMo": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            where = Path(folder) / f"ours{turn}"
            rows["ours"].append(ours(arguments.corpus, arguments.model, arguments.epochs, where, arguments.overrides))
            if arguments.nemo_python:
                where = Path(folder) / f"nemo{turn}"
                rows["NeMo"].append(
                    nemo(arguments.nemo_python, arguments.corpus, arguments.model, arguments.epochs, where)
                )
    medians = {}
    for name, runs in rows.items():
        if runs:
            rates = [run["utterances/s"] for run in runs]
            medians[name] = statistics.median(rates)
            shown = ", ".join(f"{rate:.1f}" for rate in rates)
            print(f"{name:5} {shown} utterances/s; peak {max(run['peak MB'] for run in runs):.0f} MB")
    if len(medians) == 2:
        print(f"ours / NeMo: {medians['ours'] / medians['NeMo']:.2f}")


def print_parts(arguments: argparse.Namespace) -> None:
    times, padding = parts(arguments.corpus, arguments.model, steps=30)
    whole = sum(times.values())
    for name, ms in times.items():
        print(f"  {name:18} {ms:7.1f} ms  {100 * ms / whole:4.1f} %")
    print(f"  {'sum':18} {whole:7.1f} ms; {100 * padding:.1f} % of the samples are padding")


def compare_steps(arguments: argparse.Namespace) -> None:
    seen: dict[str, list[float]] = {"ours": [], "NeMo": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            seen["ours"].append(large_step(arguments.large, arguments.repeats))
            if arguments.nemo_python:
                step = nemo_step(arguments.nemo_python, arguments.large, Path(folder), arguments.repeats)
                seen["NeMo"].append(step)
    for name, values in seen.items():
        if values:
            shown = ", ".join(f"{value:.2f}" for value in values)
            print(f"{arguments.large}, forward + CTC + backward on {SHAPE}: {name} {shown} s")
    if seen["NeMo"]:
        print(f"NeMo / ours: {np.median(seen['NeMo']) / np.median(seen['ours']):.2f}")
    if has_bf16_units():
        bf16 = large_step(arguments.large, arguments.repeats, torch.bfloat16)
        print(f"ours under bfloat16 autocast: {bf16:.2f} s")


if __name__ == "__main__":
    main()
