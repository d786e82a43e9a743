"""One run per output: a flock on a file of its own that is never renamed.

The kernel drops the lock when its holder dies, however it dies, so a lock file left behind holds nobody up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import orjson

from llmbatch.errors import OptionsError, OutputRefused
from llmbatch.files.paths import OutputPaths, cannot_open, open_private, write_all


class OutputLock:
    """Holds an output for this process until ``release``; do not fork meanwhile, a child would hold it too.

    ``acquire`` raises OutputRefused when another run holds it or a lock file that is not ours stands there,
    OptionsError when the directory is missing or read-only.
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
                    _refuse_foreign(fd, paths)
                    _sign(fd, paths)
                    return cls(paths.lock, fd)
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
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or (status.st_size and _holder(fd) is None):
        raise OutputRefused(f"{paths.lock} is not a lock of llmbatch; choose another --output")


def _sign(fd: int, paths: OutputPaths) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    signature = orjson.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}) + b"\n"
    try:
        os.ftruncate(fd, 0)
        write_all(fd, signature)
    except OSError as error:
        raise cannot_open(paths.lock, error) from error


def _holder(fd: int) -> str | None:
    """Who signed the lock; None if this is no signature of ours."""
    try:
        holder = orjson.loads(os.pread(fd, 4096, 0))
        return f"pid {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (ValueError, KeyError, TypeError):
        return None
