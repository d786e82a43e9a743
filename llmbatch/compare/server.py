"""The simulated provider in a process of its own, so that its CPU time and memory are nobody else's.

`python -m llmbatch.compare.server` serves until its standard input ends, which it does with whoever started it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from llmbatch.compare.distance import distant
from llmbatch.errors import LlmbatchError
from llmbatch.machine import fast_loop
from llmbatch.rules.comparison import Server

_STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs. ``url`` is its base URL; ``tls`` trusts its certificate, if it has one."""

    url: str
    near_url: str
    tls: ssl.SSLContext | None

    def peak_in_flight(self) -> int:
        """The most requests that it has seen under way at once."""
        ledger = f"{self.near_url.removesuffix('/v1')}/ledger"
        with urllib.request.urlopen(ledger, timeout=10, context=self.tls) as response:  # noqa: S310  # ours
            return int(orjson.loads(response.read())["peak_in_flight"])


@contextmanager
def served(server: Server, sim: Mapping[str, str], certificate: tuple[Path, Path] | None) -> Iterator[Running]:
    """The simulated provider as ``server`` says; ``sim`` are further options. ``certificate`` is it, and its key."""
    settings = {**sim, "latency": str(server.latency_s), "drain": "0"}
    pair = certificate if server.tls else None
    told = {"sim": settings, "rtt_s": server.rtt_s, "tls": None if pair is None else [str(path) for path in pair]}
    process = start("llmbatch.compare.server")
    assert process.stdin is not None, "a pipe"
    assert process.stdout is not None, "a pipe"
    try:
        process.stdin.write(orjson.dumps(told) + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise LlmbatchError("the simulated provider of the comparison did not start")
        trusts = None if pair is None else ssl.create_default_context(cafile=str(pair[0]))
        urls = orjson.loads(line)
        yield Running(urls["url"], urls["near_url"], trusts)
    finally:
        stop(process)


def start(module: str) -> subprocess.Popen[bytes]:
    """A fresh Python that runs ``module``, with pipes, and with the modules that this one finds."""
    found = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(  # noqa: S603  # our own words
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": found},
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Its standard input ends; it has a moment to end itself."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None, "made with pipes"
        with suppress(BrokenPipeError):  # it is gone
            pipe.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# In its process


def main() -> None:
    """Serve as standard input says, until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = orjson.loads(sys.stdin.buffer.readline())
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_serve(told["sim"], told["rtt_s"], told["tls"]))


async def _serve(sim: Mapping[str, str], rtt_s: float, tls: list[str] | None) -> None:
    from llmbatch.sim.options import sim_options_from
    from llmbatch.sim.server import SimServer

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(SimServer(sim_options_from(sim), _context(tls)))
        url = near_url = server.base_url
        if rtt_s:
            here = urlsplit(near_url)
            assert here.port is not None, "a server has a port"
            port = await stack.enter_async_context(distant(here.port, rtt_s))
            url = near_url.replace(f":{here.port}/", f":{port}/")
        sys.stdout.buffer.write(orjson.dumps({"url": url, "near_url": near_url}) + b"\n")
        sys.stdout.buffer.flush()
        await _end_of_input()


def _context(tls: list[str] | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls)
    return context


async def _end_of_input() -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    main()
