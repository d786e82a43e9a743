"""Progress for programs: one JSON object per line."""

from __future__ import annotations

import json
from typing import Any, TextIO

from llmbatch.events import Draining, RunStarted
from llmbatch.summary import Snapshot
from llmbatch.views.printer import Level, Sink, draining_words

# Often enough for a dashboard; the ticker itself is faster.
INTERVAL_S = 1.0


class JsonLines:
    """``event`` is one of start, progress, notice, end; names carry their units, ``null`` means unknown."""

    def __init__(self, stream: TextIO, interval_s: float = INTERVAL_S) -> None:
        self._sink = Sink(stream)
        self._interval_s = interval_s
        self._due_s = 0.0
        self._last: Snapshot | None = None

    def start(self, run: RunStarted) -> None:
        self._put(
            "start",
            model=run.model,
            endpoint=run.endpoint,
            output=run.output,
            rows=run.rows,
            input_bytes=run.input_bytes,
            ok_before=run.done_before,
            failed_before=run.failed_before,
        )

    def refresh(self, snapshot: Snapshot) -> None:
        self._last = snapshot
        if snapshot.elapsed_s >= self._due_s:
            self._due_s = snapshot.elapsed_s + self._interval_s
            self._put("progress", **snapshot.to_json())

    def note(self, text: str, level: Level = "info") -> None:
        self._put("notice", level=level, text=text)

    def draining(self, event: Draining) -> None:
        self.note(draining_words(event), "warning")

    def stop(self) -> None:
        if self._last is not None:
            self._put("end", **self._last.to_json())
            self._last = None

    def _put(self, event: str, **values: Any) -> None:
        # ASCII only: what a terminal would obey is an escape, but for DEL, which JSON lets through.
        self._sink.line(json.dumps({"event": event, **values}, separators=(",", ":")).replace("\x7f", "\\u007f"))
