"""One run per output: a flock on a file of its own that is never renamed.

The kernel drops the lock when its holder dies, however it dies, so a lock file left behind holds nobody up. It then
tells how many requests were in flight: a number at its end that the holder keeps true.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import orjson

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.files.paths import OutputPaths, cannot_open, open_private, write_all

# Of a fixed width, so that it is changed in place by one small write, and the signature is whole at every moment.
_IN_FLIGHT_DIGITS = 9
_START = b'{"pid":'
# More than a signature has.
_SIGNED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Signature:
    """Who holds a lock, or held it. ``in_flight`` answers were not in the journal yet; never less than the truth."""

    pid: int
    host: str
    started: str
    in_flight: int = 0

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, started {self.started}"

    @classmethod
    def parse(cls, data: bytes) -> Signature | None:
        """None if ``data`` is no signature of ours. One without the number is of an earlier version."""
        try:
            fields = orjson.loads(data)
            pid, host, started = fields["pid"], fields["host"], fields["started"]
            return cls(int(pid), str(host), str(started), int(fields.get("in_flight", 0)))
        except (ValueError, KeyError, TypeError):
            return None

    def dump(self) -> bytes:
        """One line of JSON; the number stands last, with blanks before it."""
        named = orjson.dumps({"pid": self.pid, "host": self.host, "started": self.started})
        return named[:-1] + b',"in_flight":%*d}\n' % (_IN_FLIGHT_DIGITS, self.in_flight)


class OutputLock:
    """Holds an output for this process until ``release``; do not fork meanwhile, a child would hold it too.

    ``cut_off`` is what a holder that died left of itself, None after one that ended well.

    ``acquire`` raises OutputRefused when another run holds it or a lock file that is not ours stands there,
    OptionsError when the directory is missing or read-only.
    """

    def __init__(self, path: Path, fd: int, cut_off: Signature | None, signed_bytes: int) -> None:
        self.cut_off = cut_off
        self._path = path
        self._fd = fd
        self._noted = -1
        self._number_at = signed_bytes - len(b"}\n") - _IN_FLIGHT_DIGITS

    @classmethod
    def acquire(cls, paths: OutputPaths) -> OutputLock:
        while True:
            fd = _open(paths.lock)
            try:
                _flock(fd, paths)
                if _is_same_file(fd, paths.lock):
                    _refuse_foreign(fd, paths)
                    cut_off = _holder(fd)
                    # Until something is sent, a kill of this run leaves what the last one left.
                    signed_bytes = _sign(fd, paths, 0 if cut_off is None else cut_off.in_flight)
                    return cls(paths.lock, fd, cut_off, signed_bytes)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its holder removed it between our open and our flock: lock the new one

    @staticmethod
    def check(paths: OutputPaths) -> None:
        """Raise what ``acquire`` would raise now, and change nothing."""
        try:
            fd = open_private(paths.lock, os.O_RDONLY)
        except FileNotFoundError:
            _check_directory(paths)
            return
        except OSError as error:
            raise cannot_open(paths.lock, error) from error
        try:
            _flock(fd, paths)
            _refuse_foreign(fd, paths)
        finally:
            os.close(fd)

    def note_in_flight(self, requests: int) -> None:
        """How many answers a kill would cost from now on, for the next run to tell. Failing here hurts nobody."""
        if requests == self._noted or self._fd < 0:
            return
        self._noted = requests
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, b"%*d" % (_IN_FLIGHT_DIGITS, requests), self._number_at)

    def release(self) -> None:
        """Remove the lock file, if it is still ours, then let go. A second call does nothing."""
        if self._fd < 0:
            return
        if _is_same_file(self._fd, self._path):
            with contextlib.suppress(OSError):
                self._path.unlink()
        with contextlib.suppress(OSError):  # nothing that it holds must last
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> OutputLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def holder(paths: OutputPaths) -> Signature | None:
    """Who holds the output; None if nobody does, or it can not be told. A kill leaves a lock file that nobody holds."""
    if not paths.lock.exists():
        return None
    with contextlib.suppress(OptionsError, OSError):
        try:
            OutputLock.check(paths)
        except OutputRefused:
            return Signature.parse(paths.lock.read_bytes()[:_SIGNED_BYTES])
    return None


def _open(path: Path) -> int:
    try:
        return open_private(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise cannot_open(path, error) from error


def _flock(fd: int, paths: OutputPaths) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(fd) or "a process that has not signed the lock yet"
        raise OutputRefused(
            f"another run holds {paths.out}: {holder}; wait for it, stop it, or choose another --output"
        ) from None
    except OSError as error:
        raise OptionsError(f"cannot lock {paths.lock}: {error.strerror}; put the output on a local disk") from error


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _check_directory(paths: OutputPaths) -> None:
    wrong = None
    if not paths.directory.is_dir():
        wrong = errno.ENOTDIR if paths.directory.exists() else errno.ENOENT
    elif not os.access(paths.directory, os.W_OK | os.X_OK):
        wrong = errno.EACCES
    if wrong is not None:
        raise cannot_open(paths.lock, OSError(wrong, os.strerror(wrong)))


def _refuse_foreign(fd: int, paths: OutputPaths) -> None:
    """Many tools keep a NAME.lock: one that we did not sign is not ours to write or to remove."""
    if not stat.S_ISREG(os.fstat(fd).st_mode) or not (_holder(fd) or _is_torn(os.pread(fd, _SIGNED_BYTES, 0))):
        raise OutputRefused(f"{paths.lock} is not a lock of llmbatch; choose another --output")


def _is_torn(data: bytes) -> bool:
    """Nothing, or the beginning of a signature, or zeros: what a kill or a power cut leaves of ours."""
    written = data.rstrip(b"\0")
    return not written.endswith(b"\n") and _START.startswith(written[: len(_START)])


def _sign(fd: int, paths: OutputPaths, in_flight: int) -> int:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    signature = Signature(os.getpid(), socket.gethostname(), started, in_flight).dump()
    try:
        os.ftruncate(fd, 0)
        write_all(fd, signature)
    except OSError as error:
        raise cannot_open(paths.lock, error) from error
    return len(signature)


def _holder(fd: int) -> Signature | None:
    """Who signed the lock; None if this is no signature of ours."""
    return Signature.parse(os.pread(fd, _SIGNED_BYTES, 0))
