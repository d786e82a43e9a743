"""Servers that misbehave in every way known, and every row gets what is right.

Each case of bad_servers.py meets the first request, every other row, or all of them; asked for whole answers and for
streams; on uvloop and on asyncio's own loop. Each time a run of a few rows goes from file to file, several runs beside
each other on one loop. Some cases meet the real command in a process of its own, which must not grow.

Kept if each row has one line at most, with its own answer or an error of the right class and type; if it was sent as
often as allowed, its line keeps what came of a paid answer and the request ids, and the counts add up; if no key got
into anything, no connection was used again after an oddity, the run ended in time, and neither a task nor a descriptor
was left. Counted: the runs, the bad answers they got, and the largest memory of a command.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import json
import os
import random
import re
import shutil
import socket
import ssl
import tempfile
import time
import warnings
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
from calls.raw_server import KEY
from certificates import Authority, authority
from end_to_end.processes import COMMAND, read_lines, write_rows

import llmbatch
from campaigns.bad_servers import (
    CAP_BYTES,
    CASES,
    Answer,
    Case,
    Outcome,
    Part,
    Peer,
    Position,
    chunk,
    for_ever,
)
from campaigns.campaign import Report, progress
from llmbatch.events import AttemptFailed, Event, RowEnded
from llmbatch.machine import fast_loop
from llmbatch.options import RetryLimits, RunOptions, Timeouts
from llmbatch.records import Failure
from llmbatch.summary import Summary

ROWS = 4
AT_ONCE, SLOW_AT_ONCE = 12, 24
# How long a run may take beyond the time limits of its requests.
MARGIN_S = 5.0
LONG = Timeouts(connect_s=3.0, first_token_s=10.0, idle_s=10.0, total_s=10.0)
SHORT = Timeouts(connect_s=2.0, first_token_s=0.3, idle_s=0.3, total_s=0.8)
CONNECT_S = 0.1
RETRY = RetryLimits(attempts=3, ambiguous=1, base_s=0.005, cap_s=0.01, max_wait_s=0.15)
# Before a run gives up on a server that was never there, it tries four times.
PATIENT = replace(RETRY, max_wait_s=2.0)
CANARIES = (b"canary", KEY.encode().hex().encode(), b64encode(KEY.encode())[4:16])
# The gate's pauses and the cap are patched smaller: else a refused connection alone takes five seconds.
GATE_BASE_S, GATE_CAP_S = 0.005, 0.05


@dataclass(frozen=True)
class Variant:
    """One run: a case, whom it meets, and how answers are asked for."""

    case: Case
    at: Position
    stream: bool
    loop: str

    @property
    def name(self) -> str:
        return f"{self.case.name}, {self.at}, {'stream' if self.stream else 'whole'}, {self.loop}"

    @property
    def outcome(self) -> Outcome:
        outcome = self.case.stream if self.stream else self.case.plain
        assert outcome is not None
        return outcome


def variants() -> list[Variant]:
    """All there are, in an order in which each case comes once before any comes again.

    Which variant of a case comes first depends on its number, so that the beginning of the list has all kinds.
    """
    decks = []
    for number, case in enumerate(CASES):
        deck = [
            Variant(case, at, stream, loop)
            for loop in ("uvloop", "asyncio")
            for stream in (False, True)
            for at in case.at
            if (case.stream if stream else case.plain) is not None
        ]
        turn = number * 5 % len(deck)
        decks.append(deck[turn:] + deck[:turn])
    return [variant for turn in zip_longest(*decks) for variant in turn if variant is not None]


# The server


@dataclass(frozen=True)
class Asked:
    row: int
    connection: int
    at_s: float
    odd: bool
    id: str


class BadServer:
    """A server that misbehaves as ``variant`` says, and is good to everybody else. It keeps a diary."""

    def __init__(self, variant: Variant, tls: Authority | None, sink: str) -> None:
        self.variant, self.case, self.sink = variant, variant.case, sink
        self.asked: list[Asked] = []
        self.odd_connections = self.connections = 0
        self.wrong: list[str] = []
        self._spoilt: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls = _context(self.case.tls, tls) if self.case.tls and tls is not None else None
        self._fillers: list[socket.socket] = []
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._neighbour: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._begun = False

    @property
    def base_url(self) -> str:
        host = "127.0.0.1"
        if self.case.lookups:
            host = f"{'-'.join(self.case.name.split())}-{self.port}.example".lower()
        if self.case.proxy:
            return "https://api.example/v1"
        return f"{'https' if self.case.tls else 'http'}://{host}:{self.port}/v1"

    async def __aenter__(self) -> BadServer:
        if self.case.dead_neighbour:
            self._neighbour = socket.socket()
            self._neighbour.bind(("127.0.0.2", self.port))
            self._fill(self._neighbour)
        if self.case.listens == "full":
            self._fill(self._socket)
        elif self.case.listens == "now":
            await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for made in (*self._fillers, self._socket, *([self._neighbour] if self._neighbour else [])):
            made.close()

    async def listen(self) -> None:
        if not self._begun:
            self._begun = True
            tls = self._tls if self.case.speaks_tls else None
            self._server = await asyncio.start_server(
                self._connected, sock=self._socket.dup(), limit=2**25, backlog=100, ssl=tls
            )
            for filler in self._fillers:
                filler.close()

    def first_failed(self) -> None:
        """The run has noticed."""
        if self.variant.at == "first" and self.case.listens != "now":
            task = asyncio.get_running_loop().create_task(self.listen())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _fill(self, listener: socket.socket) -> None:
        """No further SYN is answered."""
        listener.listen(0)
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            self._fillers.append(filler)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._converse(self.connections, Peer(reader, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except RuntimeError as error:  # how uvloop says that a connection is closed
            if "closed" not in str(error):
                raise
        except Exception as error:
            self.wrong.append(f"the test's own server: {error!r}")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _converse(self, number: int, peer: Peer) -> None:
        if self.case.at_accept and self._is_odd(number - 1, number):
            self.odd_connections += 1
            await _play(self.case.script(Answer(0, False, "")), peer)
            return
        while start := await self._read(peer.reader):
            await self._answer(number, start, peer)

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """A request, or as much of it as says which row it is."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = int((re.search(rb"(?i)content-length: (\d+)", head) or [b"", b"0"])[1])
        if self.case.reads == "request":
            return head + await reader.readexactly(length)
        body = await reader.readexactly(min(length, 400))
        if not self._is_odd(len(self.asked), _row(body)):
            body += await reader.readexactly(length - len(body))
        return head + body

    async def _answer(self, number: int, request: bytes, peer: Peer) -> None:
        row = _row(request)
        odd = self.case.on_request and self._is_odd(len(self.asked), row)
        answer = Answer(row, self.variant.stream, f"req-{len(self.asked) + 1}", f"{self.base_url}/again", self.sink)
        self.asked.append(Asked(row, number, time.monotonic(), odd, answer.id))
        self._look_at(request, number)
        if odd:
            if self.case.closes:
                self._spoilt.add(number)
            await _play(self.case.script(answer), peer)
        else:
            headers = ["Connection: close"] if self.case.at_accept else []
            await _play((answer.whole(None, *headers),), peer)

    def _is_odd(self, before: int, number: int) -> bool:
        return {"first": before == 0, "mid": number % 2 == 0, "always": True}[self.variant.at]

    def _look_at(self, request: bytes, number: int) -> None:
        head = request.partition(b"\r\n\r\n")[0].lower()
        if number in self._spoilt:
            self.wrong.append("a connection was used again after an odd answer")
        if (f"authorization: bearer {KEY}".encode() in head) == self.case.proxy:
            self.wrong.append("the proxy got the key" if self.case.proxy else "a request without the key")
        if not self.case.proxy and any(
            name in head for name in (b"\r\nexpect:", b"\r\ncookie:", b"\r\naccept-encoding:")
        ):
            self.wrong.append("a request with a header that nobody wants")


