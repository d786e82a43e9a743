"""The wire: one request out, one answer in. aiohttp's errors become our Failures here and nowhere else."""

from __future__ import annotations

import asyncio
import errno
import io
import math
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import aiohttp
import orjson
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from llmbatch.calls.connect import Proxy, has_unread, loopback_socket, patient_socket
from llmbatch.calls.deadlines import Guard, Limit, Watch, row_deadline, timed_out
from llmbatch.calls.limit import ABANDONED
from llmbatch.calls.received import Received
from llmbatch.options import Timeouts
from llmbatch.providers.base import Provider
from llmbatch.providers.cache_marks import with_cache_marks
from llmbatch.providers.openai_errors import request_id
from llmbatch.providers.target import Target
from llmbatch.records import Attempt, CallFailed, Failure, FailureClass, Reply, Request, Trace
from llmbatch.rules.bound import token_bound
from llmbatch.rules.flags import flags_of
from llmbatch.rules.kept import KEPT_BODY_BYTES
from llmbatch.rules.limits import Limits
from llmbatch.rules.reasons import excerpt
from llmbatch.rules.redact import Redactor
from llmbatch.rules.vectors import as_asked

# Below the 5 s after which uvicorn (vLLM, SGLang) closes idle connections: else a request meets a closing one.
KEEPALIVE_S = 4.0
DNS_CACHE_S = 300
# aiohttp warns about larger bodies given as bytes; a file object is sent in pieces.
LARGE_BODY_BYTES = 2**20

# The end of a stream's body comes some packets after its end marker; then the connection can be used again.
LINGER_S = 1.0
# Interim answers (1xx) that wait to be skipped: aiohttp takes any number, and a flood of them fills memory and time.
MOST_INTERIM = 10_000
# What answers say of limits is read so often, and of every refusal.
LIMITS_EVERY_S = 0.05
# URLs that are kept parsed, for servers that have the model's name in it.
MOST_URLS = 1_000
# What a server may repeat, and nobody may read there.
KEY_HEADERS = ("Authorization", "api-key", "x-api-key", "x-goog-api-key")


class _Protocol(ResponseHandler):
    """Tells the reader of a body that the connection failed: aiohttp's own leaves it waiting after bad framing.

    The parser gives nothing of what came in one piece with bad framing, which may be a whole answer; it goes with the
    error as ``unparsed``.
    """

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if len(self._buffer) > MOST_INTERIM and self._exception is None:
            assert self.transport is not None, "it has just received something"
            self.transport.close()
            self.set_exception(HttpProcessingError(message="a flood of interim answers"))
        error: Any = self._exception
        if error is not None:
            error.unparsed = data

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        super().set_exception(exc, *cause)
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("bad framing"))


