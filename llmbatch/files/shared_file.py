"""A small private file that several processes of one user change in turn, each under flock and without waiting long.

A run can do without it (`OptionalFile`): what is wrong with it is said once, and it is not asked again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from llmbatch.files.paths import open_private, write_all

FOLDER = "limits"
MAX_BYTES = 1 << 20
# Who holds the lock needs some 20 microseconds; the event loop waits at most this often and this long.
_TRIES = 4
_PAUSE_S = 0.0003
# A shorter content is padded to the size that is there: one write then replaces it, and a kill leaves no half of it.
_BLOCK_BYTES = 256


class SharedFile:
    """``limits/NAME`` in the state directory, 0600. Used by one thread; opening and changing it raise OSError.

    It is not made durable: what it holds need not survive a power cut. A file that was removed is made anew.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / FOLDER / name
        self._fd = _open(self.path)

    def change(self, edit: Callable[[bytes], bytes]) -> bool:
        """Replace the content by ``edit`` of it; False if others hold the lock just now, and nothing is changed."""
        while self._lock():
            try:
                if os.fstat(self._fd).st_nlink:
                    self._replace(edit)
                    return True
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.close()
            self._fd = _open(self.path)
        return False

    def close(self) -> None:
        """A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lock(self) -> bool:
        for last in range(_TRIES - 1, -1, -1):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if last:
                    time.sleep(_PAUSE_S)
        return False

    def _replace(self, edit: Callable[[bytes], bytes]) -> None:
        before = os.pread(self._fd, MAX_BYTES + 1, 0)
        after = edit(before.rstrip(b" "))
        if len(before) > MAX_BYTES:
            os.ftruncate(self._fd, 0)
            before = b""
        size = max(len(before), -(-len(after) // _BLOCK_BYTES) * _BLOCK_BYTES)
        os.lseek(self._fd, 0, os.SEEK_SET)
        write_all(self._fd, after.ljust(size))


class OptionalFile:
    """A `SharedFile` that may be missing. Each thing that is wrong is said once, by ``warn``, as ``about: ...``.

    ``alone`` says what it means for the run to be without it, ``called`` what the file is to people.
    """

    def __init__(self, about: str, called: str, alone: str, warn: Callable[[str], None]) -> None:
        self._about = about
        self._called = called
        self._alone = alone
        self._warn = warn
        self._file: SharedFile | None = None
        self._said: set[str] = set()

    @property
    def usable(self) -> bool:
        """Whether it is there, and no change of it has failed."""
        return self._file is not None

    def open(self, directory: Path | None, name: str) -> None:
        """In the state directory; None is that of a user without a home."""
        try:
            if directory is None:
                self.say(f"there is no home directory for {self._called}: set XDG_STATE_HOME; {self._alone}")
            else:
                self._file = SharedFile(directory, name)
        except OSError as error:
            self._unusable(directory, error)

    def change(self, edit: Callable[[bytes], bytes]) -> bool:
        """As `SharedFile.change`; False also when it can not be used, from now on."""
        assert self._file is not None, "a file that can not be used is not asked again"
        try:
            return self._file.change(edit)
        except OSError as error:
            path = self._file.path
            self.close()
            self._unusable(path, error)
            return False

    def close(self) -> None:
        """It is not usable any more. A second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def say(self, text: str) -> None:
        """Once each."""
        if text not in self._said:
            self._said.add(text)
            self._warn(f"{self._about}: {text}")

    def _unusable(self, path: Path | None, error: OSError) -> None:
        self.say(f"cannot use {error.filename or path}: {error.strerror}; {self._alone}")


def _open(path: Path) -> int:
    """Raises OSError also for what is there and is not ours alone."""
    path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _refuse_foreign(path.parent.lstat(), stat.S_ISDIR)
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        _refuse_foreign(os.fstat(fd), stat.S_ISREG)
    except OSError:
        os.close(fd)
        raise
    return fd


def _refuse_foreign(status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(status.st_mode):
        raise OSError(errno.EINVAL, "something else has that name")
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(errno.EPERM, "it is not yours alone")
