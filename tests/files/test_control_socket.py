"""The socket beside an output: private, found again, never in anybody's way. Real sockets in real directories."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.files import control_socket
from llmbatch.files.control_socket import ControlSocket, NotASocket, connect, exchange, open_first, places, uid_in
from llmbatch.files.lock import OutputLock
from llmbatch.files.paths import OutputPaths
from llmbatch.files.reach import NoRun, reach

SOON_S = 2.0


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Short enough for an address in it, wherever pytest has its directories."""
    path = Path(tempfile.mkdtemp(prefix="ctl", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@contextmanager
def opened(path: Path) -> Iterator[ControlSocket]:
    at = ControlSocket(path)
    try:
        yield at
    finally:
        at.remove()
        at.listening.close()


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def is_reached(at: ControlSocket) -> bool:
    """Whether a line goes there and another comes back, by the path of the socket."""

    def answer() -> None:
        client, _ = at.listening.accept()
        with client:
            client.sendall(client.recv(100).upper())

    answering = threading.Thread(target=answer)
    answering.start()
    with connect(at.path, SOON_S) as sock:
        line = exchange(sock, b"hello\n", 1000)
    answering.join()
    return line == b"HELLO"


def test_a_socket_is_its_owners_alone_and_goes_when_it_is_removed(tmp_path: Path) -> None:
    with umask(0), opened(tmp_path / "out.ctl") as at:
        status = at.path.lstat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_uid == os.geteuid()
        assert is_reached(at)
    assert list(tmp_path.iterdir()) == []


def test_before_it_has_its_mode_nobody_else_gets_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    chmod = Path.chmod

    def watched(path: Path, mode: int) -> None:
        modes.append(stat.S_IMODE(path.parent.stat().st_mode))
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", watched)
    with umask(0), opened(tmp_path / "out.ctl"):
        assert modes == [0o700]


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.ctl"
    ControlSocket(path).listening.close()  # as a kill leaves it
    with pytest.raises(ConnectionRefusedError):
        connect(path, SOON_S)
    with opened(path) as at:
        assert is_reached(at)


def test_what_a_kill_left_on_the_way_is_used(tmp_path: Path) -> None:
    private = tmp_path / ".out.ctl"
    private.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(private / "s"))
    with opened(tmp_path / "out.ctl") as at:
        assert is_reached(at)
        assert not private.exists()


@pytest.mark.parametrize("kind", ["open to others", "a file", "a link"])
def test_a_directory_on_the_way_that_is_not_ours_alone_is_not_used(tmp_path: Path, kind: str) -> None:
    private = tmp_path / ".out.ctl"
    if kind == "open to others":
        private.mkdir()
        private.chmod(0o755)
    elif kind == "a file":
        private.write_text("mine")
    else:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        private.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        ControlSocket(tmp_path / "out.ctl")
    assert private.exists()
    assert not (tmp_path / "out.ctl").exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone_and_the_next_place_is_taken(tmp_path: Path, kind: str) -> None:
    taken, free = tmp_path / "out.ctl", tmp_path / "state" / "out.ctl"
    if kind == "file":
        taken.write_text("somebody's notes")
    elif kind == "directory":
        taken.mkdir()
    else:
        taken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotASocket):
        ControlSocket(taken)
    at, problems = open_first((taken, free))
    assert at is not None
    assert at.path == free
    assert problems == [f"{taken} is not a socket, and was left alone"]
    assert taken.is_symlink() or taken.is_dir() or taken.read_text() == "somebody's notes"
    at.listening.close()


def test_where_there_can_be_none_there_is_none_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    at, problems = open_first((Path("/proc/out.ctl"), tmp_path / "blocked" / "out.ctl"))
    assert at is None
    assert [problem.split(":")[0] for problem in problems] == [
        "no socket at /proc/out.ctl",
        f"no socket at {tmp_path / 'blocked' / 'out.ctl'}",
    ]


def test_a_socket_that_is_not_ours_any_more_is_not_removed(tmp_path: Path) -> None:
    first = ControlSocket(tmp_path / "out.ctl")
    with opened(tmp_path / "out.ctl") as second:
        first.remove()
        first.listening.close()
        assert is_reached(second)


def deep(directory: Path) -> Path:
    """A directory whose name alone is longer than an address may be."""
    path = directory.joinpath(*["d" * 60] * 4)
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("name", ["out.ctl", "n" * 247 + ".ctl"], ids=["deep", "deep_and_long"])
def test_a_path_longer_than_an_address_can_be_works(tmp_path: Path, name: str) -> None:
    with opened(deep(tmp_path) / name) as at:
        assert stat.S_IMODE(at.path.stat().st_mode) == 0o600
        assert is_reached(at)
    assert list(at.path.parent.iterdir()) == []


