"""Which words or characters of a reference became which of a hypothesis."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

Kind = Literal["equal", "insert", "delete", "substitute"]


class Edit(NamedTuple):
    """One step of an alignment; what is missing on one side is an empty text."""

    kind: Kind
    reference: str
    hypothesis: str


class EditCounts(NamedTuple):
    """Errors of a hypothesis, by kind; their sum is the edit distance."""

    insertions: int
    deletions: int
    substitutions: int

    @property
    def errors(self) -> int:
        """All of them."""
        return sum(self)


def align(hypothesis: Sequence[str], reference: Sequence[str]) -> list[Edit]:
    """One of the alignments with the fewest errors.

    Args:
        hypothesis: words or characters that were heard.
        reference: words or characters that were said.

    Example:
        >>> [edit.kind for edit in align("one too four".split(), "two three four".split())]
        ['substitute', 'substitute', 'equal']
    """
    edits: list[Edit] = []
    for step in Levenshtein.opcodes(reference, hypothesis):
        said, heard = reference[step.src_start : step.src_end], hypothesis[step.dest_start : step.dest_end]
        if step.tag == "insert":
            edits += [Edit("insert", "", unit) for unit in heard]
        elif step.tag == "delete":
            edits += [Edit("delete", unit, "") for unit in said]
        else:
            kind: Kind = "equal" if step.tag == "equal" else "substitute"
            edits += [Edit(kind, *pair) for pair in zip(said, heard, strict=True)]
    return edits


def count_edits(hypothesis: Sequence[str], reference: Sequence[str]) -> EditCounts:
    """The errors of `align`, counted.

    Example:
        >>> count_edits("a b x d e".split(), "a b c d".split())
        EditCounts(insertions=1, deletions=0, substitutions=1)
    """
    kinds = [kind for kind, _, _ in Levenshtein.editops(reference, hypothesis).as_list()]
    return EditCounts(kinds.count("insert"), kinds.count("delete"), kinds.count("replace"))
