import asyncio
from collections.abc import Iterator

import pytest
import sim_wire


@pytest.fixture(scope="session", autouse=True)
def _own_event_loop() -> Iterator[None]:
    """pytest-asyncio asks for the current loop before a test; where there is none, Python makes one nobody closes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


@pytest.fixture(params=["async", "threads"])
def each_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs with a server of each mode."""
    mode: str = request.param
    monkeypatch.setitem(sim_wire.COMMON, "mode", mode)
    return mode
