"""One key, known and nobody else's, goes through everything; afterwards it must be nowhere but in the requests.

Keys of several shapes, given in each way there is, go with real commands to a server that repeats them in every way it
knows: in messages, codes, headers, status lines, broken HTTP, web pages, bodies that are no text, packed or cut, in all
spellings that rules/redact.py knows, in good answers, and in streams split anywhere. Every display, each kind of
output, kills, a full disk, torn tails, damaged lines, planted bugs, Python's own reports and debug modes have their
turn; redirects, proxies and other ports lead to a sink, which writes down each byte it gets.

Then everything that was left or said is searched: screens, each file in the working, state, home and temporary
directories, the command line and environment of processes; as it is, with its escapes undone, without NUL bytes, and
for all pieces of eight characters of the key, of its base64 at three offsets, and of its hex.

Kept if there is no hit, the sink got no key and no prompt, and the artefacts are there to be searched. Counted: the
commands, echoes and artefacts; and the places that held the key when the same was done without the scrubber, of which
there must be many, or the search could not find anything.
"""

from __future__ import annotations

import asyncio
import gzip
import html
import json
import os
import pty
import random
import re
import resource
import select
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import threading
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from calls.raw_server import http, read_request
from end_to_end.processes import COMMAND, until, whole_lines
from end_to_end.test_secrets import DRIVER, SOURCES

from campaigns.campaign import Report, progress

AT_ONCE = 2
PATIENCE_S = 40.0
PIECE_CHARS = 8
FULL_DISK_BYTES = 30_000
MOST_TOLD = 40
# Without the scrubber at least so many places have to hold the key.
FEWEST_PLACES = 20

# The keys

_PUBLIC = {"long": "sk-proj-", "short": "sk-", "dirty": "k", "padded": "gsk_", "plain": ""}
SOURCES_OF_KEYS = ("variable", "--key-env", "--key-file")


def make_key(shape: str, chance: random.Random) -> str:
    """``long`` as OpenAI's; ``dirty`` has all that some encoding escapes."""
    letters = string.ascii_letters + string.digits
    if shape == "long":
        secret = "".join(chance.choices(letters + "-_", k=156))
    elif shape == "dirty":
        marks = list("+/=&<>\"'\\%" * 2)
        chance.shuffle(marks)
        secret = "".join(f"{''.join(chance.choices(letters, k=2))}{mark}" for mark in marks)
    elif shape == "padded":
        secret = b64encode(chance.randbytes(31)).decode()
    else:
        secret = "".join(chance.choices(letters, k=17 if shape == "short" else 32))
    return _PUBLIC[shape] + secret


# How it is repeated

Spell = Callable[[str], str]
SPELLINGS: dict[str, Spell] = {
    "exact": lambda key: key,
    "json": lambda key: json.dumps(key)[1:-1].replace("/", "\\/"),
    "json in json": lambda key: json.dumps(json.dumps(key))[3:-3],
    "unicode escapes": lambda key: "".join(f"\\u{ord(char):04x}" for char in key),
    "hex escapes": lambda key: "".join(f"\\x{ord(char):02X}" for char in key),
    "repr": lambda key: repr(key)[1:-1],
    "url": lambda key: quote(key, safe=""),
    "url, small": lambda key: re.sub("%..", lambda found: found[0].lower(), quote(key, safe="")),
    "url plus": quote_plus,
    "url twice": lambda key: quote(quote(key, safe=""), safe=""),
    "url, all of it": lambda key: "".join(f"%{ord(char):02x}" for char in key),
    "html": html.escape,
    "html, numbers": lambda key: "".join(f"&#{ord(char)};" for char in key),
    "html, hex": lambda key: "".join(f"&#x{ord(char):x};" for char in key),
    "hex": lambda key: key.encode().hex(),
    "HEX": lambda key: key.encode().hex().upper(),
    "base64": lambda key: b64encode(key.encode()).decode(),
    "base64 of the header": lambda key: b64encode(f"Bearer {key}".encode()).decode(),
    "base64 of a login": lambda key: b64encode(f"u:{key}".encode()).decode(),
    "base64 for urls": lambda key: urlsafe_b64encode(key.encode()).decode(),
}


@dataclass(frozen=True)
class Echo:
    """One way to repeat ``key``: all bytes of an answer. ``fatal`` ones end a run; ``stream`` ones are streams."""

    name: str
    answer: Callable[[str, str], bytes]
    fatal: bool = False
    stream: bool = False
    closes: bool = False


def _error(message: str, **more: str) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


def _good(key: str, **changes: Any) -> bytes:
    """An answer with ``key`` at the place that is changed."""
    message = {"role": "assistant", "content": "pong", **changes.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **changes.pop("choice", {})}
    return json.dumps(
        {"id": key, "model": "m1", "choices": [choice], "usage": {"prompt_tokens": 3}, **changes}
    ).encode()


def _tool(key: str) -> dict[str, Any]:
    """Arguments are JSON in a text, in which a good answer is not searched for more than the key as it is."""
    arguments = json.dumps({"a": key}) if json.dumps(key) == f'"{key}"' else key
    return {"id": key, "type": "function", "function": {"name": key, "arguments": arguments}}


