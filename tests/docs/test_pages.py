"""README.md, docs/ and the recipes' pages: every block of code and every command works as it is printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Wrong, check
from pages import ROOT, all_pages, blocks, inline_commands, plain_commands

PAGES = {name: (ROOT / name).read_text("utf-8") for name in all_pages()}
TRIED = [name for name, text in PAGES.items() if blocks(text) or inline_commands(text)]
LEFT_OUT = [(name, block) for name, text in PAGES.items() for block in blocks(text) if block.not_run]


def read(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "NOVOGRAD"))},
        **{"OMP_NUM_THREADS": "1", "NOVOGRAD_KERNELS": "0", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"},
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    command = [sys.executable, str(Path(__file__).with_name("reader.py")), str(page)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


def test_there_are_pages():
    assert len(PAGES) > 15
    assert len(TRIED) > 10


@pytest.mark.parametrize("name", TRIED)
def test_it_works_as_printed(name, tmp_path):
    done = read(ROOT / name, tmp_path)
    assert done.returncode == 0, done.stdout.replace(f"{ROOT}/", "") + done.stderr[-2000:]


@pytest.mark.parametrize(("name", "block"), LEFT_OUT, ids=[f"{name}:{block.line}" for name, block in LEFT_OUT])
def test_blocks_that_are_not_run(name, block):
    pytest.skip(f"{name}:{block.line}: {block.not_run}")


@pytest.mark.parametrize("name", PAGES)
def test_code_is_fenced(name):
    assert plain_commands(PAGES[name]) == []


PLANTED = {
    "an exception": ("```python\nx = 1\n```\n\n```python\nprint(x / 0)\n```\n", "page.md:6: ", "ZeroDivisionError"),
    "a name of no block before": ("```python\noptimizer.step()\n```\n", "page.md:2: ", "NameError"),
    "a key": ("```yaml\noptim: {name: novograd, lr: 0.1, weight_decy: 0.1}\n```\n", "page.md:2: ", "weight_decay"),
    "a part": ("```yaml\nlarge_batch: {global_batch: 8}\n```\n", "page.md:2: ", "global_batch_size"),
    "an option": (
        "```sh\npython recipes/asr/evaluate.py DIR --reprot x.html\n```\n",
        "page.md:2: ",
        "arguments: --reprot",
    ),
    "a group": ("```sh\npython recipes/asr/train.py model=quartznet\n```\n", "page.md:2: ", "quartznet"),
    "a setting": ("```sh\npython recipes/asr/train.py optim.lr=-1\n```\n", "page.md:2: ", "optim.lr"),
    "a target": ("Say `make tests`.\n", "page.md:1: ", "make tests"),
    "an extra": ("```sh\npip install -e '.[dmo]'\n```\n", "page.md:2: ", "'dmo'"),
    "another program": ("```sh\nfrobnicate --fast\n```\n", "page.md:2: ", "not run: WHY"),
    "a file that fails": ("```python\n# a.py\n1 / 0\n```\n\n```sh\npython a.py\n```\n", "page.md:7: ", "exit code 1"),
    "a language": ("```ruby\nputs 1\n```\n", "page.md:2: ", "'ruby'"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_wrong_is_found(planted, tmp_path):
    text, place, why = PLANTED[planted]
    page = tmp_path / "page.md"
    page.write_text(text)
    done = read(page, tmp_path)
    assert done.returncode == 1, done.stderr
    assert place in done.stdout
    assert why in done.stdout


def test_a_comment_above_a_block_has_the_reason(tmp_path):
    page = (
        "<!-- not run: shows\nan abort -->\n\n```python\n1 / 0\n```\n\n<!-- needs: torch, no_such -->\n```sh\nx\n```\n"
    )
    assert [block.not_run for block in blocks(page)] == ["shows an abort", "needs no_such"]


def test_a_program_that_the_text_names_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    check(["python", "-m", "planted"], None)
    with pytest.raises(Wrong, match="exit code 1"):
        check(["python", "-m", "planted"], tmp_path)
