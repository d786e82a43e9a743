"""The wire: one request out, one answer in. aiohttp's errors become our Failures here and nowhere else."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import aiohttp
import orjson
from yarl import URL

from llmbatch.calls.deadlines import Guard, Limit, Watch, row_deadline, timed_out
from llmbatch.options import MAX_BODY_BYTES, Timeouts
from llmbatch.providers.base import Provider
from llmbatch.providers.openai_errors import request_id
from llmbatch.providers.sse import EventDecoder
from llmbatch.records import Attempt, CallFailed, Failure, FailureClass, Reply, Request, Trace
from llmbatch.rules.reasons import excerpt
from llmbatch.rules.redact import Redactor

# Below the 5 s after which uvicorn (vLLM, SGLang) closes idle connections: else a request meets a closing one.
KEEPALIVE_S = 4.0
DNS_CACHE_S = 300
# aiohttp warns about larger bodies given as bytes; a file object is sent in pieces.
LARGE_BODY_BYTES = 2**20

# The end of a stream's body comes some packets after its end marker; then the connection can be used again.
LINGER_S = 1.0
# What a server may repeat, and nobody may read there.
KEY_HEADERS = ("Authorization", "api-key", "x-api-key", "x-goog-api-key")


def open_session(headers: Mapping[str, str], timeouts: Timeouts) -> aiohttp.ClientSession:
    """The one session of a run.

    No pool limit (the window is the limit), DNS cached, no cookies, nothing from the environment (``~/.netrc``
    would be sent to the API host). Only connecting has a timeout here: see deadlines.py for the rest.
    """
    connector = aiohttp.TCPConnector(
        limit=0, ttl_dns_cache=DNS_CACHE_S, keepalive_timeout=KEEPALIVE_S, enable_cleanup_closed=False
    )
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=timeouts.connect_s),
        trust_env=False,
        raise_for_status=False,
        # Not asked for, never needed: a cut gzip body looks complete.
        skip_auto_headers=("Accept-Encoding",),
    )


class Wire:
    """The innermost Call: encodes, sends, reads, decodes. Every failure leaves as CallFailed, noted in the trace."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        provider: Provider,
        url: str,
        timeouts: Timeouts,
        watch: Watch,
        clock: Callable[[], float],
        *,
        stream: bool,
    ) -> None:
        self._session = session
        self._provider = provider
        self._url = URL(url)
        self._timeouts = timeouts
        self._watch = watch
        self._clock = clock
        self._stream = stream
        self._lingering: set[asyncio.Task[None]] = set()
        self._redactor = Redactor(
            session.headers[name].rpartition(" ")[2] for name in KEY_HEADERS if name in session.headers
        )

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        attempt = Attempt(sent_s=self._clock())
        trace.attempts.append(attempt)
        body = self._provider.encode(request)
        data = orjson.dumps(self._provider.streamed(body) if self._stream else body)
        total_s = self._timeouts.total_s
        if trace.deadline_s is not None:
            total_s = min(total_s, trace.deadline_s - attempt.sent_s)
        first_token_s = self._timeouts.first_token_s if self._stream else None
        if total_s <= 0:
            outcome: Reply | Failure = row_deadline("never_sent", None)
        else:
            with self._watch.guard(total_s, first_token_s) as guard:
                outcome = await self._exchange(data, attempt, guard, total_s)
        attempt.latency_s = self._clock() - attempt.sent_s
        if isinstance(outcome, Failure):
            attempt.failure = self._redactor.failure(outcome)
            raise CallFailed(attempt.failure)
        return self._redactor.reply(outcome)

    async def _exchange(self, data: bytes, attempt: Attempt, guard: Guard, total_s: float) -> Reply | Failure:
        try:
            return await self._send(data, attempt, guard)
        except asyncio.CancelledError:
            if guard.expired is None:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            return self._timed_out(guard.expired, attempt, total_s)
        except CallFailed as failed:
            return failed.failure
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, TimeoutError, UnicodeError) as error:
            return transport_failure(error, attempt.request_id)

    async def _send(self, data: bytes, attempt: Attempt, guard: Guard) -> Reply | Failure:
        payload = data if len(data) < LARGE_BODY_BYTES else io.BytesIO(data)
        response = await self._session.post(self._url, data=payload, allow_redirects=False)
        try:
            outcome = await self._receive(response, attempt, guard)
        except BaseException:
            response.close()
            raise
        self._let_go(response)
        return outcome

    async def _receive(self, response: aiohttp.ClientResponse, attempt: Attempt, guard: Guard) -> Reply | Failure:
        attempt.request_id = self._redactor.exact(request_id(response.headers))
        if self._stream and response.status == 200 and response.content_type == "text/event-stream":
            return await self._read_stream(response, attempt, guard)
        try:
            body = await _read_body(response, guard, self._timeouts.idle_s)
        except (aiohttp.ClientError, OSError):
            if response.status == 200:
                raise
            body = b""  # the status alone says what to do: a rate limit must close the gate
        return self._provider.decode(response.status, response.headers, body)

    async def _read_stream(self, response: aiohttp.ClientResponse, attempt: Attempt, guard: Guard) -> Reply | Failure:
        """Events until the end marker. Comments and pings do not count as life: only parts of the answer do."""
        events, answer = EventDecoder(), self._provider.stream_decoder()
        received = 0
        try:
            while not answer.ended and (chunk := await response.content.readany()):
                received += len(chunk)
                if received > MAX_BODY_BYTES:
                    _too_large()
                for data in events.feed(chunk):
                    if answer.feed(data):
                        guard.heard(self._timeouts.idle_s)
                        if attempt.first_token_s is None:
                            attempt.first_token_s = self._clock() - attempt.sent_s
        except (aiohttp.ClientError, OSError):
            pass  # the decoder knows whether the end marker came, and keeps what came before the cut
        return answer.finish()

    def _timed_out(self, limit: Limit, attempt: Attempt, total_s: float) -> Failure:
        times = self._timeouts
        if limit == "total" and total_s < times.total_s:
            return row_deadline("ambiguous", attempt.request_id)
        seconds = {"total": times.total_s, "first_token": times.first_token_s, "idle": times.idle_s}[limit]
        return timed_out(limit, seconds, attempt.request_id)

    def _let_go(self, response: aiohttp.ClientResponse) -> None:
        """Nobody waits for what comes after the answer; it is read on the side, then the connection is used again."""
        if response.content.at_eof() or response.content.exception() is not None:
            response.close()
            return
        lingering = asyncio.create_task(_linger(response))
        self._lingering.add(lingering)
        lingering.add_done_callback(self._lingering.discard)


