"""The blocks of code and the commands of a page of Markdown, with what its author says about them.

Directly above a block may stand one of these comments, which a reader of the page does not see:

    <!-- not run: REASON -->    the block cannot run here
    <!-- needs: A, B -->        it is run where these packages are installed

A block whose first line is `# PATH` (with a suffix) is a file that the reader saves under that name.
"""

import importlib.util
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
_REMARK = re.compile(r"<!-- (?P<kind>not run|needs): (?P<text>(?:(?!-->).)+) -->\s*\Z", re.DOTALL)
_NAME = re.compile(r"# (?P<name>[\w./-]+\.\w+)\n")
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python|make|torchrun|srun|sbatch|pip install|\.venv/bin/\S+) ")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        line: of its first line of code in the page, from 1.
        language: after the fence; `""` for output and sketches.
        code: without the indentation of the fence.
        not_run: why it cannot be run; None: it can.
    """

    line: int
    language: str
    code: str
    not_run: str | None = None

    @property
    def file(self) -> str | None:
        """The name under which the reader saves it."""
        found = _NAME.match(self.code)
        return found["name"] if found else None


def all_pages() -> list[str]:
    """By path in the repository: README.md, docs/ and the recipes' pages."""
    paths = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("recipes/*/README.md"))]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in its order."""
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        line = before.count("\n") + 2
        found.append(Block(line, fence["language"], textwrap.dedent(fence["code"]), _not_run(before)))
    return found


def _not_run(before: str) -> str | None:
    """What the comment above a block says, if that holds here."""
    remark = _REMARK.search(before)
    if remark is None:
        return None
    if remark["kind"] == "not run":
        return " ".join(remark["text"].split())
    missing = [name for name in re.split(r",\s*", remark["text"]) if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(missing)}" if missing else None


def inline_commands(text: str) -> list[tuple[int, str]]:
    """Commands within the text, as `make test`: line and words."""
    prose = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    spans = re.finditer(r"`([^`\n]+)`", prose)
    return [(prose[: span.start()].count("\n") + 1, span[1]) for span in spans if _COMMAND.match(f"{span[1]} ")]


def plain_commands(text: str) -> list[int]:
    """Lines with a command, or an optim block, in a block that is indented instead of fenced."""
    prose = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    return [
        number
        for number, line in enumerate(prose.splitlines(), start=1)
        if line.startswith("    ") and (_COMMAND.match(line.strip()) or line.strip() in ("optim:", "sched:"))
    ]