def _row(request: bytes) -> int:
    found = re.search(rb'"row (\d+)', request)
    return int(found[1]) if found else 0


async def _play(parts: Sequence[Part], peer: Peer) -> None:
    for part in parts:
        if peer.writer.is_closing():
            return
        if isinstance(part, bytes):
            peer.writer.write(part)
            await peer.writer.drain()
        elif isinstance(part, float):
            await asyncio.sleep(part)
        else:
            await part(peer)


@cache
def _context(shown: str, tls: Authority) -> ssl.SSLContext:
    """What a server needs to show the certificate of that name."""
    if shown == "self-signed":
        return tls.self_signed()
    name = "DNS:elsewhere.example" if shown == "of another host" else "IP:127.0.0.1"
    return tls.server(name, days=-1 if shown == "expired" else 1)


# A run


@dataclass
class Ended:
    """What a run said and left."""

    summary: Summary | None
    lines: list[dict[str, Any]]
    failures: list[Failure]
    rows: dict[int, Failure | None]
    texts: bytes
    seconds: float
    error: str = ""


async def run(variant: Variant, directory: Path, server: BadServer, ca_file: Path | None) -> Ended:
    case, outcome = variant.case, variant.outcome
    heard: list[Event] = []
    ended: dict[int, Failure | None] = {}
    source = write_rows(directory / "in.jsonl", [{"prompt": f"row {n} {_padding(variant, n)}"} for n in rows_of(case)])

    def listen(event: Event) -> None:
        heard.append(event)
        if isinstance(event, AttemptFailed):
            server.first_failed()
        elif isinstance(event, RowEnded):
            ended[event.result.row] = event.result.failure

    options = RunOptions(
        input=str(source),
        output=str(directory / "out.jsonl"),
        model="m",
        base_url=server.base_url,
        allow_http=True,
        # A certificate of nobody's authority must be refused, whatever it says.
        ca_file=None if case.tls in ("", "self-signed", "of an unknown authority") else ca_file,
        concurrency=1 if outcome.fatal or case.pause_s or case.at_accept else 2,
        stream=variant.stream,
        timeouts=_timeouts(case),
        retry=PATIENT if outcome.kind == "never_sent" else RETRY,
        drain_s=1.0,
    )
    began_s = time.monotonic()
    summary, error = None, ""
    running = asyncio.ensure_future(llmbatch.arun(options, listen=listen))
    patience_s = MARGIN_S + (ROWS * 2 * SHORT.total_s if case.slow else 0) + ROWS * RETRY.max_wait_s
    done, _ = await asyncio.wait({running}, timeout=patience_s)
    if not done:
        running.cancel()
        await asyncio.wait({running})
        error = f"still running after {patience_s:.1f} s"
    elif (mistake := running.exception()) is not None:
        error = f"it raised {mistake!r}"
    else:
        summary = running.result()
    files = [path for path in sorted(directory.iterdir()) if path != source]
    lines = [line for path in files if path.suffix in (".jsonl", ".partial") for line in read_lines(path)]
    texts = repr(heard).encode() + b"".join(path.read_bytes() for path in files)
    if summary is not None:
        texts += json.dumps(summary.to_json()).encode() + repr(summary).encode()
    failures = [event.failure for event in heard if isinstance(event, AttemptFailed)]
    return Ended(summary, lines, failures, ended, texts, time.monotonic() - began_s, error)


