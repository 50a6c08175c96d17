"""Text that is on every machine: what Python says of itself."""

import ast
import hashlib
import importlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lightning_novograd.errors import DataError
from lightning_novograd.recipes.common.tasks.data import SPLITS

_DEV = _TEST = 0.06  # share of the documents
_OTHERS = {"test", "tests"}
_ABSENT = {  # from some distributions, or from later releases
    "tkinter",
    "turtle",
    "turtledemo",
    "idlelib",
    "lib2to3",
    "distutils",
    "ensurepip",
}
_TOPICS = "pydoc_data"  # the language reference, as help() has it


def split_of(name: str) -> str:
    """The set that a document belongs to: by its name alone, so that it is the same with every Python.

    Args:
        name: of a module's top package, or of a topic.

    Example:
        >>> split_of("asyncio")
        'train'
    """
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "dev" if place < _DEV else "test" if place < _DEV + _TEST else "train"


@cache
def read_texts() -> dict[str, str]:
    """The text of each set: topics of the language reference, and docstrings of the standard library.

    Modules of one package are in one set. The text depends on the release of Python: compare only runs of the same one.

    Raises:
        DataError: this Python has no sources.
    """
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, text in documents():
        texts[split_of(name)].append(text)
    if empty := [split for split in SPLITS if not texts[split]]:
        raise DataError(f"Python's standard library has no sources here to read texts from, for {', '.join(empty)}")
    return {split: "\n\n".join(parts) for split, parts in texts.items()}


def documents() -> Iterator[tuple[str, str]]:
    """Names and texts, in an order that is the same everywhere."""
    topics: dict[str, str] = importlib.import_module(f"{_TOPICS}.topics").topics
    for name in sorted(topics):
        yield f"topic {name}", topics[name].strip()
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(path.name for path in root.iterdir()):
        package = name.removesuffix(".py")
        if not package.isidentifier() or package in {*_OTHERS, *_ABSENT, _TOPICS}:
            continue
        modules = sorted((root / name).rglob("*.py")) if package == name else [root / name]
        for path in modules:
            if not _OTHERS & set(path.relative_to(root).parts) and (text := docstrings(path)):
                yield package, text


def docstrings(path: Path) -> str:
    """Those of a module, its classes and functions, in their order; the module is not imported."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template
        return ""
    return "\n\n".join(text for node in _documented(tree) if (text := ast.get_docstring(node)))


def _documented(node: ast.AST) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for statement in getattr(node, block, ()):
            yield from _documented(statement)