class _Connector(aiohttp.TCPConnector):
    """Reuses no connection on which something came that was not asked for: it would be taken for the next answer."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        factory: Any = partial(_Protocol, loop=self._loop)
        self._factory = factory

    async def _get(self, *args: Any) -> Any:
        while (connection := await super()._get(*args)) is not None:
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close and not _has_unread(protocol.transport):
                break
            connection.close()
        return connection


def _has_unread(transport: asyncio.BaseTransport | None) -> bool:
    connected = None if transport is None else transport.get_extra_info("socket")
    return connected is None or has_unread(connected.fileno())


def open_session(
    timeouts: Timeouts, *, tls: ssl.SSLContext | None = None, loopback_only: bool = False
) -> aiohttp.ClientSession:
    """The one session of a run.

    It knows no key: aiohttp gives the headers of a session to proxies too. No pool limit (the window is the limit),
    DNS cached, no cookies, nothing from the environment (``~/.netrc`` would be sent to the API host). Certificates
    are always verified, with ``tls`` or with what the system trusts. ``loopback_only`` refuses to connect to
    another machine. Only connecting has a timeout here: see deadlines.py.
    """
    connector = _Connector(
        limit=0,
        ttl_dns_cache=DNS_CACHE_S,
        keepalive_timeout=KEEPALIVE_S,
        enable_cleanup_closed=False,
        ssl=True if tls is None else tls,
        socket_factory=loopback_socket if loopback_only else patient_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=timeouts.connect_s),
        trust_env=False,
        raise_for_status=False,
        # Not asked for, never needed: a cut gzip body looks complete.
        skip_auto_headers=("Accept-Encoding",),
        auto_decompress=False,  # received.py does it, bounded, and keeps what was broken
    )


Session = aiohttp.ClientSession


class _Asked:
    """One request on its way, and what has come of its answer."""

    __slots__ = ("attempt", "began", "data", "provider", "received", "stream", "url")

    def __init__(self, provider: Provider, url: URL, data: bytes, stream: bool, trace: Trace) -> None:
        self.provider = provider
        self.url = url
        self.data = data
        self.stream = stream
        self.attempt = trace.attempts[-1]
        self.began = trace.began
        self.received = Received()


class Wire:
    """The innermost Call: encodes, sends, reads, decodes. Every failure leaves as CallFailed, noted in the trace."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        headers: Mapping[str, str],
        timeouts: Timeouts,
        watch: Watch,
        clock: Callable[[], float],
        *,
        stream: bool,
        cache_prompt: bool = False,
        proxy: Proxy | None = None,
        learned: Callable[[Limits], None] | None = None,
    ) -> None:
        self._learned = learned
        self._limits_after_s = -math.inf
        self._session = session
        self._target = target
        self._urls: dict[str, URL] = {}
        self._timeouts = timeouts
        self._watch = watch
        self._clock = clock
        self._stream = stream
        self._cache_prompt = cache_prompt
        self._headers = CIMultiDict(headers)
        self._dialect_headers: dict[str, CIMultiDict[str]] = {}
        self._proxy = None if proxy is None else proxy.url
        self._proxy_headers: dict[str, str] | None = None
        if proxy is not None and proxy.authorization is not None:
            # Over TLS the proxy reads CONNECT and no more; else it reads the request itself.
            to_proxy = {"Proxy-Authorization": proxy.authorization}
            if target.base_url.startswith("https:"):
                self._proxy_headers = to_proxy
            else:
                self._headers.update(to_proxy)
        self._lingering: set[asyncio.Task[None]] = set()
        keys = [self._headers[name].rpartition(" ")[2] for name in KEY_HEADERS if name in self._headers]
        self._redactor = Redactor([*keys, *(() if proxy is None else proxy.secrets)])

    async def __call__(self, request: Request, trace: Trace, /) -> Reply:
        attempt = Attempt(sent_s=self._clock())
        trace.attempts.append(attempt)
        provider = self._target.dialect(request)
        body = provider.encode(request)
        if self._cache_prompt:
            body = with_cache_marks(provider.name, body)
        stream = self._stream and provider.streams
        data = orjson.dumps(provider.streamed(body) if stream else body)
        total_s = self._timeouts.total_s
        if trace.deadline_s is not None:
            total_s = min(total_s, trace.deadline_s - attempt.sent_s)
        first_token_s = self._timeouts.first_token_s if stream else None
        if total_s <= 0:
            outcome: Reply | Failure = row_deadline("never_sent", None)
        elif provider.max_body_bytes is not None and len(data) > provider.max_body_bytes:
            outcome = _too_large(len(data), provider.max_body_bytes)
        else:
            asked = _Asked(provider, self._url_of(provider, request.model, stream), data, stream, trace)
            with self._watch.guard(total_s, first_token_s) as guard:
                try:
                    outcome = await self._exchange(asked, guard, total_s)
                except asyncio.CancelledError:
                    abandoned = replace(ABANDONED, request_id=attempt.request_id)
                    attempt.failure = _bounded(abandoned, provider.name, request.model, body, data)
                    raise
        attempt.latency_s = self._clock() - attempt.sent_s
        if isinstance(outcome, Reply) and provider.embeds:
            outcome = as_asked(outcome, request)
        if isinstance(outcome, Failure):
            attempt.failure = _bounded(self._redactor.failure(outcome), provider.name, request.model, body, data)
            raise CallFailed(attempt.failure)
        flags = flags_of(outcome, None if self._target.service.deployments else request.model)
        return self._redactor.reply(replace(outcome, flags=flags) if flags else outcome)

    async def _exchange(self, asked: _Asked, guard: Guard, total_s: float) -> Reply | Failure:
        """One request, one answer. A failure tells what came of the answer, however it ended."""
        outcome = await self._ended(asked, guard, total_s)
        return asked.received.told(outcome) if isinstance(outcome, Failure) else outcome

    async def _ended(self, asked: _Asked, guard: Guard, total_s: float) -> Reply | Failure:
        attempt = asked.attempt
        try:
            return await self._send(asked, guard)
        except asyncio.CancelledError:
            if guard.expired is None:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            return self._timed_out(guard.expired, attempt, total_s)
        except CallFailed as failed:
            return replace(failed.failure, request_id=attempt.request_id)
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, TimeoutError, UnicodeError) as error:
            asked.received.add_unparsed(error)
            return transport_failure(error, attempt.request_id)

    async def _send(self, asked: _Asked, guard: Guard) -> Reply | Failure:
        data = asked.data
        response = await self._session.post(
            asked.url,
            data=data if len(data) < LARGE_BODY_BYTES else io.BytesIO(data),
            headers=self._headers_of(asked.provider),
            allow_redirects=False,
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
        )
        try:
            outcome = await self._receive(response, asked, guard)
        except BaseException:
            response.close()
            raise
        self._let_go(response)
        return outcome

    def _headers_of(self, provider: Provider) -> CIMultiDict[str]:
        """The key's, and those of the dialect."""
        headers = self._dialect_headers.get(provider.name)
        if headers is None:
            headers = self._dialect_headers[provider.name] = CIMultiDict({**self._headers, **provider.headers})
        return headers

    def _url_of(self, provider: Provider, model: str, stream: bool) -> URL:
        """Paths are few, except where each row names a model of its own; those are not kept without end."""
        address = self._target.base_url + provider.path(model, stream=stream)
        url = self._urls.get(address)
        if url is None:
            url = URL(address)
            if len(self._urls) < MOST_URLS:
                self._urls[address] = url
        return url

    async def _receive(self, response: aiohttp.ClientResponse, asked: _Asked, guard: Guard) -> Reply | Failure:
        named, received = request_id(response.headers), asked.received
        asked.attempt.request_id = named and self._redactor.text(named)
        now_s = self._clock()
        if now_s >= self._limits_after_s or response.status != 200:
            self._limits_after_s = now_s + LIMITS_EVERY_S
            asked.attempt.limits = limits = asked.provider.limits(response.headers, time.time())
            self._tell_limits(limits)
        if (encoding := response.headers.get("Content-Encoding")) is not None:
            received.encoded_as(encoding)
        streamed = asked.stream and response.status == 200 and response.content_type == "text/event-stream"
        if streamed and received.readable:
            return await self._read_stream(response, asked, guard)
        try:
            await _read_body(response.content, guard, self._timeouts.idle_s, received)
            body = received.whole()
        except (aiohttp.ClientError, OSError, CallFailed):
            if response.status == 200:
                raise
            body = b""  # the status alone says what to do: a rate limit must close the gate
        return asked.provider.decode(response.status, response.headers, body)

    def _tell_limits(self, limits: Limits) -> None:
        """Of the first answer: once is enough for people."""
        learned, self._learned = self._learned, None
        if learned is not None and limits:
            learned(limits)

    async def _read_stream(self, response: aiohttp.ClientResponse, asked: _Asked, guard: Guard) -> Reply | Failure:
        """Events until the end marker. Comments and pings do not count as life: only parts of the answer do."""
        events, answer = asked.provider.events(), asked.provider.stream_decoder()
        received, attempt = asked.received, asked.attempt
        received.answer, received.keep_bytes = answer, KEPT_BODY_BYTES
        try:
            while not answer.ended and (chunk := await _next(response.content)):
                for data in events.feed(received.add(chunk)):
                    if answer.feed(data):
                        guard.heard(self._timeouts.idle_s)
                        if attempt.first_token_s is None:
                            attempt.first_token_s = self._clock() - attempt.sent_s
                            if asked.began is not None:
                                asked.began()
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


