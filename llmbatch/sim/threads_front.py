"""The front of a blocking server: one thread that accepts, reads whole requests, and queues them for the workers."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from functools import partial
from queue import Empty, SimpleQueue

from llmbatch.sim.connection import MAX_QUEUED, RESET
from llmbatch.sim.locked_service import LockedService
from llmbatch.sim.options import SimOptions
from llmbatch.sim.replies import Reply
from llmbatch.sim.server import SWEEP_S
from llmbatch.sim.threads_connection import Done, Job, ThreadsConnection

_RECEIVE_BYTES = 256 * 1024


class Front:
    """It never waits for a worker or for a client: it waits for bytes, for what workers give back, and for the clock.

    Connections between two requests are watched here and cost no worker. Only /metrics and the 503 of a full server
    are answered here; all other requests stand in ``jobs``, in order of arrival, one of each connection at a time.
    """

    def __init__(
        self, listener: socket.socket, service: LockedService, jobs: SimpleQueue[Job | None], options: SimOptions
    ) -> None:
        self.draining = threading.Event()
        self.dropped = threading.Event()
        self._listener = listener
        self._service = service
        self._jobs = jobs
        self._options = options
        self._connections: set[ThreadsConnection] = set()
        self._given_back: SimpleQueue[Done] = SimpleQueue()
        self._deadline_s: float | None = None
        self._sweep_at_s = 0.0
        self._listening = False
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        for end in (listener, self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._hear)

    def give_back(self, done: Done) -> None:
        """From a worker: its request is over."""
        self._given_back.put(done)
        self._wake()

    def drain(self) -> None:
        """From any thread: accept no more, finish what is queued and in work within the grace, drop the rest, end."""
        self.draining.set()
        self._wake()

    def run(self) -> None:
        """Until a drain is over. Afterwards no connection is open."""
        while self._deadline_s is None or self._connections:
            self._watch_the_clock(time.monotonic())
            for key, _ in self._selector.select(self._patience_s()):
                key.data()
            self._take_back()

    def close(self) -> None:
        self._selector.close()
        self._woken.close()
        self._waker.close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            self._waker.send(b"\0")

    def _hear(self) -> None:
        self._woken.recv(4096)

    def _patience_s(self) -> float:
        until_s = self._sweep_at_s
        if self._deadline_s is not None and not self.dropped.is_set():
            until_s = min(until_s, self._deadline_s)
        if self._deadline_s is not None and not self._connections:
            return 0.0
        return max(0.0, until_s - time.monotonic())

    def _watch_the_clock(self, now_s: float) -> None:
        if self._deadline_s is None and self.draining.is_set():
            self._begin_drain(now_s)
        if self._deadline_s is not None and now_s >= self._deadline_s and not self.dropped.is_set():
            self._drop()
        if now_s >= self._sweep_at_s:
            self._sweep(now_s)

    def _sweep(self, now_s: float) -> None:
        """Close what has been idle too long, and listen again after the process had run out of files."""
        self._sweep_at_s = now_s + min(SWEEP_S, self._options.idle_s / 2)
        for connection in list(self._connections):
            if not connection.busy and now_s - connection.touched_s > self._options.idle_s:
                self._close(connection)
        if not self._listening and self._deadline_s is None:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
            self._listening = True

    def _stop_listening(self) -> None:
        if self._listening:
            self._selector.unregister(self._listener)
            self._listening = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # out of files: who knocks waits for the next sweep
                self._stop_listening()
                return
            client.setblocking(True)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = ThreadsConnection(client, time.monotonic())
            self._connections.add(connection)
            self._service.connected()
            self._watch(connection)

    def _watch(self, connection: ThreadsConnection) -> None:
        if not connection.watched:
            self._selector.register(connection.socket, selectors.EVENT_READ, partial(self._read, connection))
            connection.watched = True

    def _ignore(self, connection: ThreadsConnection) -> None:
        if connection.watched:
            self._selector.unregister(connection.socket)
            connection.watched = False

    def _close(self, connection: ThreadsConnection) -> None:
        self._ignore(connection)
        connection.socket.close()
        self._connections.discard(connection)
        self._service.disconnected()

    def _read(self, connection: ThreadsConnection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:  # reset
            connection.cut = True
            if connection.answered:
                self._service.unread(connection.answered)
            data = b""
        if not data:
            self._client_left(connection)
            return
        connection.touched_s = time.monotonic()
        connection.feed(data)
        if not connection.busy:
            self._serve_next(connection)
        elif len(connection.pending) > MAX_QUEUED:
            self._ignore(connection)

    def _client_left(self, connection: ThreadsConnection) -> None:
        """A request of it that is queued or with a worker is answered all the same: nobody tells the worker."""
        connection.left.set()
        self._ignore(connection)
        if not connection.busy:
            self._close(connection)

    def _serve_next(self, connection: ThreadsConnection) -> None:
        while connection.pending and not connection.busy and connection in self._connections:
            request = connection.next_request()
            reply = self._service.join(request)
            if reply is None:
                connection.busy = True
                self._jobs.put(Job(connection, request, time.monotonic()))
            else:
                self._answer_at_once(connection, reply)

    def _answer_at_once(self, connection: ThreadsConnection, reply: Reply) -> None:
        """Whoever has so much unread that this does not fit is cut off: the front waits for nobody."""
        data = b"".join([part for _, part in reply.parts])
        try:
            sent = connection.socket.send(data, socket.MSG_DONTWAIT)
        except OSError:
            sent = 0
        if sent < len(data) or connection.last_request:
            self._close(connection)

    def _take_back(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._end_job(self._given_back.get_nowait())

    def _end_job(self, done: Done) -> None:
        connection = done.connection
        connection.busy = False
        connection.touched_s = time.monotonic()
        connection.answered = done.bill
        if connection.left.is_set():
            if done.bill and connection.was_reset() and not self.dropped.is_set():
                self._service.unread(done.bill)
            self._close(connection)
        elif done.ending == "reset":
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._close(connection)
        elif done.ending == "close" or connection.last_request:
            self._close(connection)
        else:
            self._watch(connection)
            self._serve_next(connection)

    def _begin_drain(self, now_s: float) -> None:
        self._deadline_s = now_s + self._options.drain_s
        self._stop_listening()
        self._listener.close()
        for connection in list(self._connections):
            connection.last_request = True
            if not connection.busy:
                self._close(connection)
            elif connection.stalled:
                connection.left.set()

    def _drop(self) -> None:
        """Wake every worker, from its sleep or from a client that does not read."""
        self.dropped.set()
        for connection in self._connections:
            connection.left.set()
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
