"""The provider for many threads: `Service`, `Ledger` and `Metrics`, which bear one at a time, behind one lock."""

from __future__ import annotations

import threading
import time

from llmbatch.sim.http11 import BadRequest, HttpRequest
from llmbatch.sim.ledger import Bill, Ledger
from llmbatch.sim.metrics import Metrics
from llmbatch.sim.replies import Reply
from llmbatch.sim.service import Service


class LockedService:
    """One simulated provider. Any thread may call any of its methods; none of them waits for more than the lock."""

    def __init__(self, service: Service, ledger: Ledger, metrics: Metrics) -> None:
        self._service = service
        self._ledger = ledger
        self._metrics = metrics
        self._lock = threading.Lock()

    def join(self, request: HttpRequest | BadRequest) -> Reply | None:
        """Join the queue for a worker: None. Else the answer that needs none: /metrics, or 503 when all is full."""
        with self._lock:
            reply = None if isinstance(request, BadRequest) else self._at_once(request)
            if reply is None:
                self._metrics.queued += 1
            else:
                self._metrics.answered(reply.status)
            return reply

    def _at_once(self, request: HttpRequest) -> Reply | None:
        now_s, time_s = time.monotonic(), time.time()
        page = self._metrics.reply(request, now_s, time_s)
        return page or self._service.overloaded(request, self._metrics.queued, now_s, time_s)

    def take(self, request: HttpRequest | BadRequest) -> Reply:
        """A worker takes a request from the queue; what is to be answered."""
        with self._lock:
            self._metrics.queued -= 1
            self._metrics.busy_workers += 1
            if isinstance(request, BadRequest):
                return self._service.refuse(request, time.time())
            reply = self._service.reply(request, time.monotonic(), time.time())
            if reply.working:
                self._ledger.work_began()
            return reply

    def finish(self, reply: Reply, took_s: float) -> None:
        """The worker is done, ``took_s`` after the request had joined the queue."""
        with self._lock:
            self._metrics.busy_workers -= 1
            if reply.working:
                self._ledger.work_ended()
            self._metrics.answered(reply.status, took_s if reply.working else None)

    def bill(self, bill: Bill) -> None:
        with self._lock:
            self._ledger.bill(bill, time.time())

    def unread(self, bill: Bill) -> None:
        with self._lock:
            self._ledger.unread(bill)

    def connected(self) -> None:
        with self._lock:
            self._ledger.connected()

    def disconnected(self) -> None:
        with self._lock:
            self._ledger.disconnected()