async def _next(content: aiohttp.StreamReader) -> bytes:
    """The next part of a body. What came before the connection broke is given first; the error at the next call."""
    try:
        return await content.readany()
    except (aiohttp.ClientError, OSError):
        if before := content._read_nowait(-1):  # no public method reads what stands before an error
            return before
        raise


async def _read_body(content: aiohttp.StreamReader, guard: Guard, idle_s: float, received: Received) -> None:
    received.add(await _next(content))
    if content.at_eof():
        return
    guard.heard(idle_s)
    while chunk := await _next(content):
        guard.heard(idle_s)
        received.add(chunk)


def _too_large(size: int, most: int) -> Failure:
    return Failure(
        "permanent",
        "request_too_large",
        f"the request is {size:,} bytes long, and this provider takes {most:,}: it was not sent",
    )


def _bounded(failure: Failure, api: str, model: str, body: Mapping[str, Any], data: bytes) -> Failure:
    """``failure`` with what the request may have cost, if it may have cost anything."""
    return replace(failure, bound=token_bound(api, model, body, data)) if failure.maybe_billed else failure


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
        (aiohttp.ClientHttpProxyError, "never_sent", *_proxy_refusal(error)),
        (aiohttp.ClientResponseError, "ambiguous", "bad_http", True, False),
        (aiohttp.ClientOSError, "ambiguous", "connection_reset", True, False),
        (UnicodeDecodeError, "unusable", "bad_encoding", True, False),
        (UnicodeError, "never_sent", "invalid_url", False, True),  # the resolver's, of a host with an empty label
    )
    if _is_tls_alert(error):
        return "never_sent", "tls_port", False, True
    for cls, kind, word, retryable, fatal in table:
        if isinstance(error, cls):
            return kind, word, retryable, fatal
    return "ambiguous", "connection_error", True, False


