"""What pages of results have in common: rows of Markdown, medians with their ranges, what three seeds can tell."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median

NO_DIFFERENCE, BETTER, WORSE, OPEN = "no difference seen", "better", "worse", "open"


def table(*names: object) -> list[str]:
    """The head of a table."""
    return [row(*names), row(*["---"] * len(names))]


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def spread(values: Iterable[float], show: Callable[[float], str] = percent) -> str:
    """Median and range."""
    found = list(values)
    middle = show(median(found))
    return middle if len(found) == 1 else f"{middle} ({show(min(found))} to {show(max(found))})"


def compare(first: Sequence[float], second: Sequence[float], seeds: int) -> str:
    """What the errors of one are beside another's; where their ranges overlap, no difference is seen.

    Args:
        first: of the one that is judged; less is better.
        second: of the other.
        seeds: that both must have.
    """
    if min(len(first), len(second)) < seeds:
        return OPEN
    if max(first) < min(second):
        return BETTER
    return WORSE if min(first) > max(second) else NO_DIFFERENCE
