"""Docstrings as the site needs them: formulas and roles as Sphinx writes them, and `Example:`."""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

INLINE = re.compile(r":math:`([^`]+)`")
DISPLAY = re.compile(r"^( *)\.\. math::\n\n?((?:\1 +\S.*(?:\n|\Z))+)", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth):`")


class Docstrings(griffe.Extension):
    """Formulas become MathML, which browsers show without a script."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each class, function and module that was read."""
        if obj.docstring is not None:
            text = DISPLAY.sub(_display, obj.docstring.value)
            text = INLINE.sub(lambda formula: f"<span>{convert(formula[1])}</span>", text)
            # of Google's style the parser knows `Examples:` alone
            obj.docstring.value = ROLE.sub("`", text).replace("\nExample:\n", "\nExamples:\n")


def _display(formula: re.Match[str]) -> str:
    indent, lines = formula[1], " ".join(textwrap.dedent(formula[2]).split())
    aligned = rf"\begin{{align*}}{lines}\end{{align*}}" if "&" in lines else lines
    return f'{indent}<div class="formula">{convert(aligned, display="block")}</div>\n'