async def _linger(response: aiohttp.ClientResponse) -> None:
    """Read to the end of the body, or to the end of patience. Closing the session ends it at once."""
    try:
        async with asyncio.timeout(LINGER_S):
            while await response.content.readany():
                pass
    except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
        pass
    finally:
        response.close()


async def _read_body(response: aiohttp.ClientResponse, guard: Guard, idle_s: float) -> bytes:
    """The whole body, at most MAX_BODY_BYTES after decompression."""
    stream = response.content
    body = await stream.readany()
    if stream.at_eof():
        return body
    guard.heard(idle_s)
    parts, received = [body], len(body)
    while chunk := await stream.readany():
        guard.heard(idle_s)
        parts.append(chunk)
        received += len(chunk)
        if received > MAX_BODY_BYTES:
            response.close()
            _too_large()
    return b"".join(parts)


def _too_large() -> NoReturn:
    raise CallFailed(
        Failure(
            "unusable", "answer_too_large", f"the answer is larger than {MAX_BODY_BYTES // 2**20} MiB", http_status=200
        )
    )


def transport_failure(error: BaseException, sent_id: str | None = None) -> Failure:
    """What a transport error says about the request. Never by ``error.status``: aiohttp reports its own parse
    errors as status 400, and a billed answer would pass for a bad request."""
    kind, word, retryable, fatal = _transport_class(error)
    return Failure(
        kind=kind,
        type=word,
        message=_transport_text(error),
        retryable=retryable,
        fatal=fatal,
        unreachable=kind == "never_sent" and retryable,
        request_id=sent_id,
    )


