"""Does what a page says, from top to bottom, as a reader would: one Python session, one shell, one folder.

python reader.py PAGE, in an empty folder. Ends with 1 at the first thing that does not work, with the page's line.
"""

import logging
import re
import sys
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

import yaml
from commands import Wrong, check, split
from pages import Block, blocks, inline_commands

# Keys of an optim block that a page may print without the rest of it
_PARTS = {"large_batch", "param_groups", "ema", "larc", "layer_decay"}
_OURS = {"optim", "sched", "name", "model"}


class Reader:
    """One page's session.

    Args:
        page: the file, for names of lines.
        folder: where its files are saved and its commands run.
    """

    def __init__(self, page: Path, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.session = types.ModuleType("__main__")

    def read(self) -> list[str]:
        """Go through the page; what does not work, as `PAGE:LINE: WHY`, at most the first block of it."""
        text = self.page.read_text("utf-8")
        wrong = []
        for block in blocks(text):
            if block.not_run is None and (why := self.tried(block)):
                wrong.append(f"{self.page}:{block.line}: {why}")
                break
        for line, command in inline_commands(text):
            try:
                for words in split(command):
                    check(words, None)
            except Wrong as error:
                wrong.append(f"{self.page}:{line}: {error}")
        return wrong

    def tried(self, block: Block) -> str | None:
        """Why a block does not work; None: it does."""
        kinds = {"python": self.python, "yaml": self.yaml, "sh": self.shell}
        try:
            if block.language in kinds:
                kinds[block.language](block)
            elif block.language not in ("", "text"):
                return f"nothing here knows what to do with {block.language!r}"
        except Wrong as error:
            return str(error)
        except (Exception, SystemExit):
            return traceback.format_exc()
        return None

    def python(self, block: Block) -> None:
        # so that a traceback shows the page's own lines
        code = compile("\n" * (block.line - 1) + block.code, str(self.page), "exec")
        if block.file:
            self.save(block)
            return
        sys.modules["__main__"] = self.session
        exec(code, self.session.__dict__)

    def shell(self, block: Block) -> None:
        for words in split(block.code):
            check(words, self.folder)

    def yaml(self, block: Block) -> None:
        path = self.save(block)
        document = yaml.safe_load(block.code)
        if isinstance(document, dict) and "defaults" in document:
            self.compose(path)
        elif isinstance(document, dict) and (_OURS & {*document} or _PARTS & {*document}):
            _parse(path, document)

    def compose(self, path: Path) -> None:
        from hydra import compose, initialize_config_dir

        from lightning_novograd.config.files import find_blocks

        with initialize_config_dir(str(path.parent.resolve()), version_base="1.3"):
            find_blocks(compose(path.stem))

    def save(self, block: Block) -> Path:
        path = self.folder / (block.file or f"line{block.line}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code, "utf-8")
        return path


def _parse(path: Path, document: dict[str, Any]) -> None:
    """By the package's own parser, as `plot-schedule` and `describe` read files."""
    from omegaconf import OmegaConf

    from lightning_novograd.config.data import load_yaml
    from lightning_novograd.config.files import find_blocks

    loaded = load_yaml(path)
    if not _OURS & {*document}:
        loaded = OmegaConf.merge({"name": "novograd", "lr": 0.01}, loaded)
    find_blocks(loaded)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    sys.path.insert(0, str(Path.cwd()))
    problems = Reader(Path(sys.argv[1]), Path.cwd()).read()
    print("\n".join(re.sub(r"\n(?=.)", "\n    ", problem) for problem in problems))
    sys.exit(bool(problems))
