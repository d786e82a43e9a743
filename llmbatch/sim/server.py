"""The simulated provider as a server on loopback: `async with SimServer(options) as server: server.base_url`."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from types import TracebackType

from llmbatch.sim.changes import DOWN, Change
from llmbatch.sim.connection import Connection
from llmbatch.sim.ledger import Ledger
from llmbatch.sim.metrics import Metrics
from llmbatch.sim.options import SimOptions
from llmbatch.sim.service import Service
from llmbatch.sim.slots import Slots

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
        self._service: Service
        self._metrics: Metrics
        self._changes: list[asyncio.TimerHandle] = []
        self._down: asyncio.Task[None] | None = None
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
        self._service = Service(self._options, ledger, self._set_changes)
        self._metrics = Metrics(ledger, time.monotonic())
        if self._options.slots is not None:
            self._service.slots = Slots(self._options.slots, self._options.slot_slowdown)
        try:
            await self._listen(_bound(self._port))
        except OSError:
            ledger.close()
            raise
        self._sweep()
        return self

    async def _listen(self, listener: socket.socket) -> None:
        loop, service, ledger = asyncio.get_running_loop(), self._service, self.ledger
        try:
            self._server = await loop.create_server(
                lambda: Connection(service, ledger, self._metrics, self._living),
                sock=listener,
                backlog=BACKLOG,
                ssl=self._tls,
            )
        except BaseException:
            listener.close()
            raise
        self._port = int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server, "the server has not been entered"
        assert self._sweeper, "sweeping starts on entry"
        for timer in (self._sweeper, *self._changes):
            timer.cancel()
        if self._down is not None:
            self._down.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._down
        self._server.close()
        try:
            await self._drain()
        finally:
            self._hang_up()
            self.ledger.close()
        await asyncio.sleep(0)  # one turn for the connections to close

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._options.drain_s
        for connection in list(self._living):
            connection.drain()
        while self._living and loop.time() < deadline_s:  # noqa: ASYNC110 - to 10 ms is exact enough
            await asyncio.sleep(DRAIN_TICK_S)

    def _hang_up(self) -> None:
        if self._service.slots is not None:
            self._service.slots.forget_queue()
        for connection in list(self._living):
            connection.abort()

    def _set_changes(self) -> None:
        """The first request is there: from now on count the times of what changes."""
        loop = asyncio.get_running_loop()
        self._changes = [loop.call_later(change.at_s, self._change, change) for change in self._options.changes]

    def _change(self, change: Change) -> None:
        if change.field == DOWN:
            self._down = asyncio.get_running_loop().create_task(self._be_down(change.value))
            return
        self._service.change(change)
        if change.field != "slots":
            return
        if self._service.slots is None:
            self._service.slots = Slots(change.value, self._options.slot_slowdown)
        else:
            self._service.slots.resize(change.value)

    async def _be_down(self, seconds: float) -> None:
        """As if the process were gone: connections are closed, and new ones refused. The port is kept meanwhile."""
        assert self._server, "only a server that listens can go down"
        self._server.close()
        await asyncio.sleep(0)  # one turn for the listening socket, and for who was just let in
        self._hang_up()
        with _bound(self._port) as kept:
            await asyncio.sleep(seconds)
            listener = kept.dup()
        await self._listen(listener)

    def _sweep(self) -> None:
        """Close what has been idle too long. One timer for all: a timer for each would cost more than its request."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for connection in list(self._living):
            if connection.idle_s(now_s) > self._options.idle_s:
                connection.close()
        self._sweeper = loop.call_later(min(SWEEP_S, self._options.idle_s / 2), self._sweep)


def _bound(port: int) -> socket.socket:
    """A socket that has the port and does not listen. OSError when it is taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((LOOPBACK, port))
    except OSError:
        bound.close()
        raise
    return bound


def raise_file_limit() -> None:
    """Let this process open as many files as it may: every connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS calls its hard limit infinite and then refuses it; the soft one stays as it is there.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
