"""A run that can be asked and steered from outside while it runs: the run's side of ``llmbatch ctl``.

Whoever connects sends one line and gets one line (rules/control.py). Nothing that a client does, or leaves undone,
holds up the run: no task waits for one, each has a time limit, and their number has one too.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from llmbatch.errors import OptionsError
from llmbatch.events import LimitSet, Listener, Notice, Status
from llmbatch.files.control_socket import ControlSocket, is_ours
from llmbatch.rules.control import MAX_LINE_BYTES, Asked, answer_line, no_limit, parse_request, refusal
from llmbatch.sender import Sender
from llmbatch.stopping import Stop, StopReason
from llmbatch.summary import Snapshot

# From the connection to the answer taken; a client of ours needs milliseconds.
CLIENT_S = 5.0
# At once; when another one comes, the one that has been there longest goes.
MAX_CLIENTS = 16
# More are not told, so that an answer stays below the limit of a line.
MAX_LANES = 100
# As by SIGTERM, which the command may be sent instead.
DRAINED = StopReason("stopped by llmbatch ctl", 143)


class Controls(Protocol):
    """What a run offers. All are called in the run's loop, and none waits."""

    def status(self) -> Mapping[str, Any]:
        """What the run is and where it stands, in plain values."""
        ...

    def set(self, name: str, value: float | None) -> tuple[float | None, float | None]:
        """Change a limit, from the next request on; what it was, and what it is now. Raises OptionsError."""
        ...

    def pause(self) -> None:
        """Send nothing new. What is in flight goes on."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...

    def drain(self) -> None:
        """End the run, after what is in flight."""
        ...


class RunControls:
    """The controls of one run. ``about`` says what it is; ``snapshot`` gives its numbers, None before it sends.

    ``name`` is what to call it on the command line.
    """

    def __init__(
        self,
        sender: Sender,
        stop: Stop,
        tell: Listener,
        snapshot: Callable[[], Snapshot | None],
        about: Mapping[str, Any],
        name: str,
    ) -> None:
        self._sender = sender
        self._stop = stop
        self._tell = tell
        self._snapshot = snapshot
        self._about = about
        self._name = name

    def status(self) -> Mapping[str, Any]:
        snapshot = self._snapshot()
        lanes = list(self._sender.lanes().items())[:MAX_LANES]
        return {
            **self._about,
            "pid": os.getpid(),
            "state": self._state(started=snapshot is not None),
            **({} if snapshot is None else snapshot.to_json()),
            "stopping": None if self._stop.reason is None else self._stop.reason.why,
            "limits": dict(self._sender.limits()),
            "lanes": [{"name": name, **_lane(status)} for name, status in lanes],
        }

    def set(self, name: str, value: float | None) -> tuple[float | None, float | None]:
        old, new = self._sender.set_limit(name, value)
        if new != old:
            self._tell(LimitSet(name, old, new))
            was, now = (no_limit(name) if limit is None else f"{limit:,g}" for limit in (old, new))
            self._tell(Notice("info", f"{name} {now} instead of {was}, by llmbatch ctl"))
        return old, new

    def pause(self) -> None:
        if not self._sender.paused:
            self._sender.pause()
            go_on = shlex.join(["llmbatch", "ctl", self._name, "resume"])
            self._tell(Notice("info", f"paused by llmbatch ctl: no new requests; to go on: {go_on}"))

    def resume(self) -> None:
        if self._sender.paused:
            self._sender.resume()
            self._tell(Notice("info", "resumed by llmbatch ctl"))

    def drain(self) -> None:
        self._stop.request(DRAINED)

    def _state(self, *, started: bool) -> str:
        if self._stop.requested:
            return "stopping"
        if self._sender.paused:
            return "paused"
        return "running" if started else "starting"


def answer(line: bytes, controls: Controls) -> bytes:
    """Do what ``line`` asks, all of it or nothing, and say what came of it. ``line`` may be anything."""
    try:
        asked = parse_request(line)
        changed = _done(asked, controls)
    except OptionsError as refused:
        return answer_line(refusal(str(refused)))
    return answer_line({"ok": True, "changed": changed, "status": controls.status()})


class ControlServer:
    """Answers at ``at`` until it is closed. Owned by the run's loop."""

    def __init__(self, at: ControlSocket, controls: Controls) -> None:
        self.controls = controls
        self._at = at
        self._clients: dict[_Client, None] = {}
        self._server: asyncio.AbstractServer | None = None

    async def __aenter__(self) -> ControlServer:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self), sock=self._at.listening)
        return self

    async def __aexit__(self, *exit: object) -> None:
        self._at.remove()
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.leave()

    def joined(self, client: _Client) -> None:
        """One more client."""
        if len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).leave()
        self._clients[client] = None

    def left(self, client: _Client) -> None:
        """It is gone, or will be."""
        self._clients.pop(client, None)


class _Client(asyncio.Protocol):
    """One connection: a line in, a line out."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._line = bytearray()
        self._answered = False
        self._transport: asyncio.Transport
        self._limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not is_ours(transport.get_extra_info("socket")):
            self._transport.abort()
            return
        self._limit = asyncio.get_running_loop().call_later(CLIENT_S, self._transport.abort)
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._line += data
        if b"\n" in data or len(self._line) > MAX_LINE_BYTES:
            self._answer()

    def eof_received(self) -> None:
        if self._line and not self._answered:
            self._answer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._server.left(self)

    def leave(self) -> None:
        """Close the connection. An answer still goes out if it is taken at once."""
        self._server.left(self)
        if self._answered:
            self._transport.close()
        else:
            self._transport.abort()

    def _answer(self) -> None:
        self._answered = True
        line, end, _ = self._line.partition(b"\n")
        if end and len(line) <= MAX_LINE_BYTES:
            self._transport.write(answer(bytes(line), self._server.controls))
        else:
            self._transport.write(answer_line(refusal(f"a request is one line of at most {MAX_LINE_BYTES:,} bytes")))
        self._transport.close()


def _done(asked: Asked, controls: Controls) -> dict[str, dict[str, float | None]]:
    """What was changed: of each limit the old value and the new one."""
    if asked.action == "set":
        return _set_all(asked.limits, controls)
    if asked.action == "pause":
        controls.pause()
    elif asked.action == "resume":
        controls.resume()
    elif asked.action == "drain":
        controls.drain()
    return {}


def _set_all(limits: Mapping[str, float | None], controls: Controls) -> dict[str, dict[str, float | None]]:
    changed: dict[str, dict[str, float | None]] = {}
    try:
        for name, value in limits.items():
            old, new = controls.set(name, value)
            changed[name] = {"old": old, "new": new}
    except OptionsError:
        for name, values in reversed(changed.items()):
            controls.set(name, values["old"])
        raise
    return changed


def _lane(status: Status) -> dict[str, Any]:
    return {
        "in_flight": status.in_flight,
        "allowed": status.allowed,
        "waiting_retry": status.waiting_retry,
        "gate_closed_s": round(status.gate_closed_s, 1),
        "binding": status.binding,
    }
