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
            self._put("progress", **_numbers(snapshot))

    def note(self, text: str, level: Level = "info") -> None:
        self._put("notice", level=level, text=text)

    def draining(self, event: Draining) -> None:
        self.note(draining_words(event), "warning")

    def stop(self) -> None:
        if self._last is not None:
            self._put("end", **_numbers(self._last))
            self._last = None

    def _put(self, event: str, **values: Any) -> None:
        # ASCII only: what a terminal would obey is an escape, but for DEL, which JSON lets through.
        self._sink.line(json.dumps({"event": event, **values}, separators=(",", ":")).replace("\x7f", "\\u007f"))


def _numbers(snapshot: Snapshot) -> dict[str, Any]:
    status = snapshot.status
    return {
        "elapsed_s": round(snapshot.elapsed_s, 3),
        "eta_s": _rounded(snapshot.eta_s, 1),
        "rows": snapshot.rows,
        "done": snapshot.done,
        "ok": snapshot.ok,
        "failed": snapshot.failed,
        "ok_before": snapshot.kept_ok,
        "failed_before": snapshot.kept_failed,
        "fraction": _rounded(snapshot.fraction, 4),
        "requests": snapshot.requests,
        "requests_per_s": round(snapshot.rate_per_s, 3),
        "limit_rpm": snapshot.rpm,
        "in_flight": status.in_flight,
        "allowed": status.allowed,
        "waiting_retry": status.waiting_retry,
        "gate_closed_s": round(status.gate_closed_s, 1),
        "binding": status.binding,
        "retries": snapshot.retries,
        "rate_limited": snapshot.rate_limited,
        "maybe_billed_twice": snapshot.maybe_billed_twice,
        "input_tokens": snapshot.tokens.input,
        "output_tokens": snapshot.tokens.output,
        "cached_input_tokens": snapshot.tokens.cached_input,
        "reasoning_tokens": snapshot.tokens.reasoning,
        "cost_usd": snapshot.cost_usd,
        "projected_cost_usd": snapshot.projected_cost_usd,
        "draining": snapshot.drain_why,
        "drain_left_s": _rounded(snapshot.drain_left_s, 1),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