def _event(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"model": "m1", "choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


_FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
_SEE = "text/event-stream"


def _streamed(*parts: bytes, headers: tuple[str, ...] = ()) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {_SEE}", "Transfer-Encoding: chunked", *headers])
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return head.encode("latin-1") + b"\r\n\r\n" + chunks + b"0\r\n\r\n"


def _split(key: str, size: int) -> list[str]:
    return [key[start : start + size] for start in range(0, len(key), size)]


@cache
def echoes() -> tuple[Echo, ...]:
    """All of them, in an order in which kinds alternate."""
    made = [*_spelled(), *_odd(), *_good_answers(), *_streams(), *_fatal()]
    random.Random(0).shuffle(made)
    return tuple(made)


def _spelled() -> Iterator[Echo]:
    """What holds in every spelling."""
    for name, spell in SPELLINGS.items():

        def said(key: str, spell: Spell = spell) -> str:
            return f"Wrong key '{spell(key)}' given"

        def add(
            place: str, answer: Callable[[str, str], bytes], said: Callable[[str], str] = said, name: str = name
        ) -> Echo:
            return Echo(f"{place}: {name}", lambda key, _: answer(key, said(key)))

        yield add("message", lambda k, s: http(_error(s), "400 Bad Request"))
        yield add("plain 400", lambda k, s: http(s.encode(), "400 Bad Request"))
        yield add("page 502", lambda k, s: http(f"<html><p>{s}</p>".encode(), "502 Bad Gateway"))
        yield add("error with 200", lambda k, s: http(_error(s)))
        yield add("no choices", lambda k, s: http(json.dumps({"echo": s}).encode()))
        yield add("no JSON", lambda k, s: http(f'{{"echo": "{s}'.encode()))
        yield add("no text", lambda k, s: http(b"\xff\xfe" + s.encode() + b"\x80\xc3"))
        yield add("gzip 500", lambda k, s: http(gzip.compress(_error(s)), "500 Oops", "Content-Encoding: gzip"))
        yield add("gzip, no JSON", lambda k, s: http(gzip.compress(s.encode()), "200 OK", "Content-Encoding: gzip"))
        yield add("request id 400", lambda k, s: http(_error("no"), "400 Bad Request", f"x-request-id: {s[11:-7]}"))
        yield add("code", lambda k, s: http(_error("no", code=s[11:-7]), "422 Unprocessable"))
        yield add("type", lambda k, s: http(_error("no", type=s[11:-7]), "418 Teapot"))
        yield Echo(
            f"error in a stream: {name}",
            lambda key, _, said=said: _streamed(_event(content="a"), b"data: " + _error(said(key)) + b"\n\n"),  # type: ignore[misc]
            stream=True,
        )


def _odd() -> Iterator[Echo]:
    """Answers that are no HTTP, cut, or say it where nobody looks."""
    for status in ("500 Oops", "503 Busy", "409 Conflict", "413 Large", "451 No"):
        yield Echo(f"status {status}", lambda key, _, s=status: http(_error(key), f"{s} {key}"))  # type: ignore[misc]
    for name in ("Location", "Retry-After", "Set-Cookie", "Server", "x-generation-id", "Date", "x-should-retry"):
        header = f"{name}: {{}}"
        yield Echo(name, lambda key, _, h=header: http(_error("no"), "500 Oops", h.format(key)))  # type: ignore[misc]
    yield Echo("request id, good", lambda key, _: http(_good("i"), "200 OK", f"x-request-id: {key}"))
    broken: dict[str, Callable[[str], bytes]] = {
        "status line": lambda key: f"{key}\r\n\r\n".encode(),
        "status": lambda key: f"HTTP/1.1 {key} OK\r\n\r\n".encode(),
        "header": lambda key: f"HTTP/1.1 200 OK\r\n{key}\r\n\r\n".encode(),
        "header name": lambda key: f"HTTP/1.1 200 OK\r\n({key}): a\r\n\r\n".encode(),
        "header NUL": lambda key: f"HTTP/1.1 200 OK\r\nA: {key}\0\r\n\r\n".encode(),
        "length": lambda key: f"HTTP/1.1 200 OK\r\nContent-Length: {key}\r\n\r\n".encode(),
        "encoding": lambda key: http(_good("i"), "200 OK", f"Content-Encoding: {key}"),
        "transfer": lambda key: f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {key}\r\n\r\n".encode(),
        "content type": lambda key: f"HTTP/1.1 200 OK\r\nContent-Type: {key}\r\nContent-Length: 2\r\n\r\nhi".encode(),
        "charset": lambda key: f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={key}\r\n\r\nhi".encode(),
        "chunk size": lambda key: f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{key}\r\n".encode(),
        "long header": lambda key: f"HTTP/1.1 200 OK\r\nA: {'a' * 9000}{key}\r\n\r\n".encode(),
    }
    for name, answer in broken.items():
        yield Echo(f"broken {name}", lambda key, _, a=answer: a(key), closes=True)  # type: ignore[misc]
    for part in (0.3, 0.5, 0.9, 1.0):
        for spelling in ("exact", "url", "hex", "base64", "unicode escapes"):

            def cut(key: str, part: float = part, spell: Spell = SPELLINGS[spelling]) -> bytes:
                return f"Wrong key: {spell(key)[: int(len(spell(key)) * part)]}".encode()

            where = f"cut at {part}: {spelling}"
            yield Echo(f"200 {where}", lambda key, _, c=cut: http(c(key), length=9999), closes=True)  # type: ignore[misc]
            yield Echo(f"400 {where}", lambda key, _, c=cut: http(_error(c(key).decode()), "400 Bad"))  # type: ignore[misc]
            yield Echo(
                f"masked {where}",
                lambda key, _, c=cut: http(_error(f"{c(key).decode()}***"), "400 Bad"),  # type: ignore[misc]
            )
    for start in (4060, 4080, 90, 100, 115, 195):
        yield Echo(
            f"at our own cut {start}",
            lambda key, _, n=start: http(b"x" * n + key.encode() + b"x" * 99, "400 Bad"),  # type: ignore[misc]
        )
        yield Echo(
            f"code at our own cut {start}",
            lambda key, _, n=start: http(_error("x" * n + key, code="c" * n + key), "400 Bad"),  # type: ignore[misc]
        )


def _good_answers() -> Iterator[Echo]:
    """Only the key as it is: these are the model's words."""
    places: dict[str, Callable[[str], dict[str, Any]]] = {
        "output": lambda key: {"message": {"content": f"it is {key}, {key}."}},
        "refusal": lambda key: {"message": {"refusal": key}},
        "reasoning": lambda key: {"message": {"reasoning_content": f"a{key}b"}},
        "tools": lambda key: {"message": {"content": None, "tool_calls": [_tool(key)]}},
        "finish reason": lambda key: {"choice": {"finish_reason": key}},
        "logprobs": lambda key: {"choice": {"logprobs": {key: [key]}}},
        "model": lambda key: {"model": key},
        "service tier": lambda key: {"service_tier": key},
        "fingerprint": lambda key: {"system_fingerprint": key},
        "usage": lambda key: {"usage": {"prompt_tokens": key, key: 1, "completion_tokens_details": {key: key}}},
        "usage as text": lambda key: {"usage": key},
        "content that is no text": lambda key: {"message": {"content": [key]}},
        "error of a choice": lambda key: {"choice": {"error": {"message": key, "code": key}}},
        "empty": lambda key: {"choices": [key]},
    }
    for name, place in places.items():
        yield Echo(f"good, {name}", lambda key, _, p=place: http(_good(key, **p(key))))  # type: ignore[misc]


def _streams() -> Iterator[Echo]:
    for size in (1, 2, 7, 9, 13, 999):
        for name in ("content", "reasoning_content", "refusal"):

            def parts(key: str, size: int = size, name: str = name) -> list[bytes]:
                return [_event(**{name: piece}) for piece in _split(key, size)]

            where = f"stream of {name} by {size}"
            yield Echo(where, lambda key, _, p=parts: _streamed(*p(key), _FINISH), stream=True)  # type: ignore[misc]
            yield Echo(f"{where}, cut", lambda key, _, p=parts: _streamed(*p(key)), stream=True)  # type: ignore[misc]
            yield Echo(
                f"{where}, cut in the key",
                lambda key, _, p=parts: _streamed(*p(key)[: -len(p(key)) // 2]),  # type: ignore[misc]
                stream=True,
            )
            yield Echo(
                f"{where}, and a comment",
                lambda key, _, p=parts: _streamed(f": {key}\n\n".encode(), *p(key)),  # type: ignore[misc]
                stream=True,
            )
        for name in ("name", "arguments"):

            def calls(key: str, size: int = size, name: str = name) -> list[bytes]:
                return [
                    _event(tool_calls=[{"index": 0, "id": "i", "function": {name: piece}}])
                    for piece in _split(key, size)
                ]

            where = f"stream of a tool's {name} by {size}"
            yield Echo(where, lambda key, _, c=calls: _streamed(*c(key), _FINISH), stream=True)  # type: ignore[misc]
            yield Echo(f"{where}, cut", lambda key, _, c=calls: _streamed(*c(key)), stream=True)  # type: ignore[misc]
        for start in range(1, 30, 7):

            def packets(key: str, size: int = size, start: int = start) -> list[bytes]:
                whole = _event(content="a" * start + key) + _FINISH
                return [whole[at : at + size] for at in range(0, len(whole), size)]

            yield Echo(
                f"stream in packets of {size} from {start}",
                lambda key, _, p=packets: _streamed(*p(key)),  # type: ignore[misc]
                stream=True,
            )
    odd: dict[str, Callable[[str], bytes]] = {
        "no JSON": lambda key: f"data: {key}\n\n".encode(),
        "event name": lambda key: f"event: {key}\ndata: {{\n\n".encode(),
        "cut event": lambda key: f'data: {{"choices":[{{"delta":{{"content":"{key}'.encode(),
        "usage": lambda key: b"data: " + json.dumps({"usage": {key: key}, "model": key}).encode() + b"\n\n" + _FINISH,
        "finish": lambda key: b"data: " + json.dumps({"choices": [{"finish_reason": key}]}).encode() + b"\n\n",
        "error word": lambda key: b"data: " + json.dumps({"error": key}).encode() + b"\n\n",
    }
    for name, answer in odd.items():
        yield Echo(f"stream, {name}", lambda key, _, a=answer: _streamed(a(key)), stream=True)  # type: ignore[misc]


def _fatal() -> Iterator[Echo]:
    """What ends a run; one of them meets a run that has no other."""
    for status in ("401 Unauthorized", "402 Payment Required", "403 Forbidden", "404 Not Found"):
        for name, spell in SPELLINGS.items():
            yield Echo(
                f"{status}: {name}",
                lambda key, _, s=spell, c=status: http(_error(f"no access, key {s(key)}", code="x"), c),  # type: ignore[misc]
                fatal=True,
            )
    for code in (301, 302, 303, 307, 308):
        for name, spell in SPELLINGS.items():

            def moved(key: str, sink: str, code: int = code, spell: Spell = spell) -> bytes:
                return http(_error(key), f"{code} Moved", f"Location: {sink}/{spell(key)}?key={key}")

            yield Echo(f"redirect {code}: {name}", moved, fatal=True)
    yield Echo(
        "429 for a day",
        lambda key, _: http(_error(key, code=key), "429 Slow", "Retry-After: 99999", f"Retry-After: {key}"),
        fatal=True,
    )


# The servers


class Servers:
    """The one that repeats keys, and the sink; on one loop in a thread of their own."""

    def __init__(self) -> None:
        self.sunk = bytearray()
        self._ports: list[int] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Servers:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}/v1"

    @property
    def sink(self) -> str:
        return f"http://127.0.0.2:{self._ports[1]}"

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        good = await asyncio.start_server(self._good, "127.0.0.1", 0, limit=2**24)
        sink = await asyncio.start_server(self._sink, "127.0.0.2", 0)
        self._ports = [server.sockets[0].getsockname()[1] for server in (good, sink)]
        self._ready.set()
        async with good, sink:
            await self._over.wait()

    async def _good(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while request := await read_request(reader):
                key = (re.search(rb"(?i)\r\nauthorization: Bearer (\S+)\r\n", request) or [b"", b""])[1].decode()
                asked = re.search(rb"(echo|slow) (\d+)", request)
                if asked is None or asked[1] == b"slow":
                    await asyncio.sleep(0.02)
                echo = None if asked is None else echoes()[int(asked[2])]
                writer.write(http(_good(key)) if echo is None else echo.answer(key, self.sink))
                await writer.drain()
                if echo is not None and echo.closes:
                    break
        writer.close()

    async def _sink(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(2**16):
                self.sunk += data
                if b"\r\n\r\n" in data:
                    writer.write(http(b"no", "403 Forbidden"))
        writer.close()


# The search


class Hunt:
    """Finds ``key`` in bytes, however it is written."""

    def __init__(self, key: str) -> None:
        public = next(len(prefix) for prefix in _PUBLIC.values() if key.startswith(prefix))
        raw = key.encode()
        self._plain = _pieces(key, PIECE_CHARS, public)
        self._hex = _pieces(raw.hex(), 2 * PIECE_CHARS, 2 * public)
        self._base64 = []
        for offset in range(3):
            for encode in (b64encode, urlsafe_b64encode):
                text = encode(bytes(offset) + raw)[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6].decode()
                self._base64 += _pieces(text, 12, public * 4 // 3)

    def seen(self, data: bytes) -> str | None:
        """What was found first, with what stands around it."""
        for name, text in _views(data):
            for needle in self._plain + self._base64:
                if (at := text.find(needle)) >= 0:
                    return f"{name}: {text[max(0, at - 60) : at + 60]!r}"
            small = text.lower()
            for needle in self._hex:
                if (at := small.find(needle)) >= 0:
                    return f"{name}: {text[max(0, at - 60) : at + 60]!r}"
        return None


def _pieces(text: str, size: int, start: int) -> list[str]:
    """Of which one stands in any stretch of ``text`` of 1.5 times that size; the first is the beginning."""
    starts = [*range(start, len(text) - size, size // 2), len(text) - size]
    return [text[at : at + size] for at in starts]


def _views(data: bytes) -> Iterator[tuple[str, str]]:
    text = data.decode("latin-1")
    yield "as it is", text
    for found in re.findall(r'"body_b64":"([^"]*)"', text):
        yield "in bytes", _undone(b64decode(found).decode("latin-1"))
    if "\0" in text or "u0000" in text:  # UTF-16 of ASCII
        text = re.sub(r"\0|\\+u0000", "", text)
        yield "without NUL", text
    for times in (1, 2, 3):
        before, text = text, _undone(text)
        if text == before:
            break
        yield f"undone {times}x", text


def _undone(text: str) -> str:
    text = re.sub(r"\\u00([0-9a-fA-F]{2})|\\x([0-9a-fA-F]{2})", lambda m: chr(int(m[1] or m[2], 16)), text)
    text = re.sub(r"\\(.)", r"\1", text)
    return html.unescape(unquote(text, "latin-1"))


# One case


@dataclass
class Stage:
    """Where a case plays: its own directories, its key, and all that was said."""

    directory: Path
    key: str
    source: str
    servers: Servers
    chance: random.Random
    scrubbed: bool = True
    said: dict[str, bytes] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    echoed: int = 0

    def __post_init__(self) -> None:
        for name in ("home", "tmp", "state", "work"):
            (self.directory / name).mkdir(mode=0o700)
        self.work = self.directory / "work"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.directory / "tmp"),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "LC_ALL": "C.UTF-8",
        }
        self.key_flags: list[str] = []
        if self.source == "variable":
            self.environment["OPENAI_API_KEY"] = self.key
        elif self.source == "--key-env":
            self.environment["MY_KEY"] = self.key
            self.key_flags = ["--key-env", "MY_KEY"]
        else:
            secret = self.directory.with_name(f"{self.directory.name}.key")
            secret.touch(mode=0o600)
            secret.write_text(f"{self.key}\n")
            self.key_flags = ["--key-file", str(secret)]

    def rows(self, *words: str) -> None:
        (self.work / "in.jsonl").write_text("".join(json.dumps({"prompt": word}) + "\n" for word in words))

    def run_flags(self, *flags: str) -> list[str]:
        """A run that goes on whatever its rows meet."""
        to_server = ["-m", "m", "--base-url", self.servers.base_url]
        patient = ["--max-failures", "100%", "--max-attempts", "1", "--max-ambiguous-retries", "0"]
        return ["run", "in.jsonl", *to_server, *patient, *self.key_flags, *flags]

    def start(self, *args: str, command: list[str] | None = None, **popen: Any) -> subprocess.Popen[bytes]:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {**self.environment, **popen.pop("env", {})}
        first = command or (COMMAND if self.scrubbed else [sys.executable, str(_unscrubbed(self.directory))])
        return subprocess.Popen([*first, *args], cwd=self.work, env=environment, **{**streams, **popen})

    def do(self, *args: str, code: int | None = None, pty: bool = False, **popen: Any) -> None:
        """A command to its end; what it said is kept."""
        screen = _Screen() if pty else None
        process = self.start(*args, **(popen | ({"stderr": screen.slave} if screen else {})))
        with suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(timeout=PATIENCE_S)
            self.keep(process, out, screen.read() if screen else err, code)
            return
        process.kill()
        process.communicate()
        self.wrong.append(f"still running after {PATIENCE_S:g} s: {args}")

    def keep(self, process: subprocess.Popen[bytes], out: bytes, err: bytes, code: int | None = None) -> None:
        number = len(self.said) // 2
        self.said |= {f"stdout {number}": out or b"", f"stderr {number}": err or b""}
        if code is not None and process.returncode != code:
            self.wrong.append(f"exit code {process.returncode}, not {code}: {(err or b'')[-300:]!r}")

    @property
    def journal(self) -> Path:
        """Of a run that was not told where to write."""
        return self.work / "in.results.jsonl.partial"

    def wait_for_lines(self, running: subprocess.Popen[bytes]) -> None:
        """Until it is in the middle of its work."""
        until(lambda: len(whole_lines(self.journal)) >= 30 or running.poll() is not None, "30 lines")

    def artefacts(self) -> dict[str, bytes]:
        """All that was said or left; names of files too."""
        files = [path for path in sorted(self.directory.rglob("*")) if path.suffix != ".py"]
        names = "\n".join(map(str, files)).encode()
        contents = {str(path.relative_to(self.directory)): path.read_bytes() for path in files if path.is_file()}
        return {**self.said, **contents, "names of files": names}


class _Screen:
    """A terminal that is written to. A thread reads, so that nobody waits for it."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        self._told = bytearray()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):
            while True:
                ready, _, _ = select.select([self._master], [], [], 0.05)
                if ready:
                    self._told += os.read(self._master, 2**16)
                elif self._done.is_set():
                    return

    def read(self) -> bytes:
        """All of it, once the process has ended."""
        os.close(self.slave)
        self._done.set()
        self._thread.join()
        os.close(self._master)
        return bytes(self._told)


_UNSCRUBBED = """
from llmbatch import __main__
from llmbatch.rules.redact import Redactor

for name in ("text", "data", "failure", "reply", "exact"):
    setattr(Redactor, name, lambda self, value: value)
__main__.main()
"""


def _unscrubbed(directory: Path) -> Path:
    driver = directory / "unscrubbed.py"
    driver.write_text(_UNSCRUBBED)
    return driver


# What is played

Play = Callable[[Stage], None]


def _echoes_of(stage: Stage, stream: bool) -> list[str]:
    numbers = [n for n, echo in enumerate(echoes()) if not echo.fatal and (stream or not echo.stream)]
    stage.echoed += len(numbers)
    return [f"echo {number}" for number in numbers]


def _slow_rows(stage: Stage) -> list[str]:
    """So many that there is time to come in between."""
    return [row.replace("echo", "slow") for row in stage.chance.sample(_echoes_of(stage, False), 150)]


def shown(progress: str, *flags: str, pty: bool = False, env: dict[str, str] | None = None) -> Play:
    """Every echo, and what the display makes of it."""

    def play(stage: Stage) -> None:
        stage.rows(*_echoes_of(stage, "--stream" in flags))
        said = stage.run_flags("--progress", progress, "--include-input", "--summary-json", "sum.json", *flags)
        stage.do(*said, code=1, pty=pty, env=env or {})
        wanted = 0 if "--no-journal" in flags else 50
        told = b"".join(stage.artefacts().values())
        if stage.scrubbed and told.count(b"[key]") < wanted:
            stage.wrong.append("the server repeated nothing")

    return play


def _retried(stage: Stage) -> None:
    """A row keeps the ids of all its tries."""
    stage.rows(*stage.chance.sample(_echoes_of(stage, False), 12))
    stage.do(*stage.run_flags("-v", "--max-attempts", "2", "--max-ambiguous-retries", "1"))


def _a_fatal_one(stage: Stage) -> None:
    """What ends a run, one at a time, and the same command again."""
    fatal = [number for number, echo in enumerate(echoes()) if echo.fatal]
    for number in stage.chance.sample(fatal, 2):
        stage.echoed += 1
        stage.rows(f"echo {number}")
        stage.do(*stage.run_flags("-v", "--restart", "--summary-json", "-"), code=3)


def _usage(stage: Stage) -> None:
    """Commands that send nothing."""
    stage.rows("one")
    wrong: list[tuple[list[str], int]] = [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["run"], 2),
        ([*stage.run_flags(), "--nonsense"], 2),
        ([*stage.run_flags(), "--rpm", "x"], 2),
        (["run", "in.jsonl", "-m", "m", "--key-env", "NOT_SET"], 2),
        (["run", "in.jsonl", "-m", "m", "--key-env", stage.key], 2),
        (["run", "in.jsonl", "-m", "m", "--key-file", "in.jsonl"], 2),
        (["run", "in.jsonl", "-m", "m", "--key-file", stage.key], 2),
        ([*stage.run_flags("--dry-run", "--summary-json", "-")], 0),
        (["run", "in.jsonl", "-m", "m", "--base-url", f"http://u:{quote(stage.key, safe='')}@127.0.0.1/v1"], 2),
        (["verify", "in.jsonl"], 6),
        (["repair", "in.jsonl"], 6),
        ([*stage.run_flags("-o", "in.jsonl")], 2),
    ]
    if stage.key_flags:  # a key that was not named stays here instead
        wrong.append((["run", "in.jsonl", "-m", "m", "--base-url", "http://api.example/v1", *stage.key_flags], 2))
    for args, code in stage.chance.sample(wrong, 4):
        stage.do(*args, code=code)


def _bad_key(stage: Stage) -> None:
    """A key that can not be one: said without it."""
    stage.rows("one")
    for bad in (f"{stage.key}\u200b", f"\u201c{stage.key}\u201d", f"{stage.key}\n{stage.key}"):
        flags = [flag for flag in stage.run_flags() if flag not in stage.key_flags]
        if stage.source == "--key-file":
            Path(stage.key_flags[1]).write_text(bad)
            flags += stage.key_flags
        stage.do(*flags, *stage.key_flags, code=2, env={"OPENAI_API_KEY": bad, "MY_KEY": bad})


def _killed(stage: Stage) -> None:
    """Killed in the middle, seen from outside; torn, damaged, looked at, mended, continued."""
    stage.rows(*_slow_rows(stage))
    flags = stage.run_flags("-c", "2", "-v")
    running = stage.start(*flags)
    stage.wait_for_lines(running)
    running.send_signal(signal.SIGSTOP)
    stage.said["process"] = _seen_from_outside(running.pid)
    stage.do(*flags, code=6)
    running.send_signal(signal.SIGKILL)
    stage.keep(running, *running.communicate(), code=-signal.SIGKILL)
    journal = stage.journal
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 12)
        file.seek(-3_000, os.SEEK_END)
        file.write(b"#")
    stage.do("verify", journal.name, "--json", code=1)
    stage.do("verify", journal.name, "-i", "in.jsonl", code=1)
    stage.do("repair", journal.name, "--drop-changed", code=0)
    stage.do(*flags, code=1)
    if not list(stage.work.glob("*.torn")):
        stage.wrong.append("no torn line was left")


def _seen_from_outside(pid: int) -> bytes:
    """Command line of the process; and those and environments of its children."""
    seen = [Path(f"/proc/{pid}/cmdline").read_bytes()]
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        seen += [Path(f"/proc/{child}/{name}").read_bytes() for name in ("cmdline", "environ")]
    return b"\n".join(seen)


def _interrupted(stage: Stage) -> None:
    """Terminated in the middle: requests are abandoned, and the status was asked for."""
    stage.rows(*_slow_rows(stage))
    running = stage.start(*stage.run_flags("-c", "2", "-v", "--summary-json", "sum.json", "--drain", "0s"))
    stage.wait_for_lines(running)
    running.send_signal(signal.SIGUSR1)
    running.send_signal(signal.SIGTERM)  # SIGINT is ignored in the background of a shell, and stays so
    stage.keep(running, *running.communicate(timeout=PATIENCE_S), code=143)


def _full_disk(stage: Stage) -> None:
    """What no longer fits is saved elsewhere, and taken back."""

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK_BYTES, resource.RLIM_INFINITY))

    stage.rows(*_echoes_of(stage, False))
    stage.do(*stage.run_flags("-c", "8"), code=5, preexec_fn=small)
    if not list((stage.directory / "state").rglob("*.spill*")):
        stage.wrong.append("nothing was saved elsewhere")
    stage.said |= {f"before: {name}": data for name, data in stage.artefacts().items() if "/" in name}
    stage.do(*stage.run_flags(), code=1)


def _refused_outputs(stage: Stage) -> None:
    stage.rows("one", "two")
    (stage.work / "mine.txt").write_text("words\n")
    (stage.work / "folder").mkdir()
    for flags in (["-o", "mine.txt"], ["-o", "folder"], ["-o", "none/there.jsonl"], ["-o", "in.jsonl"]):
        stage.do(*stage.run_flags(*flags, "--summary-json", "-"))


def _aborted(stage: Stage) -> None:
    """faulthandler tells where each thread is; no core is left."""
    stage.rows(*_slow_rows(stage))
    running = stage.start(*stage.run_flags("-c", "2"), env={"PYTHONFAULTHANDLER": "1"})
    stage.wait_for_lines(running)
    running.send_signal(signal.SIGABRT)
    stage.keep(running, *running.communicate(timeout=PATIENCE_S), code=-signal.SIGABRT)
    if b"Fatal Python error" not in stage.said["stderr 0"]:
        stage.wrong.append("faulthandler said nothing")


def _python_reports(error: str) -> Play:
    """Every report that Python makes of itself, each with the headers of the requests."""

    def play(stage: Stage) -> None:
        stage.rows("one")
        shown = {"Authorization": f"Bearer {stage.key}", "and": [spell(stage.key) for spell in SPELLINGS.values()]}
        driver = stage.directory / "driver.py"
        driver.write_text(DRIVER.format(shown=shown, error=error, unscrubbed=not stage.scrubbed))
        stage.do(
            *stage.run_flags("--summary-json", "sum.json"),
            command=[sys.executable, str(driver)],
            env={"PYTHONWARNINGS": "always"},
        )
        told = b"".join(stage.artefacts().values())
        if silent := [source for source in SOURCES if f"of-{source}".encode() not in told]:
            stage.wrong.append(f"never planted: {silent}")

    return play


# Bugs planted where the headers are at hand: on the wire, in the key's own module, in what aiohttp raises.
_BUGS = {
    "headers": "raise RuntimeError(f'planted {self._headers!r}')",
    "group": "raise ExceptionGroup('planted', [ValueError(str(self._headers)), KeyError(dict(self._headers))])",
    "chain": """
    try:
        raise KeyError(self._headers['Authorization'])
    except KeyError as error:
        raise RuntimeError('planted') from error
""",
    "note": """
    error = RuntimeError('planted')
    error.add_note(f'with {self._headers!r}')
    raise error
""",
    "aiohttp": """
    import aiohttp
    info = aiohttp.RequestInfo(args[0].url, 'POST', self._headers, args[0].url)
    error = aiohttp.ClientResponseError(info, (), status=400, message=f'planted {info!r}', headers=self._headers)
    raise RuntimeError(repr(error)) from error
""",
    "os": "raise OSError(f'planted {dict(self._headers)}')",
    "bytes": "raise RuntimeError('planted', self._headers['Authorization'].encode())",
    "exit": "raise SystemExit(f'planted {dict(self._headers)}')",
}
_BUG = """
from llmbatch import __main__
from llmbatch.calls.wire import Wire
from llmbatch.rules.redact import Redactor

if {unscrubbed}:
    for name in ("text", "data", "failure", "reply", "exact"):
        setattr(Redactor, name, lambda self, value: value)

async def bug(self, *args):
    {body}

Wire._send = bug
__main__.main()
"""


def _planted(name: str) -> Play:
    def play(stage: Stage) -> None:
        stage.rows("one", "two")
        driver = stage.directory / "driver.py"
        driver.write_text(_BUG.format(unscrubbed=not stage.scrubbed, body=_BUGS[name]))
        stage.do(*stage.run_flags("-v", "--summary-json", "-"), command=[sys.executable, "-X", "dev", str(driver)])
        told = b"".join(stage.artefacts().values())
        if b"planted" not in told:
            stage.wrong.append("the bug was never met")

    return play


def _elsewhere(stage: Stage) -> None:
    """Where a key must not go: other ports, other hosts, proxies."""
    stage.rows("a prompt")
    sink = stage.servers.sink
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    proxies = dict.fromkeys(names, sink)
    stage.do(*stage.run_flags("-v"), code=0, env=proxies)
    local = stage.run_flags()
    before = local.index("--base-url") + 1
    for number, base_url in enumerate(("http://api.example/v1", "https://api.example/v1")):
        local[before] = base_url
        stage.do(*local, "-o", f"{number}.jsonl", "-v", "--max-wait", "1s", env=proxies)
    home = stage.directory / "home" / ".netrc"
    home.touch(mode=0o600)
    home.write_text("machine 127.0.0.1 login me password netrc-canary\n")
    stage.do(*stage.run_flags("--restart", "-v"), code=0)


@dataclass(frozen=True)
class Case:
    """One play with one key. ``control`` is that without the scrubber."""

    name: str
    shape: str
    source: str
    play: Play
    control: bool = False


def plays() -> dict[str, Play]:
    """All that is played, by name; those that find most come first."""
    made: dict[str, Play] = {
        "plain -v --stream": shown("plain", "-v", "--stream"),
        "killed": _killed,
        "fatal": _a_fatal_one,
        "usage": _usage,
        "json -v": shown("json", "-v"),
        "terminal -v": shown("auto", "-v", pty=True, env={"TERM": "xterm-256color", "COLUMNS": "400"}),
        "elsewhere": _elsewhere,
        "reports": _python_reports("RuntimeError"),
        "full disk": _full_disk,
        "stdout, -v --stream": shown("plain", "-v", "-o", "-", "--stream"),
    }
    made |= {f"bug {name}": _planted(name) for name in _BUGS}
    made |= {
        "bad key": _bad_key,
        "interrupted": _interrupted,
        "refused": _refused_outputs,
        "aborted": _aborted,
        "reports of a storage error": _python_reports("StorageError"),
        "stdout": shown("none", "-o", "-", "--order", "input"),
        "stdout without journal": shown("none", "-o", "-", "--no-journal"),
        "retried": _retried,
        "dev": shown("plain", "-v", env={"PYTHONDEVMODE": "1"}),
        "asyncio debug": shown("plain", "-v", "--stream", env={"PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "always"}),
    }
    for progress_ in ("auto", "rich", "plain", "json", "none"):
        for loud in ((), ("-v",), ("-q",)):
            for stream in ((), ("--stream",)):
                made.setdefault(" ".join((progress_, *loud, *stream)), shown(progress_, *loud, *stream))
    made["terminal"] = shown("auto", "--stream", pty=True, env={"TERM": "xterm"})
    made["terminal -q"] = shown("auto", "-q", pty=True, env={"TERM": "xterm"})
    return made


def cases() -> list[Case]:
    """All plays with all shapes and sources; each play comes once before any comes again."""
    kinds = [(shape, source) for source in SOURCES_OF_KEYS for shape in _PUBLIC]
    made = []
    for turn in range(len(kinds)):
        for number, (name, play) in enumerate(plays().items()):
            shape, source = kinds[(turn * 4 + number) % len(kinds)]
            made.append(Case(f"{name}, {shape} key by {source}", shape, source, play))
    return made


# Each play with each shape of key; ``--runs`` of three times as many has them all with each source too.
LONG_RUNS = len(plays()) * len(_PUBLIC)
SHORT_RUNS = 6
# Without the scrubber: every echo, on a screen, in a journal, in standard output; and Python's reports.
CONTROLS = ("plain -v --stream", "reports", "json -v")


def campaign(runs: int, seed: int, case: str | None = None) -> Report:
    """``runs`` cases and the controls, some at a time."""
    report = Report()
    chosen = [one for one in cases() if case is None or case in one.name][:runs]
    known = plays()
    controls = [
        Case(f"without the scrubber: {name}", "short", "variable", known[name], control=True)
        for name in (CONTROLS if runs > SHORT_RUNS else CONTROLS[:1])
    ]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="canary-")))
        servers = stack.enter_context(Servers())
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        jobs = enumerate([*chosen, *controls])
        played = pool.map(lambda job: _played(*job, directory, seed, servers), jobs)
        places = 0
        for one, ended in zip([*chosen, *controls], played, strict=True):
            if one.control:
                places += ended.places
                report.broken += [f"{one.name}: {wrong}" for wrong in ended.wrong]
                continue
            report.runs += 1
            report.count("commands", ended.commands)
            report.count("echoes", ended.echoed)
            report.count("artefacts searched", ended.artefacts)
            report.count("bytes searched", ended.bytes)
            again = f"python tests/campaigns canary --seed {seed} --runs 1 --case {one.name!r}"
            report.broken += [f"{one.name}: {wrong}; {again}" for wrong in ended.wrong]
            progress(report.runs, len(chosen))
        report.counted["places without the scrubber"] = places
        if places < FEWEST_PLACES:
            report.broken.append(f"without the scrubber only {places} places held the key: nothing can be found")
        report.counted["bytes at the sink"] = len(servers.sunk)
        report.broken += _judge_sink(bytes(servers.sunk))
    return report


@dataclass
class Played:
    """How a case ended: the ``places`` are lines of artefacts that hold the key."""

    wrong: list[str]
    places: int
    commands: int
    echoed: int
    artefacts: int
    bytes: int


def _played(number: int, case: Case, directory: Path, seed: int, servers: Servers) -> Played:
    chance = random.Random(f"{seed} {case.name}")
    own = directory / str(number)
    own.mkdir()
    stage = Stage(own, make_key(case.shape, chance), case.source, servers, chance, scrubbed=not case.control)
    case.play(stage)
    hunt = Hunt(stage.key)
    artefacts = stage.artefacts()
    held = [(name, line) for name, data in artefacts.items() if data for line in _lines_with(hunt, data)]
    if not any(artefacts.values()):
        stage.wrong.append("nothing was left to search")
    if not case.control:
        stage.wrong += [f"the key is in {name}: {seen}" for name, seen in held[:MOST_TOLD]]
    shutil.rmtree(own)
    return Played(
        stage.wrong, len(held), len(stage.said) // 2, stage.echoed, len(artefacts), sum(map(len, artefacts.values()))
    )


def _lines_with(hunt: Hunt, data: bytes) -> list[str]:
    """Of each line that holds the key, where it does."""
    if hunt.seen(data) is None:
        return []
    found = [seen for line in data.split(b"\n") if (seen := hunt.seen(line)) is not None]
    return found or [str(hunt.seen(data))]


# What proxies are to get: where to connect to, for a server with TLS; a request without a key, for one without.
_TO_PROXY = re.compile(
    rb"(?:CONNECT api\.example:443|POST http://api\.example/v1/chat/completions) HTTP/1\.1\r\n"
    rb"(?:[A-Za-z-]+: [^\r]*\r\n)*\r\n"
    rb'(?:\{"model":"m","messages":\[\{"role":"user","content":"a prompt"\}\]\})?'
)


def _judge_sink(sunk: bytes) -> Iterator[str]:
    if _TO_PROXY.sub(b"", sunk) or re.search(rb"(?i)bearer|authorization|netrc|g?sk[-_]", sunk):
        yield f"the sink got {sunk[:300]!r}"
