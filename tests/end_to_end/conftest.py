"""Fixtures: the command in a directory of its own, and simulated providers that end with the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .processes import Llmbatch, SharedSim, Sim, StartSim


@pytest.fixture
def llmbatch(tmp_path: Path) -> Iterator[Llmbatch]:
    (tmp_path / "home").mkdir()
    with ExitStack() as stack:
        yield Llmbatch(tmp_path, stack)


@pytest.fixture
def sim(plain_sim: Sim) -> Iterator[StartSim]:
    """Gives a simulated provider with the flags given, and books that begin empty."""
    with ExitStack() as stack:

        def start(*flags: str) -> Sim | SharedSim:
            if not flags:
                return SharedSim(plain_sim)
            server = Sim(*flags)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture(scope="session")
def plain_sim() -> Iterator[Sim]:
    """A provider without limits or faults, for tests that do not look at its ledger but for what they add to it."""
    server = Sim()
    yield server
    server.stop()
