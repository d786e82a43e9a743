"""What every progress display has in common, and where it writes: to a stream that must never stop a run."""

from __future__ import annotations

import select
from typing import Literal, Protocol, TextIO

from llmbatch.events import Draining, RunStarted
from llmbatch.summary import Snapshot

Level = Literal["info", "warning"]


class Printer(Protocol):
    """A progress display. Whoever runs the run calls ``refresh`` about 5 times a second; the display decides
    what of it to show. No method raises because of the stream, none waits for it, ``stop`` may be called twice."""

    def start(self, run: RunStarted) -> None: ...

    def refresh(self, snapshot: Snapshot) -> None: ...

    def note(self, text: str, level: Level = "info") -> None: ...

    def draining(self, event: Draining) -> None: ...

    def stop(self) -> None: ...


def draining_words(event: Draining) -> str:
    """The drain, told once, when it begins."""
    return (
        f"{event.why}: no new requests; waiting up to {event.grace_s:g} s for {event.in_flight:,} in flight. "
        "Ctrl-C now abandons them (they may be billed)"
    )


class Sink:
    """Lines to a stream that may be full (Ctrl-S, a stuck reader), or gone (a closed terminal, a full disk).

    The run is paid for, the display is not: a line that can not be written now is dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def ready(self) -> bool:
        """True if a short write will not wait."""
        try:
            return bool(select.select([], [self._stream.fileno()], [], 0)[1])
        except (OSError, ValueError):  # no file descriptor, or one beyond select's 1024
            return not self._stream.closed

    def line(self, text: str) -> None:
        if not self.ready():
            return
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except OSError:
            return


class Silent:
    """No progress. Warnings still come, for ``--progress none``; with ``quiet`` not even these."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._sink = Sink(stream)
        self._quiet = quiet

    def start(self, run: RunStarted) -> None:
        """Nothing."""

    def refresh(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def note(self, text: str, level: Level = "info") -> None:
        if level == "warning" and not self._quiet:
            self._sink.line(f"llmbatch: {text}")

    def draining(self, event: Draining) -> None:
        self.note(draining_words(event), "warning")

    def stop(self) -> None:
        """Nothing."""
