"""The simulated provider as a process of its own: `llmbatch sim`."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable

from llmbatch.sim.options import SimOptions
from llmbatch.sim.server import SimServer
from llmbatch.sim.threads_server import ThreadsServer

STOPPING = (signal.SIGTERM, signal.SIGINT)


def serve(options: SimOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. ``announce`` gets the base URL once connections are accepted.

    OSError when the port is taken or the ledger file can not be opened.
    """
    # Thousands of open requests are alive at once, and looking through them again and again frees nothing.
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)
    if options.mode == "threads":
        _serve_threads(options, announce)
        return
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(_serve(options, announce))


async def _serve(options: SimOptions, announce: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, stop.set)
    async with SimServer(options) as server:
        announce(server.base_url)
        await stop.wait()


def _serve_threads(options: SimOptions, announce: Callable[[str], None]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # before there are threads, which inherit it (sigwait(3))
    with ThreadsServer(options) as server:
        announce(server.base_url)
        signal.sigwait(STOPPING)


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed, else None for the standard one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
