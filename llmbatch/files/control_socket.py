"""The socket beside an output: made for its owner alone, found by its name, connected to with both owners checked.

unix(7). What counts is who is at the other end, as the kernel says it; the mode keeps others from knocking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from llmbatch.errors import OutputRefused
from llmbatch.files.spill import state_directory

SUFFIX = ".ctl"
# sun_path, with the NUL at its end: 104 bytes on macOS <sys/un.h>, 108 on Linux unix(7).
_LONGEST_NAME_BYTES = 103
_OPEN_FILES = "/proc/self/fd"
_BACKLOG = 64
_KNOCK_AGAIN_S = 0.02
# macOS <sys/un.h>, <sys/ucred.h>: struct xucred begins with a version and the user, and has up to 16 groups.
_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES = 0, 1, 76


class Answering(Protocol):
    """A socket, or what an event loop makes of one."""

    def getsockopt(self, level: int, name: int, size: int, /) -> bytes: ...


class NotASocket(OSError):
    """Something else stands where the socket belongs."""


def places(beside: Path, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where a run puts its socket, best first: ``OUT.ctl``, else in the state directory under a hash of that path."""
    state = state_directory(environ)
    name = blake2b(os.fsencode(beside), digest_size=10).hexdigest() + SUFFIX
    return (beside,) if state is None else (beside, state / name)


class ControlSocket:
    """Listens at ``path``, mode 0600 from its birth. Made under the lock of its output: an older one is stale.

    Raises NotASocket, or another OSError where there can be none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_others(path)
        private = _private_directory(path)
        born = private / "s"
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _name_to_bind(born) as name:
                self.listening.bind(name)
            self.listening.listen(_BACKLOG)
            born.chmod(0o600)
            self._identity = born.stat()
            born.rename(path)  # in one step, over a stale one too
        except BaseException:
            self.listening.close()
            with contextlib.suppress(OSError):
                born.unlink()
            raise
        finally:
            with contextlib.suppress(OSError):
                private.rmdir()

    def remove(self) -> None:
        """Its name; the socket itself belongs to who listens."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.lstat(), self._identity):
                self.path.unlink()


def open_first(candidates: Sequence[Path]) -> tuple[ControlSocket | None, list[str]]:
    """A socket at the first place that can have one; and why it is not at those before it."""
    problems: list[str] = []
    for number, path in enumerate(candidates):
        try:
            if number:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return ControlSocket(path), problems
        except NotASocket:
            problems.append(f"{path} is not a socket, and was left alone")
        except OSError as error:
            problems.append(f"no socket at {path}: {error.strerror or error}")
    return None, problems


def connect(path: Path, timeout_s: float) -> socket.socket:
    """A connection to the run that listens there. Raises OSError if none does, OutputRefused if it is not ours."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        with _name_to_connect(path) as name:
            _knock(sock, name, time.monotonic() + timeout_s)
        if not is_ours(sock):
            raise OutputRefused(f"{path} belongs to a run of another user")
    except BaseException:
        sock.close()
        raise
    return sock


def exchange(sock: socket.socket, line: bytes, most_bytes: int) -> bytes:
    """Send one line, and read the one that comes back, without its end. Raises OSError; b"" if none came."""
    sock.sendall(line)
    answer = bytearray()
    while b"\n" not in answer and len(answer) <= most_bytes:
        part = sock.recv(65536)
        if not part:
            return b""
        answer += part
    return bytes(answer.partition(b"\n")[0])


def is_ours(sock: Answering) -> bool:
    """Whether this very user is at the other end. Where the system does not tell, the mode of the socket says so."""
    return _peer_uid(sock) in (os.geteuid(), None)


def uid_in(xucred: bytes) -> int | None:
    """The user in a ``struct xucred`` (macOS, FreeBSD); None if it is too short to be one."""
    return int(struct.unpack_from("=II", xucred)[1]) if len(xucred) >= 8 else None


def _peer_uid(sock: Answering) -> int | None:
    if hasattr(socket, "SO_PEERCRED"):  # Linux: pid, uid, gid
        return int(struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
    try:
        return uid_in(sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES))
    except OSError:
        return None


def _refuse_others(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise NotASocket(errno.EEXIST, "not a socket")


def _private_directory(path: Path) -> Path:
    """Beside ``path``, and nobody else can enter it: what is bound in there is private before it has its mode.

    A umask would do the same to the files that other threads of this process make meanwhile. One that a kill left is
    used.
    """
    private = path.with_name(f".{path.name}")
    try:
        private.mkdir(mode=0o700)
    except FileExistsError:
        status = private.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise
        (private / "s").unlink(missing_ok=True)
    return private


@contextlib.contextmanager
def _name_to_bind(path: Path) -> Iterator[str]:
    """A name of ``path``, which does not exist yet, that fits into sun_path."""
    if _fits(path):
        yield str(path)
        return
    with _opened(path.parent, os.O_DIRECTORY) as name:
        yield f"{name}/{path.name}"


@contextlib.contextmanager
def _name_to_connect(path: Path) -> Iterator[str]:
    """A name of ``path``, which exists, that fits into sun_path."""
    if _fits(path):
        yield str(path)
        return
    with _opened(path, 0) as name:
        yield name


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= _LONGEST_NAME_BYTES


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[str]:
    """A short name of ``path``: proc(5) has one for each open file. Raises OSError where it has none."""
    if not Path(_OPEN_FILES).is_dir():
        raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket")
    fd = os.open(path, flags | os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"{_OPEN_FILES}/{fd}"
    finally:
        os.close(fd)


def _knock(sock: socket.socket, name: str, until_s: float) -> None:
    """Until there is room in the queue of those who wait to be let in."""
    while True:
        try:
            sock.connect(name)
            return
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise TimeoutError(errno.ETIMEDOUT, "nobody opens") from None
            time.sleep(_KNOCK_AGAIN_S)
