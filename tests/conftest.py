"""Fixtures shared by all tests: reference values, and the data that is not part of the repository."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

# There may be C++ kernels. No test finds them unless it asks for them (tests/optim/conftest.py).
os.environ["NOVOGRAD_KERNELS"] = "0"


@pytest.fixture(scope="session")
def golden():
    """`golden("novograd_float64.json")`: reference values made by running the peers (tests/golden/README.md)."""

    def load(name: str) -> Any:
        return json.loads((GOLDEN / name).read_text())

    return load


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recordings that may not be copied into the repository; `NOVOGRAD_TEST_DATA` or `../shared/data`."""
    path = Path(os.environ.get("NOVOGRAD_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "fsdd" / "recordings").is_dir():
        pytest.skip("needs real recordings: set NOVOGRAD_TEST_DATA to a folder with fsdd/recordings and librivox")
    return path
