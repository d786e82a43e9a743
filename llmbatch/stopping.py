"""How a run ends early: who asked, with which exit code, and whether what is in flight is waited for.

The first request drains: no new row is sent, answers that are being billed are waited for. The second abandons
them; the rows cut off stay pending. The library takes a Stop; only the command line installs signal handlers.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True, slots=True)
class StopReason:
    """``why`` is a sentence for the user; ``exit_code`` as in the README's table."""

    why: str
    exit_code: int


class Stop:
    """A wish to end the run. Owned by the run's loop; ``request`` and ``abandon`` may be called before it starts.

    ``exit_code`` is the run's own, once it is over: set by who leaves with it.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self.exit_code: int | None = None
        self.abandoned = False
        self._on_request: list[Callable[[], None]] = []
        self._on_abandon: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        return self.reason is not None

    def request(self, reason: StopReason) -> None:
        """Drain. Only the first reason counts."""
        if self.reason is None:
            self.reason = reason
            for act in self._on_request:
                act()

    def abandon(self) -> None:
        """Do not wait for what is in flight."""
        if not self.abandoned:
            self.abandoned = True
            for act in self._on_abandon:
                act()

    def when_requested(self, act: Callable[[], None]) -> None:
        """Call ``act`` at the first request, now if it has been made."""
        self._on_request.append(act)
        if self.requested:
            act()

    def when_abandoned(self, act: Callable[[], None]) -> None:
        """Call ``act`` when what is in flight is given up, now if it has been."""
        self._on_abandon.append(act)
        if self.abandoned:
            act()


_EXIT_CODE = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@contextmanager
def signals_stop(stop: Stop, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP drain the run, a second one abandons it. Main thread only; the process's last act.

    Afterwards one leaves at once, with ``stop.exit_code``: a run that is complete was not interrupted.
    A signal that was ignored when the process began (``nohup``) stays ignored.
    """

    def caught(number: signal.Signals) -> None:
        if stop.requested:
            stop.abandon()
        else:
            stop.request(StopReason(f"stopped by {number.name}", _EXIT_CODE[number]))

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(_EXIT_CODE[signal.Signals(number)] if stop.exit_code is None else stop.exit_code)

    installed = [number for number in _EXIT_CODE if signal.getsignal(number) is not signal.SIG_IGN]
    for number in installed:
        loop.add_signal_handler(number, caught, number)
    try:
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
            signal.signal(number, leave)


@contextmanager
def signal_shows(show: Callable[[], None], loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """SIGUSR1, which else ends a process, calls ``show``. Main thread only. Ignored from the start it stays ignored."""
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN:
        yield
        return
    loop.add_signal_handler(signal.SIGUSR1, show)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
