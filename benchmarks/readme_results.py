"""The table of README.md's results, made of the newest complete runs of optimizers.py.

python benchmarks/readme_results.py           # writes it
python benchmarks/readme_results.py --check   # exit code 1 if it is another one
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from optimizers_results import Results
from optimizers_runs import CONTENDERS, KIND, SEEDS, TASKS
from tables import row, table

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: made by benchmarks/readme_results.py -->", "<!-- end of results -->"


def newest(folder: Path = RESULTS) -> Path | None:
    """The runs of the last date in their name, of those that are complete; None: there are none."""
    found = sorted(folder.glob("optimizers_*.jsonl"), key=lambda path: path.stem.rsplit("_", 1)[1])
    complete = [path for path in found if not Results(KIND.read(path)[1]).missing]
    return complete[-1] if complete else None


def lines(runs: Path) -> Iterator[str]:
    """The table of some runs: a column for each task, dev / test, and the state's bytes."""
    results = Results(KIND.read(runs)[1])
    costs = runs.with_suffix(".json")
    measured = json.loads(costs.read_text())["rows"] if costs.is_file() else []
    state = {r["optimizer"]: r["state_bytes"] / r["parameters"] for r in measured}
    yield from table(
        f"median of {len(SEEDS)} seeds, dev / test",
        *(f"{t.title}, {t.label}" for t in TASKS.values()),
        "bytes a parameter",
    )
    for name in CONTENDERS:
        cells = [cell(results, task, name) for task in TASKS]
        yield row(name, *cells, f"{state[name]:.1f}" if name in state else "")


def cell(results: Results, task: str, name: str) -> str:
    """Medians of dev and test; nothing where seeds are missing or the optimizer does not apply."""
    both = [results.values(task, name, split) for split in ("dev", "test")]
    return " / ".join(TASKS[task].show(median(values)) for values in both) if len(both[0]) == len(SEEDS) else ""


def with_table(text: str, runs: Path) -> str:
    """README's text with the table of some runs between the two comments.

    Raises:
        SystemExit: the comments are not there.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"README.md needs the comments {BEGIN} and {END}, once each")
    before, rest = text.split(BEGIN)
    page = f"[All settings, the spread, the paper's claims](benchmarks/results/{runs.stem}.md)"
    return "\n".join([before + BEGIN, "", *lines(runs), "", f"{page}.", END]) + rest.split(END)[1]


def write_table() -> None:
    """Bring README.md up to date, if there are runs."""
    if (runs := newest()) is not None:
        README.write_text(with_table(README.read_text("utf-8"), runs), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit code 1 if README.md has another table"
    )
    arguments = parser.parse_args()
    if not arguments.check:
        write_table()
    elif (runs := newest()) and with_table(text := README.read_text("utf-8"), runs) != text:
        sys.exit("README.md has another table than the newest results: python benchmarks/readme_results.py")


if __name__ == "__main__":
    main()