def _transport_class(error: BaseException) -> tuple[FailureClass, str, bool, bool]:
    """(class, type, retryable, fatal). The order matters: aiohttp's classes inherit from each other."""
    table: tuple[tuple[Any, FailureClass, str, bool, bool], ...] = (
        (aiohttp.ClientConnectorCertificateError, "never_sent", "tls_certificate", False, True),
        (aiohttp.ClientConnectorSSLError, "never_sent", "tls_error", False, True),
        (aiohttp.ClientConnectorDNSError, "never_sent", "dns_error", True, False),
        (aiohttp.ConnectionTimeoutError, "never_sent", "connect_timeout", True, False),
        (aiohttp.ClientConnectorError, "never_sent", _connect_word(error), True, False),
        (aiohttp.InvalidURL, "never_sent", "invalid_url", False, True),
        (aiohttp.ServerDisconnectedError, "ambiguous", "disconnected", True, False),
        (aiohttp.ClientPayloadError, "ambiguous", "body_cut", True, False),
        (aiohttp.ClientResponseError, "ambiguous", "bad_http", True, False),
        (aiohttp.ClientOSError, "ambiguous", "connection_reset", True, False),
        (UnicodeDecodeError, "unusable", "bad_encoding", True, False),
        (UnicodeError, "never_sent", "invalid_url", False, True),  # the resolver's, of a host with an empty label
    )
    for cls, kind, word, retryable, fatal in table:
        if isinstance(error, cls):
            return kind, word, retryable, fatal
    return "ambiguous", "connection_error", True, False


def _connect_word(error: BaseException) -> str:
    code = getattr(error, "errno", None)
    if code in (errno.EMFILE, errno.ENFILE):
        return "too_many_open_files"
    return "connection_refused" if code == errno.ECONNREFUSED else "connect_error"


def _transport_text(error: BaseException) -> str:
    """One sentence for the user; never ``repr``, which holds the request headers and the key in them."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host}:{error.port}: {_connect_text(error)}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the server's answer is not valid HTTP: {_plain(error.message)}"
    if isinstance(error, aiohttp.InvalidURL):
        return f"not a URL that can be asked: {excerpt(str(error.url))}"
    for cls, text in _TEXTS:
        if isinstance(error, cls):
            return text
    return f"the connection broke: {_os_text(error)}"


_TEXTS: tuple[tuple[type[BaseException], str], ...] = (
    (aiohttp.ConnectionTimeoutError, "no connection in time (--connect-timeout)"),
    (aiohttp.ServerDisconnectedError, "the server closed the connection without an answer"),
    (aiohttp.ClientPayloadError, "the answer was cut short"),
    (UnicodeDecodeError, "the answer is not UTF-8"),
    (UnicodeError, "the host of the URL has no valid name"),
)


def _connect_text(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "")
        return "its TLS certificate is not valid" + (f": {why}" if why else "")
    if isinstance(error, aiohttp.ClientConnectorSSLError):  # their errno is OpenSSL's
        return "no TLS connection (is it http, not https?)"
    return _os_text(error.os_error)


def _os_text(error: BaseException) -> str:
    """The system's words. Error numbers of name look-ups are negative, and have a text of their own."""
    code = getattr(error, "errno", None)
    if isinstance(code, int) and code > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(code)
    text = getattr(error, "strerror", None) or (str(error) if len(error.args) == 1 else "")
    return _plain(text) or type(error).__name__


def _plain(text: str) -> str:
    """The first clause of a message: the rest lists errno tuples, addresses or the bytes that were wrong."""
    return excerpt(re.split(r"[\n(<\[]", text, maxsplit=1)[0].strip(" :"))
