"""Docstrings here have an `Example:`; the parser of Google's style knows `Examples:` alone."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Reads the one as the other."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each class, function and module that was read."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
