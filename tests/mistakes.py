"""How tests expect a mistake in a config: one error, with the key's path."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lightning_novograd.errors import ConfigError


@contextmanager
def refused(path: str, problem: str) -> Iterator[None]:
    """What is inside raises a ConfigError of this path, whose text has `problem` in it."""
    with pytest.raises(ConfigError) as caught:
        yield
    assert caught.value.path == path
    assert problem in caught.value.problem
