"""One client connection: feeds its bytes to the parser, and plays the replies to its requests, one after the other."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from functools import partial
from typing import cast

from llmbatch.sim.http11 import BadRequest, HttpRequest, RequestParser
from llmbatch.sim.ledger import Bill, Ledger
from llmbatch.sim.metrics import Metrics
from llmbatch.sim.replies import Reply
from llmbatch.sim.service import Service
from llmbatch.sim.slots import Place, Slots, WorkTimer

# More pipelined requests than this stay in the kernel's buffer until there is room.
MAX_QUEUED = 32
# Close with a reset and drop what is unsent (socket(7), SO_LINGER).
RESET = struct.pack("ii", 1, 0)


class Connection(asyncio.Protocol):
    """Work goes on when the client leaves: what was begun is finished and billed, as providers do. What still waits
    for a slot is dropped.

    It stands in ``living`` from its first byte until it is both closed and done with its last request.
    """

    def __init__(self, service: Service, ledger: Ledger, metrics: Metrics, living: set[Connection]) -> None:
        self._service = service
        self._ledger = ledger
        self._metrics = metrics
        self._living = living
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser()
        self._queue: deque[HttpRequest | BadRequest] = deque()
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._billed = False
        self._answered: Bill | None = None  # the last answer sent, until there is a sign that it was read
        self._timer: asyncio.TimerHandle | WorkTimer | None = None
        self._slots: Slots | None = None
        self._place: Place | None = None
        self._queued = False
        self._last_request = False
        self._began_s = self._touched_s = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._living.add(self)
        self._ledger.connected()

    def connection_lost(self, exc: Exception | None) -> None:
        # A client that closes, or dies, with unread bytes resets its connection (RFC 9293, 3.6.1; RFC 2525, 2.17).
        if exc is not None and self._answered:
            self._ledger.unread(self._answered)
        self._transport = None
        self._queue.clear()
        self._ledger.disconnected()
        if self._timer is None:
            self._finish()

    def data_received(self, data: bytes) -> None:
        self._touched_s = self._loop.time()
        try:
            self._queue.extend(self._parser.feed(data))
        except BadRequest as problem:
            self._queue.append(problem)
        if self._reply is None:
            self._answer_queued()
        elif self._transport and len(self._queue) > MAX_QUEUED:
            self._transport.pause_reading()

    def idle_s(self, now_s: float) -> float:
        """Seconds without a byte from the client and without a request being answered."""
        return 0.0 if self._reply else now_s - self._touched_s

    def drain(self) -> None:
        """Close after the answer in progress; at once when there is none, or will never be one."""
        self._last_request = True
        if self._timer is None and not self._queued:
            self.close()

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        """Give up the request in progress, unbilled, and close."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._transport:
            self._transport.abort()
        self._finish()

    def _answer_queued(self) -> None:
        while self._queue and self._reply is None and self._transport and not self._transport.is_closing():
            self._begin(self._queue.popleft())
        if self._reply is None and self._transport and not self._transport.is_reading():
            self._transport.resume_reading()

    def _begin(self, request: HttpRequest | BadRequest) -> None:
        self._began_s = self._loop.time()
        self._billed, self._answered = False, None
        if isinstance(request, BadRequest):
            self._last_request = True
            self._reply = self._service.refuse(request, time.time())
        else:
            self._last_request |= not request.keep_alive
            now_s, time_s = time.monotonic(), time.time()
            self._reply = self._metrics.reply(request, now_s, time_s) or self._service.reply(request, now_s, time_s)
        if self._reply.working:
            self._ledger.work_began()
        if self._reply.takes_slot and self._service.slots is not None:
            self._wait_for_slot(self._service.slots)
        else:
            self._play()

    def _wait_for_slot(self, slots: Slots) -> None:
        self._slots, self._queued = slots, True
        self._ledger.queue_joined()
        self._place = slots.place(self._got_slot)
        self._place.enter()

    def _got_slot(self) -> None:
        """Its time begins now, by the clock of the work."""
        assert self._slots, "who waits for a slot knows where"
        self._leave_queue()
        self._began_s = self._slots.now_s()
        self._play()
        if self._reply is None:
            self._answer_queued()

    def _leave_queue(self) -> None:
        if self._queued:
            self._queued = False
            self._ledger.queue_left()

    def _play(self) -> None:
        """Send the parts that are due, and come back for the next."""
        assert self._reply, "a reply is being played"
        slots = self._slots
        for at_s, data in self._reply.parts:
            wait_s = self._began_s + at_s - (self._loop.time() if slots is None else slots.now_s())
            if wait_s > 0:
                if slots is None:
                    self._timer = self._loop.call_later(wait_s, self._due, data)
                else:
                    self._timer = slots.call_after(wait_s, partial(self._due, data))
                return
            self._send(data)
        if self._reply.ending != "stall":
            self._finish()

    def _due(self, data: bytes) -> None:
        self._timer = None
        self._send(data)
        if self._transport:
            self._play()
        else:
            self._finish()
        if self._reply is None:
            self._answer_queued()

    def _send(self, data: bytes) -> None:
        assert self._reply, "a reply is being played"
        if self._reply.bill and not self._billed:
            self._billed = True
            self._ledger.bill(self._reply.bill, time.time())
        if self._transport and data:
            self._transport.write(data)

    def _finish(self) -> None:
        """The request in progress is over, or there was none when the connection closed."""
        reply, self._reply = self._reply, None
        self._touched_s = self._loop.time()
        if reply:
            self._metrics.answered(reply.status, self._touched_s - self._began_s if reply.working else None)
        if reply and reply.working:
            self._ledger.work_ended()
        self._leave_slot()
        if reply and reply.bill and self._billed:
            self._answered = reply.bill
            if self._transport is None:
                self._ledger.unread(reply.bill)
        if self._transport is None:
            self._living.discard(self)
        elif reply and reply.ending == "reset":
            self._reset()
        elif self._last_request or (reply and reply.ending == "close"):
            self._transport.close()

    def _leave_slot(self) -> None:
        """Its place, or its turn in the queue."""
        if self._place is not None:
            self._leave_queue()
            place, self._place, self._slots = self._place, None, None
            place.leave()

    def _reset(self) -> None:
        assert self._transport, "only an open connection can be reset"
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()
