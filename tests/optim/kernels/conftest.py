"""Where a library of the C++ kernels may lie, for the tests of its loader."""

import pytest

from lightning_novograd.optim.kernels.cpu import library


@pytest.fixture
def places(monkeypatch, tmp_path, kernel_library):
    """The paths of the packaged library and of the locally built one; there is neither yet."""
    monkeypatch.setenv("NOVOGRAD_KERNELS", "1")
    monkeypatch.setenv("NOVOGRAD_KERNEL_DIR", str(tmp_path / "built"))
    monkeypatch.setattr(library, "PACKAGED", tmp_path / "kernels.so")
    (tmp_path / "built").mkdir()
    library.load.cache_clear()
    yield library.PACKAGED, library.library_path()
    library.load.cache_clear()
