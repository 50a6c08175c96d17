"""Run tests as other CPUs would: `python tests/isa.py [pytest arguments]` prints what passed under which instructions.

torch, MKL and oneDNN choose instructions when a process starts, and round differently with each choice. So every row is
a process of pytest with its own environment: torch's lowest to highest, MKL's and oneDNN's lowest and highest, one
thread and two, and the C++ kernels' as torch's. What this machine's CPU lacks is left out, and said.
"""

import os
import subprocess
import sys
import time

import torch

# ATEN_CPU_CAPABILITY, what the C++ kernels call it, and whether this CPU has it
CAPABILITIES = (
    ("default", "portable", True),
    ("avx2", "avx2", torch.cpu._is_avx2_supported()),
    ("avx512", "avx512", torch.cpu._is_avx512_supported()),
)
LOWEST = {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
HIGHEST = {"MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "DEFAULT"}
# Each value beside each value of the others: half of all combinations
ROWS = [
    (CAPABILITIES[0], LOWEST, "1"),
    (CAPABILITIES[0], HIGHEST, "2"),
    (CAPABILITIES[1], LOWEST, "2"),
    (CAPABILITIES[1], HIGHEST, "1"),
    (CAPABILITIES[2], LOWEST, "1"),
    (CAPABILITIES[2], HIGHEST, "2"),
]


def main() -> int:
    """Exit code 1 if any run failed."""
    failed = False
    print("| ATen, kernels | MKL | oneDNN | threads | result | seconds |\n|---|---|---|---|---|---|", flush=True)
    for (capability, kernels, supported), libraries, threads in ROWS:
        row = f"| {capability} | {' | '.join(libraries.values())} | {threads} "
        if not supported:
            print(row + "| this CPU lacks it | |", flush=True)
            continue
        ours = {"ATEN_CPU_CAPABILITY": capability, "NOVOGRAD_KERNEL_INSTRUCTIONS": kernels}
        processes = max(1, (os.cpu_count() or 1) // int(threads))  # more of two threads each slow one another tenfold
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"-n{processes}", *sys.argv[1:]]
        start = time.monotonic()
        environment = os.environ | ours | libraries | {"OMP_NUM_THREADS": threads}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = run.stdout.splitlines()
        print(f"{row}| {lines[-1].partition(' in ')[0] if lines else run.stderr[-200:]} | ", end="")
        print(f"{time.monotonic() - start:.0f} |", flush=True)
        if run.returncode != 0:
            failed = True
            print(*(line for line in lines if line.startswith(("FAILED", "ERROR"))), sep="\n", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
