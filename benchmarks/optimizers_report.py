"""The page and the picture of what optimizers.py has measured."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optimizers_claims import claims
from optimizers_picture import draw
from optimizers_results import RIVALS, Results
from optimizers_runs import CONTENDERS, FACTORS, KIND, POINTS, SEEDS, TASKS, search
from tables import row, spread, table

SETUP = """
{date}; torch {torch}, Lightning {lightning}, Python {python}, Linux; {cpu}, {cores} cores, 1 thread, other work on the
machine while the models trained (only the table of costs is about time).

As AlgoPerf's external tuning has it, each optimizer has five trials on each task, from a space of learning rates and
weight decays that is the same for all tasks: a Latin hypercube of five fifths of two decades on both axes, logarithmic,
the same five places for all optimizers. The best trial by the dev set (equal ones: by its loss) is run with two more
seeds; so dev is a little flattered, test is not. The same settings are run without warmup with three seeds, and with
1/4, 1/2, 2 and 4 times their learning rate with the first. Everything else is alike: cosine schedule down to 0, a tenth
of warmup, weights of the last step, no clipping, no augmentation. A run that diverged counts as guessing.
"""


def write_report(runs: Path, costs: Path | None, page: Path) -> None:
    """Write the page, and beside it the picture.

    Args:
        runs: file of the finished trainings.
        costs: file of the steps' times, if there is one.
        page: a Markdown file to write.
    """
    settings, outcomes = KIND.read(runs)
    if not settings:
        raise SystemExit(f"{runs} holds no runs")
    results = Results(outcomes)
    measured = json.loads(costs.read_text()) if costs else None
    picture = page.with_suffix(".png")
    draw(results, picture)
    lines = [*head(settings, results), "", f"![sensitivity to the learning rate]({picture.name})", ""]
    lines += ["## What came of the paper's claims", "", *claims(results, measured and measured["rows"]), ""]
    for task in TASKS:
        lines += [f"## {TASKS[task].title.capitalize()}", "", *section(results, task), ""]
    lines += ["## Costs", "", *costs_table(measured)]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def head(settings: dict[str, Any], results: Results) -> list[str]:
    """What was asked, and under which conditions."""
    texts = SETUP.format(**settings).strip().split("\n\n")
    paragraphs = [textwrap.fill(text, 120) for text in texts]
    missing = len(results.missing)
    lines = ["# Six optimizers on three tasks, searched alike", "", paragraphs[0], ""]
    lines += ["    OMP_NUM_THREADS=1 python benchmarks/optimizers.py --runs FILE --fsdd CLONE --jobs 2"]
    lines += ["    OMP_NUM_THREADS=1 python benchmarks/optimizers.py --costs FILE", ""]
    lines += [paragraphs[1], ""]
    diverged = sum(outcome.diverged for outcome in results.outcomes.values())
    said = f"{len(results.outcomes)} runs, {diverged} of them diverged."
    lines += [said + (f" **Not complete**: at least {missing} runs are missing." if missing else ""), ""]
    lines += table("optimizer", "learning rates", "weight decays", "not searched")
    for name, contender in CONTENDERS.items():
        trials = search(contender.tasks[0], name)
        axes = (sorted({getattr(trial, axis) for trial in trials}) for axis in ("lr", "weight_decay"))
        lines.append(row(name, *(", ".join(f"{value:g}" for value in values) for values in axes), contender.fixed))
    pairs = ", ".join(f"({lr + 1}, {decay + 1})" for lr, decay in POINTS)
    note = (
        f"The five trials have these of them, counted from the smallest: {pairs}. Weight decay acts on all parameters "
    )
    note += "under NovoGrad, elsewhere on all but biases and norms, as in conf/optim."
    return [*lines, "", textwrap.fill(note, 120)]


def section(results: Results, task: str) -> Iterator[str]:
    """All tables of a task."""
    about = TASKS[task]
    names = results.names(task)
    yield textwrap.fill(
        f"{about.about[0].upper()}{about.about[1:]}. {about.label}, median of {len(SEEDS)} seeds (range):", 120
    )
    yield ""
    yield from table("optimizer", "lr", "weight decay", "dev", "test", "dev, no warmup", "test, no warmup", "")
    for name in names:
        chosen = results.chosen(task, name)
        if chosen is None:
            yield row(name, *["-"] * 6, "missing")
            continue
        cells = [
            spread(values, about.show) if (values := results.values(task, name, split, warmup)) else "-"
            for warmup in (True, False)
            for split in ("dev", "test")
        ]
        yield row(name, f"{chosen.lr:g}", f"{chosen.weight_decay:g}", *cells, notes(results, task, name))
    yield ""
    yield textwrap.fill(
        "NovoGrad beside the others, dev / test; where the ranges overlap no difference is seen, which with three "
        "seeds does not say that there is none (by chance alone one of ten comparisons would differ):",
        120,
    )
    yield ""
    rivals = [name for name in RIVALS if name in names]
    yield from table(*(f"{name}" for name in rivals))
    yield row(*(" / ".join(results.judge(task, name, split) for split in ("dev", "test")) for name in rivals))
    yield ""
    yield "The search, dev (the best is bold), then other multiples of the best learning rate:"
    yield ""
    factors = sorted((*FACTORS, 1.0))
    yield from table("optimizer", *(f"trial {i + 1}" for i in range(len(POINTS))), *(f"x {f:g}" for f in factors))
    for name in names:
        yield row(name, *search_cells(results, task, name), *sweep_cells(results, task, name, factors))


def notes(results: Results, task: str, name: str) -> str:
    """What there is to know of an optimizer's row."""
    said = []
    if results.at_edge(task, name):
        said.append("LR at the edge of the space")
    if better := results.better_factor(task, name):
        said.append(f"x {better:g} is better on dev")
    own = [o for t, o in results.outcomes.items() if (t.task, t.optimizer) == (task, name)]
    if diverged := sum(outcome.diverged for outcome in own):
        said.append(f"{diverged} of {len(own)} runs diverged")
    if any((t.task, t.optimizer) == (task, name) for t in results.missing):
        said.append("not complete")
    return "; ".join(said)


def search_cells(results: Results, task: str, name: str) -> Iterator[str]:
    """The dev metric of each trial."""
    chosen = results.chosen(task, name)
    for trial in search(task, name):
        text = results.show(trial)
        yield f"**{text}**" if trial == chosen else text


def sweep_cells(results: Results, task: str, name: str, factors: Sequence[float]) -> Iterator[str]:
    """The dev metric at multiples of the best learning rate."""
    for factor in factors:
        trial = results.at_factor(task, name, factor)
        yield "" if trial is None else results.show(trial)


def costs_table(measured: dict[str, Any] | None) -> Iterator[str]:
    """Time and memory of a step."""
    if measured is None:
        yield "Not measured yet."
        return
    settings = measured["settings"]
    text = f"{settings['date']}, {settings['cpu']}, {settings['threads']} thread, nothing else running. All optimizers "
    text += (
        f"of a task take turns, {settings['rounds']} rounds in an order that is drawn anew each time. Each is as its "
    )
    text += "block makes it, with its default worker: torch's own, for all but NovoGrad and LARC."
    yield textwrap.fill(text, 120)
    yield ""
    yield from table("task", "optimizer", "a step, ms", "beside SGD's", "bytes of state per parameter")
    for r in measured["rows"]:
        per = r["state_bytes"] / r["parameters"]
        yield row(TASKS[r["task"]].title, r["optimizer"], f"{r['ms']:.2f}", f"{r['ratio']:.2f}", f"{per:.2f}")
