"""The simulated provider as a server on loopback: `async with SimServer(options) as server: server.base_url`."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
from types import TracebackType

from llmbatch.sim.connection import Connection
from llmbatch.sim.ledger import Ledger
from llmbatch.sim.options import SimOptions
from llmbatch.sim.service import Service

LOOPBACK = "127.0.0.1"
# Ten thousand clients that connect at once wait here until they are accepted; the kernel caps it (net.core.somaxconn).
BACKLOG = 4096
# How often idle connections are looked for, and how often a drain looks whether it is over.
SWEEP_S = 1.0
DRAIN_TICK_S = 0.01


class SimServer:
    """A provider that listens from entry to exit, on the running event loop; over TLS if ``tls`` is given.

    ``OSError`` on entry when the port is taken or the ledger file can not be opened. On exit it accepts no more, waits
    ``drain_s`` for the answers in flight, and drops the rest unbilled.
    """

    def __init__(self, options: SimOptions, tls: ssl.SSLContext | None = None) -> None:
        self._options = options
        self._tls = tls
        self._ledger: Ledger | None = None
        self._server: asyncio.Server | None = None
        self._living: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._port = options.port

    @property
    def ledger(self) -> Ledger:
        """The counters; they stay readable after the server has stopped."""
        assert self._ledger, "the server has not been entered"
        return self._ledger

    @property
    def base_url(self) -> str:
        """Where clients send to, known from entry on."""
        assert self._server, "the server has not been entered"
        return f"{'http' if self._tls is None else 'https'}://{LOOPBACK}:{self._port}/v1"

    async def __aenter__(self) -> SimServer:
        raise_file_limit()
        self._ledger = ledger = Ledger(self._options.ledger)
        service = Service(self._options, ledger)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(service, ledger, self._living),
                LOOPBACK,
                self._options.port,
                backlog=BACKLOG,
                ssl=self._tls,
            )
        except OSError:
            ledger.close()
            raise
        self._port = int(self._server.sockets[0].getsockname()[1])
        self._sweep()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server, "the server has not been entered"
        assert self._sweeper, "sweeping starts on entry"
        self._sweeper.cancel()
        self._server.close()
        try:
            await self._drain()
        finally:
            for connection in list(self._living):
                connection.abort()
            self.ledger.close()
        await asyncio.sleep(0)  # one turn for the connections to close

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._options.drain_s
        for connection in list(self._living):
            connection.drain()
        while self._living and loop.time() < deadline_s:  # noqa: ASYNC110 - to 10 ms is exact enough
            await asyncio.sleep(DRAIN_TICK_S)

    def _sweep(self) -> None:
        """Close what has been idle too long. One timer for all: a timer for each would cost more than its request."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for connection in list(self._living):
            if connection.idle_s(now_s) > self._options.idle_s:
                connection.close()
        self._sweeper = loop.call_later(min(SWEEP_S, self._options.idle_s / 2), self._sweep)


def raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS calls its hard limit infinite and then refuses it; the soft one stays as it is there.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
