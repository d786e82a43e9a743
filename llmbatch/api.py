"""The Python interface: the same nouns as the command line, and what the command line itself calls."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llmbatch.errors import OptionsError
from llmbatch.events import Listener
from llmbatch.machine import fast_loop
from llmbatch.options import RunOptions
from llmbatch.records import Result
from llmbatch.rows import stream_rows
from llmbatch.runner import Run
from llmbatch.stopping import Stop, StopReason
from llmbatch.summary import Summary

_INTERRUPTED = StopReason("stopped by Ctrl-C", 130)

Rows = Iterable[Mapping[str, Any] | str] | AsyncIterable[Mapping[str, Any] | str]


def run(input: str | RunOptions, *, listen: Listener | None = None, **settings: Any) -> Summary:
    """Run a file of prompts and wait for it: ``run("in.jsonl", model="openai/gpt-4.1-mini", concurrency=10)``.

    ``settings`` are the fields of RunOptions. The results are in the file ``summary.output``; the same call again
    continues. Works inside a running loop too (a notebook), where it blocks the cell; ``await arun(...)`` does not.
    Ctrl-C waits for what is in flight, a second one does not; both end in KeyboardInterrupt.
    Raises an LlmbatchError if nothing could be sent at all; a row that fails is a line in the results.
    """
    options = _options(input, settings)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _in_own_loop(options, listen)
    return _in_thread(options, listen)


async def arun(
    input: str | RunOptions,
    *,
    listen: Listener | None = None,
    stop: Stop | None = None,
    **settings: Any,
) -> Summary:
    """The same as ``run``, to be awaited. ``stop.request(...)`` drains it."""
    return await Run(_options(input, settings), listen=listen, stop=stop).execute()


def stream(
    rows: Rows, *, listen: Listener | None = None, stop: Stop | None = None, **settings: Any
) -> AsyncIterator[Result]:
    """Send rows as they come and yield each Result as it comes, in completion order; no files.

    A row is a string (the prompt) or a mapping, as a line of an input file. ``async for`` over it with a slow body
    slows the sending down. Nothing is kept: what was paid for is yours once you have it. Each row is asked for when
    there is a place for it; once one has a tenant or a long prompt, up to 64 MiB are read ahead (README, "Tenants").
    However many rows fail, it goes on; with ``max_failures`` it raises ProviderStopped.
    """
    for name in (
        "output",
        "restart",
        "on_change",
        "order",
        "limit",
        "include_input",
        "input_format",
        "format",
        "before",
        "after",
    ):
        if name in settings:
            raise OptionsError(f"stream() writes no file and takes no {name!r}")
    return stream_rows(rows, RunOptions(input="-", **{"max_failures": "100%", **settings}), listen, stop or Stop())


def _options(given: str | RunOptions, settings: Mapping[str, Any]) -> RunOptions:
    if isinstance(given, RunOptions):
        if settings:
            raise OptionsError("give either RunOptions or settings by name, not both")
        return given
    return RunOptions(input=str(given), **settings)


def _in_own_loop(options: RunOptions, listen: Listener | None) -> Summary:
    """Ctrl-C drains: what is in flight is paid for. Then KeyboardInterrupt is raised as everywhere."""
    stop = Stop()
    with asyncio.Runner(loop_factory=fast_loop()) as runner, _interrupt_stops(stop, runner.get_loop()):
        summary = runner.run(arun(options, listen=listen, stop=stop))
    if stop.reason is _INTERRUPTED:
        raise KeyboardInterrupt
    return summary


@contextmanager
def _interrupt_stops(stop: Stop, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Only where it is Python's own handler that would be replaced, and only where signals arrive."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    loop.add_signal_handler(signal.SIGINT, _interrupt, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _interrupt(stop: Stop) -> None:
    if stop.requested:
        stop.abandon()
    else:
        stop.request(_INTERRUPTED)


def _in_thread(options: RunOptions, listen: Listener | None) -> Summary:
    """A loop of its own, in a thread of its own: the loop of this thread is busy with the caller."""
    outcome: list[Summary | BaseException] = []
    stop = Stop()
    loops: list[asyncio.AbstractEventLoop] = []

    async def work() -> Summary:
        loops.append(asyncio.get_running_loop())
        return await arun(options, listen=listen, stop=stop)

    def in_thread() -> None:
        try:
            with asyncio.Runner(loop_factory=fast_loop()) as runner:
                outcome.append(runner.run(work()))
        except BaseException as error:
            outcome.append(error)
        finally:
            ended.set()

    ended = threading.Event()
    threading.Thread(target=in_thread, name="llmbatch-run").start()
    _wait(ended, stop, loops)
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    if stop.reason is _INTERRUPTED:
        raise KeyboardInterrupt
    return outcome[0]


def _wait(ended: threading.Event, stop: Stop, loops: list[asyncio.AbstractEventLoop]) -> None:
    """For the end of the run; each Ctrl-C meanwhile is passed on to it. Not by join: an interrupted one lies."""
    while not ended.is_set():
        try:
            ended.wait()
        except KeyboardInterrupt:
            for loop in loops:
                loop.call_soon_threadsafe(_interrupt, stop)
