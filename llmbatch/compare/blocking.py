"""The drivers that block: one request after the other, threads, processes. Over http.client of the standard library.

It needs nothing else, and is the cheapest of the known blocking clients: requests and urllib3 do more for each call,
so with them the threads would look worse.
"""

from __future__ import annotations

import http.client
import multiprocessing
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from multidict import CIMultiDict

from llmbatch.calls.connect import has_unread
from llmbatch.compare.job import Endpoint, Job, Outcome, outcome_of
from llmbatch.records import Failure, Reply, Request, Row

# The quickest and smallest that there is: pages are shared. Safe here, as no thread runs that could hold a lock; macOS
# has libraries that do not bear it.
_START = "fork" if sys.platform == "linux" else "spawn"

Item = tuple[int, Request | Row]
"""A row's number, and what it asks; with a hook the row itself."""

Send = Callable[[Sequence[Item]], list[Outcome]]


class Client:
    """One connection, kept between requests unless ``shared`` is False. Owned by one thread."""

    def __init__(self, endpoint: Endpoint, *, shared: bool = True) -> None:
        self._endpoint = endpoint
        self._shared = shared
        self._connection = self._new()

    def send(self, item: Item) -> Outcome:
        """Ask and wait. No retries, under any driver. The latency begins when the work is done."""
        number, asked = item
        if isinstance(asked, Row):
            asked = self._endpoint.worked(asked)
        began_s = time.perf_counter()
        try:
            given = self._exchange(asked)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            given = Failure("ambiguous", "connection_error", type(error).__name__)
        if isinstance(given, Failure):
            given = self._endpoint.redactor.failure(given)
        return outcome_of(number, time.perf_counter() - began_s, given)

    def close(self) -> None:
        self._connection.close()

    def _exchange(self, request: Request) -> Reply | Failure:
        path, headers, body = self._endpoint.encoded(request)
        self._fresh()
        self._connection.request("POST", path, body, dict(headers))
        response = self._connection.getresponse()
        data = response.read()
        return self._endpoint.decoded(request, response.status, CIMultiDict(response.getheaders()), data)

    def _fresh(self) -> None:
        """A connection that the server has closed meanwhile is opened again, as every kept pool does."""
        connected: socket.socket | None = self._connection.sock
        if not self._shared or (connected is not None and has_unread(connected.fileno())):
            self._connection.close()

    def _new(self) -> http.client.HTTPConnection:
        host, port = self._endpoint.address
        timeout_s = self._endpoint.timeouts.total_s
        if self._endpoint.tls is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._endpoint.tls)


@contextmanager
def sequential(job: Job, endpoint: Endpoint) -> Iterator[Send]:
    """One request after the other."""
    client = Client(endpoint, shared=job.case.variant != "new session")
    yield lambda items: [client.send(item) for item in items]
    client.close()


@contextmanager
def threads(job: Job, endpoint: Endpoint) -> Iterator[Send]:
    """The usual pool of threads, each with a connection of its own."""
    own = threading.local()
    clients: list[Client] = []

    def begin() -> None:
        own.client = Client(endpoint, shared=job.case.variant != "new session")
        clients.append(own.client)

    with ThreadPoolExecutor(job.case.driver.size, initializer=begin) as pool:
        yield lambda items: list(pool.map(lambda item: own.client.send(item), items))
    for client in clients:
        client.close()


@contextmanager
def processes(job: Job, endpoint: Endpoint) -> Iterator[Send]:
    """A pool of processes, each with a connection and an endpoint of its own."""
    told = replace(job, requests=(), rows=())
    context = multiprocessing.get_context(_START)
    with ProcessPoolExecutor(job.case.driver.size, mp_context=context, initializer=_begin, initargs=(told,)) as pool:
        yield lambda items: list(pool.map(_send, items))


# In the processes

_client: Client


def _begin(job: Job) -> None:
    global _client
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _client = Client(Endpoint(job))


def _send(item: Item) -> Outcome:
    return _client.send(item)
