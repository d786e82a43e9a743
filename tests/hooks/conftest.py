"""Hooks are modules in the working directory, as a user writes them."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_NUMBERS = itertools.count(1)

Write = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module there and gives its name, which is another each time."""
    before, known = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)

    def write(source: str) -> str:
        name = f"retrieve{next(_NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    yield write
    sys.path[:] = before
    for name in set(sys.modules) - known:
        if name.startswith("retrieve"):
            del sys.modules[name]
