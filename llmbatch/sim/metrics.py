"""What a server tells of itself under /metrics, in Prometheus' text format.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from llmbatch.sim.http11 import HttpRequest
from llmbatch.sim.ledger import Ledger
from llmbatch.sim.replies import Reply, json_reply

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Prometheus' own, without those too short for a model, and with those that only a model or a queue needs.
BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_DURATION = "From the arrival of an admitted request to the end of its answer, its time in the queue included."

_Sample = tuple[str, float]


class Metrics:
    """Counters of one server besides its `Ledger`, and owned as that is: by an event loop, or under a lock.

    ``workers`` is the size of a pool of threads, 0 without one. ``queued`` requests wait for one of them, and
    ``busy_workers`` of them have a request.
    """

    def __init__(self, ledger: Ledger, began_s: float, workers: int = 0) -> None:
        self.queued = 0
        self.busy_workers = 0
        self._ledger = ledger
        self._began_s = began_s
        self._workers = workers
        self._answers: Counter[int | None] = Counter()
        self._in_bucket = [0] * (len(BUCKETS_S) + 1)
        self._took_s = 0.0

    def answered(self, status: int | None, took_s: float | None = None) -> None:
        """Count an answer, or None that none was sent; ``took_s`` for an admitted request to a model."""
        self._answers[status] += 1
        if took_s is not None:
            self._in_bucket[bisect_left(BUCKETS_S, took_s)] += 1
            self._took_s += took_s

    def reply(self, request: HttpRequest, now_s: float, time_s: float) -> Reply | None:
        """The page, if that is what is asked for. ``now_s`` is of the clock of ``began_s``."""
        if request.path != "/metrics" or request.method != "GET":
            return None
        return json_reply(200, self.text(now_s).encode(), [], time_s, CONTENT_TYPE)

    def text(self, now_s: float) -> str:
        """All metrics at ``now_s``."""
        return "".join(self._families(now_s))

    def _families(self, now_s: float) -> Iterator[str]:
        ledger = self._ledger
        answers = sorted(self._answers.items(), key=lambda item: item[0] or 0)
        by_status = [(f'{{status="{status or "none"}"}}', count) for status, count in answers]
        yield _family("requests_total", "counter", "Requests answered, by HTTP status; none if reset.", by_status)
        yield _gauge("requests_in_flight", "Admitted requests to models that are being answered.", ledger.in_flight)
        yield _gauge("queue_length", "Requests that wait for a thread.", self.queued)
        yield _family("request_duration_seconds", "histogram", _DURATION, self._histogram())
        yield _gauge("threads", "Python threads of this process.", threading.active_count())
        if self._workers:
            yield _gauge("worker_threads", "Threads that answer requests.", self._workers)
            yield _gauge("worker_threads_busy", "Threads that have a request.", self.busy_workers)
        yield _gauge("connections_open", "Connections of clients.", ledger.connections)
        yield _family("billed_answers_total", "counter", "Answers that were billed.", [("", ledger.billed)])
        unread = ledger.unread_by_prompt.total()
        yield _family("unread_answers_total", "counter", "Billed answers whose client had left.", [("", unread)])
        yield _gauge("uptime_seconds", "Seconds since the start.", now_s - self._began_s)

    def _histogram(self) -> Iterator[_Sample]:
        counts = list(accumulate(self._in_bucket))
        for bound_s, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
            yield f'_bucket{{le="{bound_s}"}}', count
        yield "_sum", self._took_s
        yield "_count", counts[-1]


def _gauge(name: str, meaning: str, value: float) -> str:
    return _family(name, "gauge", meaning, [("", value)])


def _family(name: str, kind: str, meaning: str, samples: Iterable[_Sample]) -> str:
    """One metric; a sample is what stands behind the name, and its value."""
    full = f"llmbatch_sim_{name}"
    lines = [f"{full}{suffix} {value!r}\n" for suffix, value in samples]
    return f"# HELP {full} {meaning}\n# TYPE {full} {kind}\n{''.join(lines)}"
