"""One client connection of a blocking server, and what the front and the workers hand each other."""

from __future__ import annotations

import socket
import threading
from collections import deque
from dataclasses import dataclass

from llmbatch.sim.http11 import BadRequest, HttpRequest, RequestParser
from llmbatch.sim.ledger import Bill
from llmbatch.sim.replies import Ending


class ThreadsConnection:
    """Owned by the front. The one worker that has its request may send on it, and sets nothing but what is said here.

    ``busy`` while a request of it is queued or with a worker. ``left`` when the client has closed its side or does not
    take what is sent, which both may find. ``cut`` when it surely has not read all of the answer: who has read it may
    be seen to leave before the worker has said that it is done. ``stalled`` is the worker's: it waits for nothing but
    ``left``.
    """

    def __init__(self, client: socket.socket, now_s: float) -> None:
        self.socket = client
        self.pending: deque[HttpRequest | BadRequest] = deque()
        self.busy = False
        self.watched = False
        self.last_request = False
        self.left = threading.Event()
        self.cut = False
        self.stalled = False
        self.touched_s = now_s
        self.answered: Bill | None = None  # the last answer sent, until there is a sign that it was read
        self._parser = RequestParser()

    def feed(self, data: bytes) -> None:
        """Add the requests that ``data`` completes to those that are pending."""
        try:
            self.pending.extend(self._parser.feed(data))
        except BadRequest as problem:
            self.pending.append(problem)

    def next_request(self) -> HttpRequest | BadRequest:
        request = self.pending.popleft()
        self.last_request |= isinstance(request, BadRequest) or not request.keep_alive
        self.answered = None
        return request

    def send(self, data: bytes) -> None:
        """Send all of it, however long the client takes to read."""
        if self.left.is_set():
            self.cut = True
            return
        try:
            self.socket.sendall(data)
        except OSError:
            self.cut = True
            self.left.set()

    def was_reset(self) -> bool:
        """Whether the client surely had bytes of the answer unread when it left.

        One that closes, or dies, with unread bytes resets its connection (RFC 9293, 3.6.1; RFC 2525, 2.17).
        """
        return self.cut or self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


@dataclass(frozen=True, slots=True)
class Job:
    """A request that waits for a worker, or has one."""

    connection: ThreadsConnection
    request: HttpRequest | BadRequest
    joined_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """A connection that comes back from its worker; ``bill`` if its answer was billed."""

    connection: ThreadsConnection
    ending: Ending
    bill: Bill | None
