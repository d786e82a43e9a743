"""The simulated provider as a blocking server: `with ThreadsServer(options) as server: server.base_url`.

A thread per request out of a pool of N, as waitress, gunicorn's gthread worker and Tomcat have it. A thread that has a
request does nothing else until it is answered: it sleeps as long as the answer takes. The N + 1st request waits in the
queue, and so does /healthz. With a thread per connection, N clients that keep their connections would shut out all
others for good, asking or not; that is a worse server, and not what there is to learn from this one.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from types import TracebackType

from llmbatch.sim.ledger import Ledger
from llmbatch.sim.locked_service import LockedService
from llmbatch.sim.metrics import Metrics
from llmbatch.sim.options import SimOptions
from llmbatch.sim.replies import Reply
from llmbatch.sim.server import BACKLOG, LOOPBACK, raise_file_limit
from llmbatch.sim.service import Service
from llmbatch.sim.threads_connection import Done, Job, ThreadsConnection
from llmbatch.sim.threads_front import Front

# What a pool has when nobody says: a few times the cores, as most servers that block.
THREADS = 16


class ThreadsServer:
    """A provider that listens from entry to exit, on threads of its own.

    ``OSError`` on entry when the port is taken, the ledger file can not be opened, or there can not be so many threads.
    On exit it accepts no more, waits ``drain_s`` for the answers that are queued or in work, and drops the rest
    unbilled.
    """

    def __init__(self, options: SimOptions) -> None:
        self._options = options
        self._ledger: Ledger | None = None
        self._port = options.port
        self._open = ExitStack()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()

    @property
    def ledger(self) -> Ledger:
        """The counters; they stay readable after the server has stopped."""
        assert self._ledger, "the server has not been entered"
        return self._ledger

    @property
    def base_url(self) -> str:
        """Where clients send to, known from entry on."""
        assert self._ledger, "the server has not been entered"
        return f"http://{LOOPBACK}:{self._port}/v1"

    def __enter__(self) -> ThreadsServer:
        raise_file_limit()
        options, workers = self._options, self._options.threads or THREADS
        with ExitStack() as stack:
            self._ledger = ledger = Ledger(options.ledger)
            stack.callback(ledger.close)
            listener = stack.enter_context(socket.create_server((LOOPBACK, options.port), backlog=BACKLOG))
            self._port = int(listener.getsockname()[1])
            metrics = Metrics(ledger, time.monotonic(), workers)
            self._service = LockedService(Service(options, ledger), ledger, metrics)
            self._front = Front(listener, self._service, self._jobs, options)
            stack.callback(self._front.close)
            for number in range(workers):
                stack.callback(self._start(self._work, f"worker-{number}").join)
            stack.callback(self._dismiss, workers)
            stack.callback(self._start(self._front.run, "front").join)
            stack.callback(self._front.drain)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def _start(self, work: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"sim-{name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._dismiss(self._options.threads or THREADS)
            raise OSError(errno.EAGAIN, "can not start so many threads", f"--threads {self._options.threads}") from None
        return thread

    def _dismiss(self, workers: int) -> None:
        """Send every worker home after what is queued."""
        for _ in range(workers):
            self._jobs.put(None)

    def _work(self) -> None:
        """The life of one worker."""
        while job := self._jobs.get():
            done = Done(job.connection, "close", None)
            try:
                if not self._front.dropped.is_set():
                    done = self._answer(job)
            finally:
                self._front.give_back(done)

    def _answer(self, job: Job) -> Done:
        reply = self._service.take(job.request)
        try:
            billed = self._play(reply, job.connection)
        finally:
            self._service.finish(reply, time.monotonic() - job.joined_s)
        return Done(job.connection, reply.ending, reply.bill if billed else None)

    def _play(self, reply: Reply, connection: ThreadsConnection) -> bool:
        """Send each part when it is due, asleep until then; whether the answer was billed."""
        began_s = time.monotonic()
        billed = False
        for at_s, data in reply.parts:
            wait_s = began_s + at_s - time.monotonic()
            if wait_s > 0 and self._front.dropped.wait(wait_s):
                return billed
            if reply.bill and not billed:
                self._service.bill(reply.bill)
                billed = True
            connection.send(data)
            if connection.cut:
                return billed
        if reply.ending == "stall":
            self._stall(connection)
        return billed

    def _stall(self, connection: ThreadsConnection) -> None:
        """The thread is lost until the client leaves, or the server stops."""
        connection.stalled = True
        if not self._front.draining.is_set():
            connection.left.wait()