def _timeouts(case: Case) -> Timeouts:
    if not case.slow:
        return LONG
    return SHORT if case.on_request else replace(SHORT, connect_s=CONNECT_S)


def rows_of(case: Case) -> range:
    return range(1, (2 if case.prompt_bytes or case.slow else ROWS) + 1)


def _padding(variant: Variant, row: int) -> str:
    """Of the rows that meet the case only."""
    meets = {"first": row == 1, "mid": row % 2 == 0, "always": True}[variant.at]
    return "x" * variant.case.prompt_bytes if meets else ""


# What is right


def judge(variant: Variant, server: BadServer, ended: Ended) -> Iterator[str]:
    """What is not as it ought to be."""
    yield from server.wrong
    if any(canary in ended.texts for canary in CANARIES):
        yield "the key got out"
    if ended.error or ended.summary is None:
        yield ended.error
        return
    yield from _judge_counts(variant, ended.summary, ended.lines)
    yield from _judge_failures(variant, server, ended)
    for line in ended.lines:
        yield from _judge_line(variant, server, line)
    yield from _judge_end(variant, server, ended)
    if variant.case.pause_s:
        yield from _judge_pauses(variant.case.pause_s, server.asked)


def _judge_counts(variant: Variant, summary: Summary, lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = len(rows_of(variant.case))
    if not summary.adds_up or (summary.input_complete and summary.rows != rows):
        yield f"the counts do not add up: {summary}"
    states = Counter(line["status"] for line in lines)
    if (states["ok"], states["error"]) != (summary.ok, summary.failed):
        yield f"counted {summary.ok} ok and {summary.failed} failed, but the lines are {dict(states)}"
    if len({line["row"] for line in lines}) != len(lines):
        yield "a row has two lines"


def _judge_failures(variant: Variant, server: BadServer, ended: Ended) -> Iterator[str]:
    outcome, case = variant.outcome, variant.case
    for failure in (*ended.failures, *(failure for failure in ended.rows.values() if failure is not None)):
        if outcome.kind == "ok":
            yield f"a failure where none ought to be: {failure.kind} {failure.type}: {failure.message}"
        elif (failure.kind, True) != (outcome.kind, failure.type in outcome.words.split("|")):
            yield f"{failure.kind} {failure.type}, not {outcome.kind} {outcome.words}: {failure.message}"
    if outcome.says and outcome.says.encode() not in ended.texts:
        yield f"nothing says {outcome.says!r}"
    if outcome.kind == "ok":
        return
    met = server.odd_connections if case.at_accept else sum(asked.odd for asked in server.asked)
    if met and not case.slow and not case.tls and len(ended.failures) != met:
        yield f"{met} odd answers, but {len(ended.failures)} failures were told"
    if not ended.failures:
        yield "no failure was told"


def _judge_line(variant: Variant, server: BadServer, line: dict[str, Any]) -> Iterator[str]:
    outcome, case, row = variant.outcome, variant.case, line["row"]
    asked = [one for one in server.asked if one.row == row]
    tries = [one for one in asked if one.odd]
    odd_last = bool(asked) and asked[-1].odd
    if case.on_request and outcome.kind != "never_sent" and line["attempts"] != len(asked):
        yield f"row {row}: asked {len(asked)} times, but {line['attempts']} attempts"
    if case.on_request and outcome.kind != "ok":
        if outcome.tries is not None and len(tries) > outcome.tries:
            yield f"row {row}: sent {len(tries)} times, allowed are {outcome.tries}"
        if line.get("ambiguous", 0) != (len(tries) if outcome.maybe_billed else 0):
            yield f"row {row}: ambiguous {line.get('ambiguous')}, but {len(tries)} odd answers"
    ids = [one.id for one in asked if case.has_id or not one.odd]
    if (case.has_id or not odd_last) and ids and line["request_id"] != ids[-1]:
        yield f"row {row}: request_id {line['request_id']}, not {ids[-1]}"
    if line["attempts"] > 1 and line["request_ids"] != ids:
        yield f"row {row}: request_ids {line['request_ids']}, not {ids}"
    answer = Answer(row, variant.stream, ids[-1] if ids else "")
    if line["status"] == "ok":
        yield from _judge_answer(outcome if odd_last else Outcome("ok"), answer, line)
    else:
        yield from _judge_error(outcome, answer, line, len(tries))


def _judge_answer(outcome: Outcome, answer: Answer, line: dict[str, Any]) -> Iterator[str]:
    output = answer.text if outcome.output is None else outcome.output(answer)
    if line["output"] != output:
        yield f"row {answer.row}: its answer is {str(line['output'])[:80]!r}, not {output[:80]!r}"
    for name, value in outcome.line.items():
        given = line.get(name)
        if isinstance(value, dict):
            given = {inner: given.get(inner) for inner in value} if isinstance(given, dict) else given
        if given != value:
            yield f"row {answer.row}: {name} is {given!r}, not {value!r}"


def _judge_error(outcome: Outcome, answer: Answer, line: dict[str, Any], tries: int) -> Iterator[str]:
    error, row = line["error"], answer.row
    if error["maybe_billed"] != outcome.maybe_billed:
        yield f"row {row}: maybe_billed {error['maybe_billed']}"
    if tries and outcome.tries is not None and tries != outcome.tries:
        yield f"row {row}: given up after {tries} tries, not {outcome.tries}"
    body = b64decode(error["body_b64"]) if "body_b64" in error else (error["body"] or "").encode()
    if outcome.keeps is not None and outcome.keeps(answer) not in body:
        yield f"row {row}: of what came it keeps {body[:80]!r} ({len(body)} bytes), not {outcome.keeps(answer)[:80]!r}"
    if outcome.so_far is not None and not error.get("output_so_far", "").startswith(outcome.so_far):
        yield f"row {row}: output_so_far {error.get('output_so_far')!r}, not {outcome.so_far!r}"


def _judge_end(variant: Variant, server: BadServer, ended: Ended) -> Iterator[str]:
    """How many rows are ok, and the exit code."""
    summary, outcome, rows = ended.summary, variant.outcome, len(rows_of(variant.case))
    assert summary is not None
    meets = {"first": 1, "mid": rows // 2, "always": rows}[variant.at]
    mended = outcome.kind == "ok" or (variant.at == "first" and outcome.tries != 1)
    if variant.case.at_accept and variant.at == "mid":
        if summary.ok + summary.failed != rows:
            yield f"{summary.ok} ok and {summary.failed} failed of {rows}"
        return
    if variant.at == "always" and (outcome.fatal or outcome.gives_up):
        if summary.exit_code != 3 or summary.ok or (summary.pending == 0 and summary.rows > 3):
            yield f"exit {summary.exit_code}, {summary.ok} ok, {summary.failed} failed, {summary.pending} pending"
        if summary.failed > 3 or (outcome.gives_up and summary.failed):
            yield f"{summary.failed} rows failed before it gave up"
        return
    expected = (rows, 0) if mended else (rows - meets, meets)
    if (summary.ok, summary.failed, summary.pending) != (*expected, 0):
        yield f"{summary.ok} ok, {summary.failed} failed, {summary.pending} pending; not {expected}"
    if summary.exit_code != (1 if expected[1] else 0):
        yield f"exit {summary.exit_code}"


def _judge_pauses(pause_s: float, asked: Sequence[Asked]) -> Iterator[str]:
    for before, after in pairwise(asked):
        if before.odd and after.at_s - before.at_s < pause_s - 0.002:  # uvloop counts in milliseconds
            yield f"asked again {after.at_s - before.at_s:.3f} s after a 429 that wanted {pause_s:g} s"


# Many runs


@contextmanager
def surroundings() -> Iterator[None]:
    """The key in the environment, short pauses, a small cap; a name service that knows the cases' names."""
    real = aiohttp.ThreadedResolver.resolve

    async def resolve(self: Any, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:
        if not host.endswith(".example"):
            return await real(self, host, port, family)
        said = NAMES[host].pop(0) if len(NAMES[host]) > 1 else NAMES[host][0]
        if said is None:
            await asyncio.sleep(CONNECT_S + 0.05)
            said = socket.EAI_AGAIN
        if not isinstance(said, str):
            raise socket.gaierror(said, "as the name service says")
        return [
            {"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for address in said.split()
        ]

    environment = {"OPENAI_API_KEY": KEY}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(mock.patch("aiohttp.ThreadedResolver.resolve", resolve))
        stack.enter_context(mock.patch("llmbatch.rules.gate.PAUSES_S", (GATE_BASE_S, GATE_CAP_S)))
        for pause in ("SURE_PAUSE_S", "UNSURE_PAUSE_S", "FIRST_PAUSE_S"):
            stack.enter_context(mock.patch(f"llmbatch.rules.finder.{pause}", GATE_BASE_S))
        stack.enter_context(mock.patch("llmbatch.calls.received.MAX_BODY_BYTES", CAP_BYTES))
        stack.callback(NAMES.clear)
        yield


# Host -> what the name service says of it, one after the other.
NAMES: dict[str, list[str | int | None]] = {}


@asynccontextmanager
async def sink_server() -> AsyncIterator[tuple[str, list[int]]]:
    """Another origin: its address, and the connections it got."""
    came: list[int] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(1)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions", came
    finally:
        server.close()
        await server.wait_closed()


async def one(variant: Variant, directory: Path, tls: Authority | None) -> tuple[int, list[str]]:
    """How many odd answers it met, and what was wrong."""
    directory.mkdir()
    case = variant.case
    async with AsyncExitStack() as stack:
        sink, came = await stack.enter_async_context(sink_server())
        server = await stack.enter_async_context(BadServer(variant, tls, sink))
        if case.lookups:
            host = server.base_url.split("/")[2].partition(":")[0]
            NAMES[host] = [*case.lookups, *(["127.0.0.1"] if variant.at == "first" else [])]
        if case.proxy:
            proxy = {"HTTPS_PROXY": f"http://127.0.0.1:{server.port}", "NO_PROXY": "", "no_proxy": ""}
            stack.enter_context(mock.patch.dict(os.environ, proxy))
        ended = await run(variant, directory, server, None if tls is None else tls.ca_file)
        wrong = list(judge(variant, server, ended))
    if came:
        wrong.append("somebody asked the address of the redirect")
    shutil.rmtree(directory)
    return sum(asked.odd for asked in server.asked) + server.odd_connections, list(dict.fromkeys(wrong))


def said_by_the_loop(context: Mapping[str, Any]) -> list[str]:
    """What a loop reports, but for the servers' own connections that break: asyncio's streams ask for that exception
    in ``StreamReaderProtocol.__del__``, which the garbage collector may call after the future's own ``__del__``."""
    error = context.get("exception")
    if isinstance(error, ConnectionError) and type(error).__module__ == "builtins" and "task" not in context:
        return []
    return [f"the loop says: {context['message']}: {error!r} {context.get('future')!r}"]


async def together(
    batch: Sequence[Variant], root: Path, tls: Authority | None, odd: Callable[[int], None]
) -> list[tuple[str, str]]:
    """Some runs beside each other on one loop, which must leave nothing on it."""
    mistakes: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: mistakes.extend(said_by_the_loop(context)))
    outcomes = await asyncio.gather(*(one(variant, root / str(n), tls) for n, variant in enumerate(batch)))
    found = [(variant.name, wrong) for variant, (_, all_) in zip(batch, outcomes, strict=True) for wrong in all_]
    for met, _ in outcomes:
        odd(met)
    for _ in range(20):
        if len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)
    left = [str(task.get_coro()) for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    gc.collect()
    mistakes += [f"a task is left: {task}" for task in left]
    return found + [(" | ".join(variant.name for variant in batch), mistake) for mistake in mistakes]


def batches(chosen: Sequence[Variant]) -> Iterator[list[Variant]]:
    """By loop; those that want to be alone are."""
    for loop in ("uvloop", "asyncio"):
        mine = [variant for variant in chosen if variant.loop == loop]
        yield from ([variant] for variant in mine if variant.case.alone)
        # Those that wait for time limits are beside each other: then they wait together.
        for slow in (False, True):
            rest = [variant for variant in mine if not variant.case.alone and variant.case.slow == slow]
            size = SLOW_AT_ONCE if slow else AT_ONCE
            yield from (rest[at : at + size] for at in range(0, len(rest), size))


def _descriptors() -> set[str]:
    links = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return links


def run_batch(
    batch: Sequence[Variant], root: Path, tls: Authority | None, odd: Callable[[int], None]
) -> list[tuple[str, str]]:
    root.mkdir()
    factory = fast_loop() if batch[0].loop == "uvloop" else asyncio.SelectorEventLoop
    names = " | ".join(variant.name for variant in batch)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.sleep(0))  # uvloop keeps some pipes from its first loop on
    before = _descriptors()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=factory) as runner:
            found = runner.run(together(batch, root, tls, odd))
        gc.collect()
    found += [(names, f"warning: {warning.message}") for warning in warned]
    if left := _descriptors() - before:
        found.append((names, f"left open: {', '.join(sorted(left))}"))
    return found


def confirmed(
    found: Sequence[tuple[str, str]], batch: Sequence[Variant], root: Path, tls: Authority | None
) -> list[tuple[str, str]]:
    """What is found again by the same runs alone: a busy machine may be late for limits of a fraction of a second."""
    names = {name for name, _ in found}
    again = [variant for variant in batch if variant.name in names]
    others = [one for one in found if one[0] not in {variant.name for variant in again}]
    return others + [
        one
        for n, variant in enumerate(again)
        for one in run_batch([variant], Path(f"{root} {n}"), tls, lambda met: None)
    ]


# The real command


@dataclass(frozen=True)
class Flood:
    """What would fill the memory of a careless client; ``flags`` and the types that its line may have."""

    name: str
    head: bytes
    act: Callable[[Peer], Any] | None
    words: str
    flags: tuple[str, ...] = ()


def _flood_head(*headers: bytes, kind: bytes = b"application/json") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Type: " + kind, *headers, b"", b""])


@cache
def _bomb() -> bytes:
    packed = gzip.compress(bytes(2**28))
    return _flood_head(b"Content-Encoding: gzip", b"Content-Length: %d" % len(packed)) + packed


_CHUNKS = _flood_head(b"Transfer-Encoding: chunked")
_SSE = _flood_head(b"Transfer-Encoding: chunked", kind=b"text/event-stream")
_QUICK = ("--timeout", "1")
BLOCK = b"x" * 2**18
_HEADERS = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(40_000)) + b"\r\n"
_TOKENS = chunk(b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % BLOCK)
FLOODS = (
    Flood("31 chunks without end", _CHUNKS, for_ever(chunk(BLOCK)), "answer_too_large"),
    Flood("31 chunks of one byte", _CHUNKS, for_ever(chunk(b"x") * 2**13), "timeout", _QUICK),
    Flood("33 body of 10 GB", _flood_head(b"Content-Length: 10000000000"), for_ever(BLOCK), "answer_too_large"),
    Flood("34 gzip bomb", b"", None, "answer_too_large"),
    Flood("39 header without end", b"HTTP/1.1 200 OK\r\nX: ", for_ever(BLOCK), "bad_http"),
    Flood("40 40,000 headers", _HEADERS, None, "bad_http"),
    Flood("42 status line without end", b"HTTP/1.1 200 ", for_ever(BLOCK), "bad_http"),
    Flood("44 1xx flood", b"", for_ever(b"HTTP/1.1 102 Processing\r\n\r\n" * 1_000), "bad_http"),
    Flood("76 event without end", _SSE, for_ever(chunk(b"data: " + BLOCK)), "answer_too_large", ("--stream",)),
    Flood("76 tokens without end", _SSE, for_ever(_TOKENS), "answer_too_large", ("--stream",)),
)
MOST_MEMORY_KB = 200 * 1024


