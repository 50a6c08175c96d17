"""The claims of NovoGrad's paper, each with a verdict by rules that are written down beside it."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimizers_results import RIVALS, SUBJECT, Results
from optimizers_runs import TASKS
from tables import BETTER, NO_DIFFERENCE, OPEN, WORSE, row, table

HELD, PARTLY, NOT, UNKNOWN = "held", "partly", "not", "not complete"
TUNED = ("SGD", "Adam", "AdamW")  # whom the paper compares with
HALF = 0.52  # of Adam's state: the second moments are a number for each layer


RULES = """
Rules. Error: by test, over three tasks and these three optimizers; held if NovoGrad is worse in none, not if it is
worse in half or more. Learning rate: the worst dev result between 1/4 and 4 times the best learning rate, divided by
the best of them; held if NovoGrad's is the smallest on all tasks, not if it is on none. Initialization: every seed has
another one; the range of test over three seeds, divided by the median; the same rule. (On the paper's own problem of
two weights NovoGrad ends well from as many starting points as SGD and AdamW, and with many more pairs of learning rate
and weight decay: recipes/deep_linear.) Warmup: held if NovoGrad without it is worse than with it on no task, by test,
not if it is on all. Large batches have a page of their own, large_batch.
"""


def claims(results: Results, costs: Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
    """A row for each claim, and below them what the rules are."""
    yield from table("the paper's claim", "here", "why")
    for claim, (verdict, why) in {
        "performs equally well or better than tuned SGD with momentum, Adam and AdamW": error(results),
        "robust to the choice of the learning rate": learning_rate(results),
        "robust to the initialization": initialization(results),
        "works without warmup": warmup(results),
        "half of Adam's memory": memory(costs),
    }.items():
        yield row(claim, f"**{verdict}**", why)
    yield ""
    yield textwrap.fill(" ".join(RULES.split()), 120)


def error(results: Results) -> tuple[str, str]:
    """Whether it is as good as the others."""
    said = Counter(results.judge(task, rival, "test") for task in TASKS for rival in TUNED)
    total = len(TASKS) * len(TUNED)
    untuned = total - sum(said[name] for name in (BETTER, WORSE, NO_DIFFERENCE, OPEN))
    text = f"of {total} pairs better in {said[BETTER]}, worse in {said[WORSE]}, "
    text += f"no difference seen in {said[NO_DIFFERENCE]}"
    text += f", {untuned} undecided (the worse one's LR at the edge)" if untuned else ""
    if said[OPEN]:
        return UNKNOWN, f"{text}, {said[OPEN]} not run"
    return HELD if not said[WORSE] else NOT if said[WORSE] >= total / 2 else PARTLY, text


def learning_rate(results: Results) -> tuple[str, str]:
    """Whether its results change least with the learning rate."""

    def span(task: str, name: str) -> float | None:
        found = results.sweep(task, name)
        return max(found.values()) / max(min(found.values()), 1e-3) if found else None

    return least(results, span, "worst / best")


def initialization(results: Results) -> tuple[str, str]:
    """Whether its results change least from seed to seed."""

    def span(task: str, name: str) -> float | None:
        values = sorted(results.values(task, name, "test"))
        return (values[-1] - values[0]) / values[1] if len(values) == 3 else None

    return least(results, span, "range / median")


def least(results: Results, span: Any, label: str) -> tuple[str, str]:
    """Whether a number of NovoGrad is the smallest of all."""
    wins, cells = 0, []
    for task, about in TASKS.items():
        own = span(task, SUBJECT)
        others = {name: span(task, name) for name in RIVALS if name in results.names(task)}
        if own is None or None in others.values():
            cells.append(f"{about.title}: not complete")
            continue
        wins += own <= min(others.values())
        listed = ", ".join(f"{name} {value:.2f}" for name, value in others.items())
        cells.append(f"{about.title}: {own:.2f} ({listed})")
    why = f"{label}: {'; '.join(cells)}"
    if "not complete" in why:
        return UNKNOWN, why
    return HELD if wins == len(TASKS) else PARTLY if wins else NOT, why


def warmup(results: Results) -> tuple[str, str]:
    """Whether nothing is lost without it."""
    cells, said = [], []
    for task, about in TASKS.items():
        verdicts = {name: results.judge_warmup(task, name, "test") for name in results.names(task)}
        said.append(verdicts[SUBJECT])
        others = [name for name, verdict in verdicts.items() if verdict == WORSE and name != SUBJECT]
        listed = f" ({', '.join(others)}: worse)" if others else ""
        cells.append(f"{about.title}: {verdicts[SUBJECT]}{listed}")
    why = f"without it beside with it: {'; '.join(cells)}"
    if OPEN in said:
        return UNKNOWN, why
    return HELD if WORSE not in said else PARTLY if set(said) != {WORSE} else NOT, why


def memory(costs: Sequence[Mapping[str, Any]] | None) -> tuple[str, str]:
    """Whether its state is half of Adam's."""
    if not costs:
        return UNKNOWN, "not measured"
    state = {(r["task"], r["optimizer"]): r["state_bytes"] for r in costs}
    shares = {task: state[task, SUBJECT] / state[task, "Adam"] for task in TASKS}
    listed = ", ".join(f"{TASKS[task].title} {share:.3f}" for task, share in shares.items())
    return HELD if max(shares.values()) <= HALF else NOT, f"its state beside Adam's: {listed}"
