"""One run per output: a flock on a file of its own that is never renamed.

The kernel drops the lock when its holder dies, however it dies, so a lock file left behind holds nobody up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import orjson

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.files.paths import OutputPaths, cannot_open, open_private


class OutputLock:
    """Holds an output for this process until ``release``; do not fork meanwhile, a child would hold it too.

    ``acquire`` raises OutputRefused when another run holds it, OptionsError when the directory is missing or read-only.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    @classmethod
    def acquire(cls, paths: OutputPaths) -> OutputLock:
        while True:
            fd = _open(paths.lock)
            try:
                _flock(fd, paths)
                if _is_same_file(fd, paths.lock):
                    _sign(fd)
                    return cls(paths.lock, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its holder removed it between our open and our flock: lock the new one

    def release(self) -> None:
        """Remove the lock file, if it is still ours, then let go. A second call does nothing."""
        if self._fd < 0:
            return
        if _is_same_file(self._fd, self._path):
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> OutputLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def _open(path: Path) -> int:
    try:
        return open_private(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise cannot_open(path, error) from error


def _flock(fd: int, paths: OutputPaths) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputRefused(
            f"another run holds {paths.out}: {_holder(fd)}; wait for it, stop it, or choose another --output"
        ) from None
    except OSError as error:
        raise OptionsError(f"cannot lock {paths.lock}: {error.strerror}; put the output on a local disk") from error


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _sign(fd: int) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    os.ftruncate(fd, 0)
    os.pwrite(fd, orjson.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}) + b"\n", 0)


def _holder(fd: int) -> str:
    try:
        holder = orjson.loads(os.pread(fd, 4096, 0))
        return f"pid {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return "a process that has not signed the lock yet"
