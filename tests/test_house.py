"""The house keeps its measures: small files, small rooms, few floors."""

from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from test_imports import MODULES, imports, ours, room_of

FOLDERS = sorted({path.parent for name in ("lightning_novograd", "recipes") for path in (ROOT / name).rglob("*.py")})
FILES = sorted(
    path
    for name in ("lightning_novograd", "recipes", "hydra_plugins", "benchmarks", "tests")
    for pattern in ("*.py", "*.cpp", "*.h")
    for path in (ROOT / name).rglob(pattern)
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_measure():
    assert len(FOLDERS) > 20
    assert len(FILES) > 150


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_no_file_has_more_than_400_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_no_folder_holds_more_than_twelve_modules(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12


def test_there_are_at_most_seven_floors_of_rooms():
    below: dict[str, set[str]] = {}
    for module in MODULES:
        room = room_of(module)
        below.setdefault(room, set()).update({room_of(name) for name in ours(imports(module))} - {room})

    @cache
    def floor(room: str) -> int:
        return 1 + max((floor(other) for other in below[room]), default=0)

    assert max(map(floor, below)) <= 7