def _connect_word(error: BaseException) -> str:
    code = getattr(error, "errno", None)
    if code in (errno.EMFILE, errno.ENFILE):
        return "too_many_open_files"
    return "connection_refused" if code == errno.ECONNREFUSED else "connect_error"


def _proxy_refusal(error: BaseException) -> tuple[str, bool, bool]:
    """(type, retryable, fatal) of a proxy's answer to CONNECT: nothing of the request has left this machine."""
    status = getattr(error, "status", 0)
    if status == 407:
        return "proxy_login", False, True
    unreachable = status >= 500 or status in (408, 429)
    return ("proxy_cannot_connect" if unreachable else "proxy_refused"), unreachable, not unreachable


def _is_tls_alert(error: BaseException) -> bool:
    """Whether the "answer" is a TLS record of type alert (RFC 8446, 5.1), as TLS servers answer plain HTTP."""
    return isinstance(error, aiohttp.ClientResponseError) and "b'\\x15\\x03" in error.message


def _transport_text(error: BaseException) -> str:
    """One sentence for the user; never ``repr``, which holds the request headers and the key in them."""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"cannot connect to the proxy {error.host}:{error.port}: {_os_text(error.os_error)}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        wants = "the proxy wants a login: put it into the proxy's URL, http://USER:PASSWORD@HOST:PORT"
        return wants if error.status == 407 else f"the proxy refuses: {error.status} {_plain(error.message)}".rstrip()
    if _is_tls_alert(error):
        return "the server speaks TLS there: the URL must begin with https://"
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


# OpenSSL's words (X509_verify_cert_error_string) for what another trusted certificate would mend.
_UNKNOWN_ISSUER = (
    "self-signed certificate",
    "self-signed certificate in certificate chain",
    "unable to get local issuer certificate",
)


def _connect_text(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "")
        hint = "; --ca-file FILE adds one to those that are trusted" if why in _UNKNOWN_ISSUER else ""
        return "its TLS certificate is not valid" + (f": {why}" if why else "") + hint
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
