"""The raw bytes of an input: a file up to the size it had at the start, a pipe until it ends; gzip, zstd unpacked."""

from __future__ import annotations

import errno
import importlib
import io
import os
import select
import shlex
import stat
import tempfile
import zlib
from pathlib import Path
from typing import Any, Protocol

from llmbatch.errors import InputError, StorageError
from llmbatch.files.sniff import GZIP_MAGIC
from llmbatch.options import STDIO
from llmbatch.rules.reasons import excerpt

CHUNK_BYTES = 64 * 1024
ZLIB_GZIP = 31  # window bits: zlib's "gzip header and trailer" (zlib manual, inflateInit2)


class ByteSource:
    """The raw bytes of one input: a file up to the size it had when it was opened, or a pipe until it ends.

    A file is read by position, so that two sources over one descriptor do not disturb each other.
    """

    def __init__(self, fd: int, path: str, *, start: int = 0, end: int | None = None) -> None:
        self.path = path
        self._fd, self._closed = fd, False
        self._opened = os.fstat(fd)
        self._start = start
        self._end = end if end is not None else self._opened.st_size if stat.S_ISREG(self._opened.st_mode) else None
        self._pushed_back = b""
        self.bytes_read = 0

    @classmethod
    def spool_file(cls, directory: Path) -> ByteSource:
        try:
            fd, name = tempfile.mkstemp(prefix=".llmbatch-input-", dir=directory)  # mode 0600
            Path(name).unlink()
        except OSError as error:
            raise _storage_error("write a copy of standard input in", str(directory), error) from error
        return cls(fd, f"copy of the input in {directory}")

    @property
    def name(self) -> str:
        return "standard input" if self.path == STDIO else excerpt(self.path)

    @property
    def size_bytes(self) -> int | None:
        return None if self._end is None else max(0, self._end - self._start)

    def again(self) -> ByteSource:
        """The same file from its start, over a descriptor of its own."""
        twin = ByteSource(os.dup(self._fd), self.path, start=self._start, end=self._end)
        twin._opened = self._opened
        return twin

    def read(self) -> bytes:
        """The next bytes, as soon as there are some; empty at the end. Raises StorageError."""
        data = self._pushed_back or self._read_retrying()
        self._pushed_back = b""
        self.bytes_read += len(data)
        return data

    def push_back(self, data: bytes) -> None:
        self._pushed_back = data
        self.bytes_read -= len(data)

    def append(self, chunk: bytes) -> None:
        """Write to a spool file. Raises StorageError."""
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise _storage_error("write", self.name, error) from error
        self._end = (self._end or 0) + len(chunk)
        self._opened = os.fstat(self._fd)

    def cut(self) -> str | None:
        """Whether a file that is not read from start to end became shorter since it was opened."""
        missing = 0 if self._end is None else self._end - os.fstat(self._fd).st_size
        return f"{self.name} shrank while it was read: {missing} bytes are missing" if missing > 0 else None

    def shrunk(self) -> str | None:
        missing = (self.size_bytes or 0) - self.bytes_read
        return f"{self.name} shrank while it was read: {missing} bytes are missing" if missing > 0 else None

    def seekable(self) -> Seekable:
        """The same bytes for a reader that jumps about in them; what it has read counts here. Of a file only."""
        assert self._end is not None, "a pipe has one direction"
        return Seekable(self, self._fd, self._start, self._end - self._start)

    def changed(self) -> str | None:
        """What happened to a file while it was read, None for a pipe or if nothing did."""
        if self._end is None:
            return None
        now, was = os.fstat(self._fd), self._opened
        if now.st_size > was.st_size:
            return f"{self.name} grew while it was read: what came after the first {self._end} bytes was not run"
        if now.st_mtime_ns != was.st_mtime_ns:
            return f"{self.name} was modified while it was read: rows may be mixed from old and new content"
        return f"{self.name} was replaced while it was read: the old content was run" if self._replaced() else None

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)

    def _read_retrying(self) -> bytes:
        try:
            return self._read_some()
        except BlockingIOError:  # a pipe another process made non-blocking
            select.select([self._fd], [], [])
            return self._read_retrying()
        except OSError as error:
            raise _storage_error(f"read on after byte {self.bytes_read} of", self.name, error) from error

    def _read_some(self) -> bytes:
        if self._end is None:
            return os.read(self._fd, CHUNK_BYTES)
        position = self._start + self.bytes_read
        return os.pread(self._fd, min(CHUNK_BYTES, max(0, self._end - position)), position)

    def _replaced(self) -> bool:
        if self.path == STDIO or self._opened.st_nlink == 0:
            return False
        try:
            now = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return True
        return (now.st_dev, now.st_ino) != (self._opened.st_dev, self._opened.st_ino)


