"""The server in a run: whatever clients do or leave undone, it answers the others and holds up nobody."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from llmbatch import control
from llmbatch.control import DRAINED, MAX_CLIENTS, ControlServer, RunControls, answer
from llmbatch.errors import OptionsError
from llmbatch.events import Event, LimitSet, Notice, Status
from llmbatch.files.control_socket import ControlSocket
from llmbatch.rules.control import MAX_LINE_BYTES
from llmbatch.stopping import Stop, StopReason

SOON_S = 5.0
STATUS = b'{"action":"status"}\n'


class Noted:
    """Controls that write down what they are asked. ``refused`` names a limit that can not be set."""

    def __init__(self, refused: str = "") -> None:
        self.done: list[Any] = []
        self.limits: dict[str, float | None] = {"rpm": 500.0, "tpm": None, "concurrency": None}
        self._refused = refused

    def status(self) -> Mapping[str, Any]:
        return {"limits": self.limits}

    def set(self, name: str, value: float | None) -> tuple[float | None, float | None]:
        if name == self._refused:
            raise OptionsError(f"{name} stays")
        old, self.limits[name] = self.limits[name], value
        return old, value

    def pause(self) -> None:
        self.done.append("pause")

    def resume(self) -> None:
        self.done.append("resume")

    def drain(self) -> None:
        self.done.append("drain")


# One line, one answer


def asked(line: bytes, controls: Noted) -> dict[str, Any]:
    told = answer(line, controls)
    assert told.endswith(b"\n") and len(told) < MAX_LINE_BYTES
    return json.loads(told)  # type: ignore[no-any-return]


@pytest.mark.parametrize("action", ["pause", "resume", "drain"])
def test_an_action_is_done_once_and_answered_with_the_status(action: str) -> None:
    controls = Noted()
    told = asked(json.dumps({"action": action}).encode(), controls)
    assert controls.done == [action]
    assert told == {"ok": True, "changed": {}, "status": {"limits": controls.limits}}


def test_status_does_nothing() -> None:
    controls = Noted()
    assert asked(STATUS, controls)["status"] == {"limits": controls.limits}
    assert controls.done == []


def test_limits_are_set_and_old_and_new_are_told() -> None:
    controls = Noted()
    told = asked(b'{"action":"set","limits":{"rpm":300,"tpm":9000,"concurrency":null}}', controls)
    assert told["changed"] == {
        "rpm": {"old": 500, "new": 300},
        "tpm": {"old": None, "new": 9000},
        "concurrency": {"old": None, "new": None},
    }
    assert told["status"]["limits"]["rpm"] == 300


@pytest.mark.parametrize("line", [b'{"action":"set","limits":{"rpm":300,"tpm":-1}}', b"garbage", b'{"action":"fly"}'])
def test_a_request_with_a_fault_in_it_changes_nothing(line: bytes) -> None:
    controls = Noted()
    before = dict(controls.limits)
    told = asked(line, controls)
    assert told["ok"] is False and told["error"]
    assert (controls.limits, controls.done) == (before, [])


def test_limits_of_which_one_is_refused_are_all_as_before() -> None:
    controls = Noted(refused="concurrency")
    before = dict(controls.limits)
    told = asked(b'{"action":"set","limits":{"rpm":300,"tpm":9000,"concurrency":4}}', controls)
    assert told == {"ok": False, "error": "concurrency stays"}
    assert controls.limits == before


# Over real sockets, on both loops


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def on_loop(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


def serving(path: Path) -> ControlServer:
    return ControlServer(ControlSocket(path), Noted())


async def dialled(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(path))


async def told(path: Path, line: bytes = STATUS) -> dict[str, Any]:
    """What is answered to a client that behaves."""
    reader, writer = await dialled(path)
    writer.write(line)
    found = await asyncio.wait_for(reader.readline(), SOON_S)
    assert await reader.read() == b""
    writer.close()
    return json.loads(found)  # type: ignore[no-any-return]


async def test_it_is_there_and_then_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "out.ctl"
    async with serving(path):
        assert (await told(path))["ok"]
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        await dialled(path)


def test_several_clients_at_once_are_all_answered(tmp_path: Path, on_loop: Callable[[Any], Any]) -> None:
    path = tmp_path / "out.ctl"

    async def main() -> None:
        async with serving(path):
            answers = await asyncio.gather(*(told(path) for _ in range(MAX_CLIENTS)))
        assert all(answer["ok"] for answer in answers)

    on_loop(main())


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\xff" * 100 + b"\n",
        b"x" * 10_000 + b"\n",
        b'{"action":"' + b"s" * 10_000 + b'"}\n',
        b"x" * (MAX_LINE_BYTES + 1),
        b"x" * (4 * MAX_LINE_BYTES) + b"\n",
        b'{"action":"status"}',  # half a line, and then the end
    ],
    ids=["http", "binary", "long", "long JSON", "endless", "too long", "half"],
)
def test_what_is_no_request_is_answered_and_the_next_client_too(
    tmp_path: Path, on_loop: Callable[[Any], Any], data: bytes
) -> None:
    path = tmp_path / "out.ctl"

    async def main() -> None:
        async with serving(path):
            reader, writer = await dialled(path)
            writer.write(data)
            if len(data) <= MAX_LINE_BYTES:
                writer.write_eof()
            answer = json.loads(await asyncio.wait_for(reader.readline(), SOON_S))
            assert answer["ok"] is False and len(answer["error"]) < 200
            writer.close()
            assert (await told(path))["ok"]

    on_loop(main())


def test_a_line_in_pieces_and_what_follows_it(tmp_path: Path, on_loop: Callable[[Any], Any]) -> None:
    path = tmp_path / "out.ctl"

    async def main() -> None:
        async with serving(path) as server:
            reader, writer = await dialled(path)
            for at in range(len(STATUS) - 1):
                writer.write(STATUS[at : at + 1])
                await asyncio.sleep(0)
            writer.write(b'\n{"action":"drain"}\n')
            assert json.loads(await asyncio.wait_for(reader.readline(), SOON_S))["ok"]
            writer.close()
            assert server.controls.done == []  # type: ignore[attr-defined]

    on_loop(main())


def test_clients_that_say_nothing_neither_keep_others_out_nor_stay(
    tmp_path: Path, on_loop: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CLIENT_S", 0.2)
    path = tmp_path / "out.ctl"

    async def main() -> None:
        async with serving(path):
            silent = [await dialled(path) for _ in range(100)]
            silent[-1][1].write(b'{"act')
            assert (await told(path))["ok"]
            for reader, writer in silent:
                assert await end_of(reader) == b""
                writer.close()

    on_loop(main())


async def end_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), SOON_S)
    except ConnectionResetError:
        return b""


def test_a_client_that_does_not_read_is_left_behind(
    tmp_path: Path, on_loop: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is larger than the kernel keeps for it."""
    monkeypatch.setattr(control, "CLIENT_S", 0.2)
    path = tmp_path / "out.ctl"

    async def main() -> None:
        controls = Noted()
        monkeypatch.setattr(controls, "status", lambda: {"much": "x" * 5_000_000})
        async with ControlServer(ControlSocket(path), controls):
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.connect(str(path))
                deaf.sendall(STATUS)
                await asyncio.sleep(0.5)
                deaf.settimeout(SOON_S)
                got = 0
                while part := deaf.recv(1 << 20):
                    got += len(part)
                assert got < 5_000_000

    on_loop(main())


