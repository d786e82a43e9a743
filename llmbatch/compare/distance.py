"""A server further away than loopback: what is sent to it and comes from it is held for half a round trip each.

The kernel answers a connection on loopback at once; over a network that takes a round trip (SYN, SYN-ACK; RFC 9293,
3.5), so the first bytes of each connection are held for one more. TLS needs no such help: its messages pass here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK_BYTES = 65_536
# Timers of the same moment have no order.
_TICK_S = 1e-6


@asynccontextmanager
async def distant(port: int, rtt_s: float) -> AsyncIterator[int]:
    """The port at which what listens on ``port`` of loopback seems to be ``rtt_s`` away, there and back."""

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(asyncio.CancelledError):  # at the end of the loop; Python 3.11 would report it
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_held(reader, back, rtt_s / 2, rtt_s))
                ways.create_task(_held(there, writer, rtt_s / 2, 0.0))

    server = await asyncio.start_server(passed, "127.0.0.1", 0, backlog=4096)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def _held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float, first_s: float) -> None:
    """Pass everything on, each piece ``delay_s`` after it came, the first one ``first_s`` later still; in order."""
    loop = asyncio.get_running_loop()
    due_s, connected_s = 0.0, loop.time() + first_s
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            due_s = max(due_s + _TICK_S, max(loop.time(), connected_s) + delay_s)
            loop.call_at(due_s, writer.write, data)
    loop.call_at(max(due_s + _TICK_S, loop.time() + delay_s), writer.close)