class Seekable(io.RawIOBase):
    """A file by position, so that twins do not disturb each other; closing it leaves the descriptor open."""

    def __init__(self, source: ByteSource, fd: int, start: int, size: int) -> None:
        self._source, self._fd, self._start, self._size = source, fd, start, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._fd, max(0, min(len(buffer), self._size - self._at)), self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        self._source.bytes_read = min(self._size, self._source.bytes_read + len(data))
        return len(data)


class Unpacked(Protocol):
    """What comes out of packed bytes; ``damage`` says why it ended too early."""

    damage: str | None

    def read(self) -> bytes: ...


class Gunzip:
    """Inflates gzip members one after another, one chunk at a time: a bomb meets the cap on lines, not the memory."""

    def __init__(self, source: ByteSource) -> None:
        self.damage: str | None = None
        self._source = source
        self._member = zlib.decompressobj(ZLIB_GZIP)

    def read(self) -> bytes:
        try:
            while not self._member.eof or self._next_member():
                raw = self._member.unconsumed_tail or self._source.read()
                inflated = self._member.decompress(raw, CHUNK_BYTES)
                if inflated:
                    return inflated
                if not raw:
                    self.damage = f"{self._source.name} is cut short: the gzip data has no end, so rows are missing"
                    break
        except zlib.error as error:
            self.damage = f"{self._source.name} is damaged gzip ({error}): rows are missing"
        return b""

    def _next_member(self) -> bool:
        rest = self._member.unused_data
        while len(rest.lstrip(b"\x00")) < len(GZIP_MAGIC) and (more := self._source.read()):
            rest += more
        rest = rest.lstrip(b"\x00")  # tapes and block devices pad with zeros (gzip manual)
        if rest and not rest.startswith(GZIP_MAGIC):
            self.damage = f"{self._source.name} has {excerpt(repr(rest[:20]))} after its gzip data: not read"
        if not rest or self.damage:
            return False
        self._member = zlib.decompressobj(ZLIB_GZIP)
        self._source.push_back(rest)
        return True


class Unzstd:
    """Unpacks zstd frames one after another, one chunk at a time. Raises InputError without a library for it."""

    def __init__(self, source: ByteSource) -> None:
        self.damage: str | None = None
        self._source = source
        self._zstd = zstd_library(source.path)
        self._frame = self._zstd.ZstdDecompressor()

    def read(self) -> bytes:
        try:
            while not self._frame.eof or self._next_frame():
                raw = self._source.read() if self._frame.needs_input else b""
                if self._frame.needs_input and not raw:
                    self.damage = f"{self._source.name} is cut short: the zstd data has no end, so rows are missing"
                    break
                if unpacked := self._frame.decompress(raw, CHUNK_BYTES):
                    return bytes(unpacked)
        except self._zstd.ZstdError as error:
            self.damage = f"{self._source.name} is damaged zstd ({error}): rows are missing"
        return b""

    def _next_frame(self) -> bool:
        rest = self._frame.unused_data or self._source.read()
        if rest:
            self._frame = self._zstd.ZstdDecompressor()
            self._source.push_back(rest)
        return bool(rest)


def zstd_library(path: str) -> Any:
    """Python 3.14's own, or the same for older ones. Raises InputError with the commands that help."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    command = f"zstdcat {'' if path == STDIO else shlex.quote(path) + ' '}| llmbatch run -"
    raise InputError(f"{excerpt(path)} is zstd compressed: pip install 'llmbatch[zstd]', or {command}")


def _storage_error(doing: str, name: str, error: OSError) -> StorageError:
    why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
    return StorageError(f"cannot {doing} {name}: {why}; the same command continues")