async def test_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.ctl"
    async with serving(path) as server:
        monkeypatch.setattr(control, "is_ours", lambda sock: False)
        reader, writer = await dialled(path)
        writer.write(b'{"action":"drain"}\n')
        assert await end_of(reader) == b""
        writer.close()
        assert server.controls.done == []  # type: ignore[attr-defined]


async def test_the_end_of_the_run_does_not_wait_for_clients(tmp_path: Path) -> None:
    path = tmp_path / "out.ctl"
    async with serving(path):
        reader, writer = await dialled(path)
        await told(path)
    assert await end_of(reader) == b""
    writer.close()


# The controls of a run


class Paused:
    """A sender that remembers its limits."""

    def __init__(self) -> None:
        self.paused = False
        self.limits_now: dict[str, float | None] = {"rpm": 500.0, "concurrency": None}

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def limits(self) -> Mapping[str, float | None]:
        return self.limits_now

    def lanes(self) -> Mapping[str, Status]:
        return {f"https://{n}.example/v1": Status(n, 8, 0, 2.25, "gate", paused=self.paused) for n in range(1, 300)}

    def set_limit(self, name: str, value: float | None) -> tuple[float | None, float | None]:
        old, self.limits_now[name] = self.limits_now[name], value
        return old, value


@pytest.fixture
def told_events() -> list[Event]:
    return []


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def controls(told_events: list[Event], stop: Stop) -> RunControls:
    about = {"output": "my out.jsonl", "socket": "s", "model": "m", "endpoint": "e"}
    return RunControls(Paused(), stop, told_events.append, lambda: None, about, "my out.jsonl")  # type: ignore[arg-type]


def test_what_is_paused_is_told_once_with_how_to_go_on(controls: RunControls, told_events: list[Event]) -> None:
    controls.pause()
    controls.pause()
    assert controls.status()["state"] == "paused"
    controls.resume()
    controls.resume()
    assert controls.status()["state"] == "starting"
    assert told_events == [
        Notice("info", "paused by llmbatch ctl: no new requests; to go on: llmbatch ctl 'my out.jsonl' resume"),
        Notice("info", "resumed by llmbatch ctl"),
    ]


def test_a_changed_limit_is_told_and_one_that_stays_is_not(controls: RunControls, told_events: list[Event]) -> None:
    assert controls.set("rpm", 500.0) == (500.0, 500.0)
    assert told_events == []
    assert controls.set("rpm", 1200.0) == (500.0, 1200.0)
    controls.set("concurrency", 4)
    assert told_events == [
        LimitSet("rpm", 500.0, 1200.0),
        Notice("info", "rpm 1,200 instead of 500, by llmbatch ctl"),
        LimitSet("concurrency", None, 4),
        Notice("info", "concurrency 4 instead of auto, by llmbatch ctl"),
    ]
    assert controls.status()["limits"] == {"rpm": 1200.0, "concurrency": 4}


def test_a_drain_is_a_stop_and_does_not_abandon(controls: RunControls, stop: Stop) -> None:
    controls.drain()
    controls.drain()
    assert stop.reason is DRAINED
    assert not stop.abandoned
    assert (controls.status()["state"], controls.status()["stopping"]) == ("stopping", "stopped by llmbatch ctl")


def test_a_drain_of_a_run_that_stops_leaves_its_reason(controls: RunControls, stop: Stop) -> None:
    stop.request(StopReason("stopped by SIGINT", 130))
    controls.drain()
    assert controls.status()["stopping"] == "stopped by SIGINT"


def test_the_answer_about_very_many_lanes_is_bounded(controls: RunControls) -> None:
    told = answer(STATUS, controls)
    assert len(told) < MAX_LINE_BYTES
    lanes = json.loads(told)["status"]["lanes"]
    assert len(lanes) == control.MAX_LANES
    assert lanes[0] == {
        "name": "https://1.example/v1",
        "in_flight": 1,
        "allowed": 8,
        "waiting_retry": 0,
        "gate_closed_s": 2.2,
        "binding": "gate",
    }
