"""The names of one output's files, and the one way they are opened and made durable."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from llmbatch.errors import LlmbatchError, OptionsError, StorageError

# What a wrong path or a missing permission looks like; anything else is the disk's fault.
_USERS_FAULT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)

# How a file system says that it knows no fsync: fsync(2) on special files, some FUSE and network file systems.
_KNOWS_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)

# Other names of an open descriptor: beside them nothing can be created (Linux proc(5), macOS fd(4)).
_DESCRIPTOR = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/(self|thread-self|\d+)/fd/\d+")


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """Where everything about one output lives. A symlink is followed once, here, so that renames hit its target."""

    out: Path
    partial: Path
    lock: Path
    torn: Path
    sealing: Path
    ctl: Path

    @classmethod
    def of(cls, out: str) -> OutputPaths:
        try:
            real = Path(os.path.realpath(out))
        except FileNotFoundError:
            raise OptionsError(
                f"cannot write {out}: the working directory was deleted; cd to another one, or name the output from /"
            ) from None
        return cls(
            out=real,
            partial=real.with_name(real.name + ".partial"),
            lock=real.with_name(real.name + ".lock"),
            torn=real.with_name(real.name + ".torn"),
            sealing=real.with_name(f".{real.name}.sealing"),
            ctl=real.with_name(real.name + ".ctl"),
        )

    @property
    def directory(self) -> Path:
        return self.out.parent


def is_stream(path: str) -> bool:
    """Whether ``path`` is a pipe, a device or a socket, or another name of an open descriptor, and no file."""
    if _DESCRIPTOR.fullmatch(path):
        return True
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def open_private(path: str | Path, flags: int) -> int:
    """Open for us alone: a new file is 0600 whatever the umask, no symlink is followed, the descriptor is not 0-2."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    if not flags & os.O_CREAT:
        return _above_stdio(os.open(path, flags))
    try:
        fd = os.open(path, flags | os.O_EXCL, 0o600)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        return _above_stdio(os.open(path, flags, 0o600))
    os.fchmod(fd, 0o600)
    return _above_stdio(fd)


def _above_stdio(fd: int) -> int:
    """A process started with stdout closed would else print its messages into the journal."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """``os.write`` until nothing is left: a full disk first shows as a short write."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_data(fd: int) -> None:
    """The bytes of this file survive a power cut when this returns. Raises OSError; never call it again after that.

    Where the file system can make nothing durable (``can_sync``), nothing is made so, and that is no error.
    """
    try:
        _sync(fd)
    except OSError as error:
        if error.errno not in _KNOWS_NO_SYNC:
            raise


def can_sync(fd: int) -> bool:
    """Whether this file's file system makes files durable when it is asked to. Raises OSError."""
    try:
        _sync(fd)
    except OSError as error:
        if error.errno not in _KNOWS_NO_SYNC:
            raise
        return False
    return True


def _sync(fd: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync(2) there stops at the drive's cache
    else:
        os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """New, renamed and removed names in this directory survive a power cut when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _KNOWS_NO_SYNC:  # some network file systems sync no directories
            raise
    finally:
        os.close(fd)


def cannot_open(path: Path, error: OSError) -> LlmbatchError:
    """The error to raise when a file of an output can not be opened before anything was sent."""
    text = f"cannot write {path}: {error.strerror}"
    if error.errno in _USERS_FAULT:
        return OptionsError(f"{text}; create the directory, make it writable, or choose another --output")
    return StorageError(f"{text}; nothing was sent")
