"""What several test files share: virtual time, and one repair of a test library."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import selectors
from collections.abc import Callable, Coroutine
from typing import Any
from unittest.mock import Mock

import aioresponses.core
import pytest
from aiohttp import ClientResponse
from hypothesis import HealthCheck, settings

# aiohttp reads the certificates of the system twice at each start, and no test asks a server that has one of those.
os.environ.setdefault("SSL_CERT_FILE", os.devnull)

# How fast a machine makes examples up says nothing of what is tested.
settings.register_profile("llmbatch", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("llmbatch")

# aioresponses 0.7.9 does not know the argument that aiohttp 3.14 added.
if "stream_writer" in inspect.signature(ClientResponse.__init__).parameters:
    aioresponses.core.ClientResponse = functools.partial(  # type: ignore[misc,assignment]
        ClientResponse, stream_writer=Mock()
    )


class _TimeMachine(selectors.SelectSelector):
    """Does not wait: it moves the clock of its loop."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("everybody waits and no timer is set")
        if not events and timeout:
            self.now_s += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing else is left to do, and then at once. For code without sockets."""

    def __init__(self) -> None:
        self._machine = _TimeMachine()
        super().__init__(self._machine)

    def time(self) -> float:
        return self._machine.now_s


def run_virtually(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@pytest.fixture
def virtually() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine to its end on a loop with virtual time."""
    return run_virtually