def test_without_names_of_open_files_a_long_path_has_its_socket_in_the_state_directory(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: there is no /proc."""
    monkeypatch.setattr(control_socket, "_OPEN_FILES", "/nowhere")
    out = deep(short_path) / "out.jsonl"
    environ = {"XDG_STATE_HOME": str(short_path / "state")}
    at, problems = open_first(places(out.with_name("out.jsonl.ctl"), environ))
    assert at is not None
    assert at.path.parent == short_path / "state" / "llmbatch"
    assert problems == [f"no socket at {out}.ctl: the path is too long for a socket"]
    reach(str(out), environ, SOON_S).close()
    at.listening.close()
    at.remove()
    with pytest.raises(NoRun):
        reach(str(out), environ, SOON_S)


def test_each_output_has_places_of_its_own() -> None:
    environ = {"XDG_STATE_HOME": "/state"}
    first, second = (places(Path(directory, "out.jsonl.ctl"), environ) for directory in ("/a", "/b"))
    assert (first[0], second[0]) == (Path("/a/out.jsonl.ctl"), Path("/b/out.jsonl.ctl"))
    assert first[1].parent == second[1].parent == Path("/state/llmbatch")
    assert first[1] != second[1]


def test_another_user_at_the_other_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "out.ctl") as at:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        with pytest.raises(OutputRefused, match="another user"):
            connect(at.path, SOON_S)


@pytest.mark.parametrize(
    ("xucred", "uid"),
    [(struct.pack("=IIh2x16I", 0, 501, 1, 20, *[0] * 15), 501), (b"", None), (b"\0\0\0\0", None)],
)
def test_the_user_as_macos_says_it(xucred: bytes, uid: int | None) -> None:
    assert uid_in(xucred) == uid


def test_a_queue_that_is_full_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    with opened(tmp_path / "out.ctl") as at:
        at.listening.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(str(at.path))
        with pytest.raises(TimeoutError):
            connect(at.path, 0.1)
        for one in waiting:
            one.close()


# Finding a run


@pytest.mark.parametrize(
    "name", ["out.jsonl", "out.jsonl.partial", "out.jsonl.lock", "out.jsonl.ctl", "./out.jsonl", "link.jsonl"]
)
def test_a_run_is_found_by_its_output_and_what_is_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.jsonl").symlink_to("out.jsonl")
    with opened(tmp_path / "out.jsonl.ctl"):
        reach(name, {}, SOON_S).close()


def test_a_run_that_makes_a_table_is_found_by_the_table(tmp_path: Path) -> None:
    with opened(tmp_path / "out.csv.jsonl.ctl"):
        reach(str(tmp_path / "out.csv"), {}, SOON_S).close()


def test_standard_output_has_no_name_but_its_sockets_are_listed(tmp_path: Path) -> None:
    (tmp_path / "llmbatch").mkdir()
    (tmp_path / "llmbatch" / "notes.ctl").write_text("")
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    with pytest.raises(OptionsError, match="standard output has no name") as refused:
        reach("-", environ, SOON_S)
    assert "there are" not in str(refused.value)
    with opened(tmp_path / "llmbatch" / "abc.ctl") as at, pytest.raises(OptionsError) as refused:
        reach("-", environ, SOON_S)
    assert str(refused.value).endswith(f"there are {at.path}")


RESULT = '{"id":null,"row":1,"status":"ok","output":"x"}\n'


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "nothing is known of it"),
        ({"out.jsonl": RESULT}, "out.jsonl is complete"),
        ({"out.jsonl.partial": RESULT}, "out.jsonl.partial is unfinished, and the same llmbatch run command continues"),
        ({"out.jsonl": RESULT, "out.jsonl.partial": ""}, "is unfinished"),
        ({"out.jsonl": '{"prompt":"an input"}\n'}, "nothing is known of it"),
        ({"out.jsonl": "not JSON"}, "nothing is known of it"),
        ({"out.jsonl": ""}, "nothing is known of it"),
    ],
)
def test_without_a_run_it_is_said_what_is_there(tmp_path: Path, files: dict[str, str], state: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(NoRun) as none:
        reach(str(tmp_path / "out.jsonl"), {"XDG_STATE_HOME": "/nowhere"}, SOON_S)
    assert state in str(none.value)
    assert f"looked for {tmp_path / 'out.jsonl.ctl'} and /nowhere/llmbatch/" in str(none.value)


def test_a_stale_socket_is_no_run(tmp_path: Path) -> None:
    ControlSocket(tmp_path / "out.jsonl.ctl").listening.close()
    with pytest.raises(NoRun):
        reach(str(tmp_path / "out.jsonl"), {}, SOON_S)


def test_a_run_without_a_socket_is_told_with_its_pid(tmp_path: Path) -> None:
    paths = OutputPaths.of(str(tmp_path / "out.jsonl"))
    with (
        OutputLock.acquire(paths),
        pytest.raises(OutputRefused, match=rf"a run holds .*pid {os.getpid()} .*kill -USR1"),
    ):
        reach(str(paths.out), {}, SOON_S)


def test_a_name_that_can_be_no_file_is_bad_usage() -> None:
    with pytest.raises(OptionsError, match="File name too long"):
        reach("n" * 300, {}, SOON_S)


def test_a_place_that_is_closed_to_us_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path, timeout_s: float) -> socket.socket:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("llmbatch.files.reach.connect", closed)
    with pytest.raises(OutputRefused, match=r"out.ctl: Permission denied; only its owner can ask a run"):
        reach(str(tmp_path / "out"), {}, SOON_S)