async def flood(flood: Flood, directory: Path) -> tuple[int, list[str]]:
    """The largest memory of the command, in KB, and what was wrong. It has one row."""
    directory.mkdir()
    asked = 0
    tasks = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        tasks.add(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            asked += 1
            await _play(((flood.head or _bomb()) if flood.act is None else flood.head,), Peer(reader, writer))
            await (flood.act or _until_gone)(Peer(reader, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    source = write_rows(directory / "in.jsonl", [{"prompt": "row 1"}])
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "OPENAI_API_KEY": KEY}
    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        began_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "run", str(source), "-o", str(directory / "out.jsonl"), "-m", "m", "--base-url", url,
            *flood.flags, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        reading = asyncio.ensure_future(process.communicate())
        most_kb = 0
        while not reading.done() and time.monotonic() - began_s < 30:
            most_kb = max(most_kb, _peak_kb(process.pid))
            await asyncio.wait({reading}, timeout=0.02)
        if not reading.done():
            process.kill()
        _, told = await reading
        seconds = time.monotonic() - began_s
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    wrong = []
    limit_s = MARGIN_S + (2 * float(flood.flags[1]) if flood.flags[:1] == ("--timeout",) else 0)
    lines = read_lines(directory / "out.jsonl") if (directory / "out.jsonl").exists() else []
    if [line.get("error", {}).get("type") in flood.words.split("|") for line in lines] != [True]:
        wrong.append(f"exit {process.returncode}, lines {str(lines)[:300]}, {told.decode()[-300:]}")
    if any(canary in told + b"".join(map(str.encode, map(str, lines))) for canary in CANARIES):
        wrong.append("the key got out")
    if asked != 2:
        wrong.append(f"asked {asked} times, not 2")
    if most_kb > MOST_MEMORY_KB:
        wrong.append(f"it took {most_kb / 1024:.0f} MiB of memory")
    if seconds > limit_s:
        wrong.append(f"it took {seconds:.1f} s")
    return most_kb, wrong


async def _until_gone(peer: Peer) -> None:
    await peer.reader.read()


def _peak_kb(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


LONG_RUNS = len(variants()) + len(FLOODS)
SHORT_RUNS = len(CASES) + 3


def campaign(runs: int, seed: int, case: str | None = None) -> Report:
    """As many of the variants and floods as asked for, each case before any comes again."""
    report, chance = Report(), random.Random(seed)
    chosen = [variant for variant in variants() if case is None or case in variant.name]
    floods = [flood for flood in FLOODS if case is None or case in flood.name]
    floods = chance.sample(floods, min(len(floods), max(runs - len(CASES), 0)))
    chosen = chosen[: runs - len(floods)]
    again = f"python tests/campaigns servers --seed {seed} --case"
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(surroundings())
        tls = _authority(root)
        if tls is None:
            report.counted["cases left out for want of openssl"] = sum(bool(one.case.tls) for one in chosen)
            chosen = [one for one in chosen if not one.case.tls]
        planned = list(batches(chosen))
        for number, batch in enumerate(planned):
            progress(number, len(planned), every=20)
            found = run_batch(batch, root / str(number), tls, lambda met: report.count("bad answers", met))
            if batch[0].case.slow:
                found = confirmed(found, batch, root / f"{number} again", tls)
            report.broken += [f"{name}: {wrong}. {again} '{name.split(' | ')[0]}'" for name, wrong in found]
            report.runs += len(batch)
        for number, one in enumerate(floods):
            most_kb, wrong = asyncio.run(flood(one, root / f"flood{number}"))
            report.most("MiB at most", most_kb // 1024)
            report.broken += [f"{one.name}: {what}. {again} '{one.name}'" for what in wrong]
            report.runs += 1
    return report


def _authority(root: Path) -> Authority | None:
    if shutil.which("openssl") is None:
        return None
    (root / "tls").mkdir()
    return authority(root / "tls")
