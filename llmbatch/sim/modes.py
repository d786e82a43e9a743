"""Either server, for who runs an event loop: the one that waits on it, or the one with threads beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmbatch.sim.options import SimOptions
from llmbatch.sim.server import SimServer
from llmbatch.sim.threads_server import ThreadsServer


@asynccontextmanager
async def open_server(options: SimOptions) -> AsyncIterator[SimServer | ThreadsServer]:
    """The server of ``options.mode``, from entry to exit, with `SimServer`'s errors.

    The drain of a server with threads does not hold up the loop.
    """
    if options.mode == "async":
        async with SimServer(options) as server:
            yield server
        return
    blocking = ThreadsServer(options).__enter__()
    try:
        yield blocking
    finally:
        await asyncio.to_thread(blocking.__exit__, None, None, None)
