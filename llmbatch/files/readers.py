"""The user's input file or pipe, streamed as batches of lines; a wrong file is refused when it is opened.

All blocking reads happen in daemon threads: a read that waits for a pipe may never end, and a thread of the
loop's executor would then keep the process from exiting.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import orjson

from llmbatch.errors import InputError
from llmbatch.files import parquet
from llmbatch.files.lines import BOM, LineSplitter
from llmbatch.files.sniff import (
    HEAD_BYTES,
    PARQUET_MAGIC,
    Format,
    FormatOption,
    Packing,
    doubt,
    enough,
    first_line,
    packing,
    sniff,
)
from llmbatch.files.sources import ZLIB_GZIP, ByteSource, Gunzip, Unpacked, Unzstd, zstd_library
from llmbatch.files.tables import RecordSplitter, delimiter_of, header_names
from llmbatch.options import MAX_LINE_BYTES, STDIO
from llmbatch.records import Line
from llmbatch.rules.reasons import excerpt

# Four chunks read ahead (256 KiB) keep the loop fed for 80 ms at 10,000 rows/s, longer than a disk needs.
QUEUED_BATCHES = 4

T = TypeVar("T")
Item = list[Line] | Exception | None

_DELIMITER_WORDS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars (|)"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What was found out about an input; ``delimiter`` stands between the cells of CSV and TSV."""

    format: Format
    packing: Packing = "none"
    delimiter: str = ","

    @property
    def is_table(self) -> bool:
        """Whether it has a header, and cells."""
        return self.format in ("csv", "tsv")


async def open_input(
    path: str, *, input_format: FormatOption = "auto", max_line_bytes: int = MAX_LINE_BYTES
) -> InputFile:
    """Open ``path``, or standard input for ``-``, and look at its first lines.

    Raises InputError for what is no file of rows, with the command that would help; StorageError if reading fails.
    """
    return await _in_daemon_thread(lambda: _open(path, input_format, max_line_bytes))


class InputFile:
    """An open input. Read it once, with ``batches``; ``reopen`` gives a fresh one over the very same file.

    ``size_bytes`` is None for a pipe. ``bytes_read`` counts bytes of the file (compressed ones of a packed one), up to
    256 KiB ahead of the lines delivered; offsets of lines count decompressed bytes, and are 0 in Parquet. ``notes`` say
    how it is read where that had to be guessed. After the last batch, ``warnings`` says what was odd, and ``truncated``
    is True if rows are missing (cut gzip, file shrunk).
    One task may read it; ``close`` may be called at any time, and ends a reading that waits.
    """

    def __init__(self, source: ByteSource, shape: Shape, max_line_bytes: int) -> None:
        self.format = shape.format
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.truncated = False
        self.first_line = b""
        self._source = source
        self._shape = shape
        self._max_line_bytes = max_line_bytes
        # What a thread reads it also closes, so a file, which may be opened again, lends it a second descriptor.
        self._reading: ByteSource | None = None
        self._splitter = _splitter(shape, max_line_bytes)
        self._slots = threading.Semaphore(QUEUED_BATCHES)
        self._stopped = threading.Event()
        self._post: Callable[[Item], None] | None = None

    def __repr__(self) -> str:
        return f"<InputFile {self._source.name} {self.format} {self.bytes_read}/{self.size_bytes} bytes>"

    @property
    def size_bytes(self) -> int | None:
        return self._source.size_bytes

    @property
    def bytes_read(self) -> int:
        return self._reading.bytes_read if self._reading is not None else 0

    @property
    def packed(self) -> bool:
        """Whether offsets of lines tell nothing of how far into the file they are."""
        return self._shape.packing != "none" or self.format == "parquet"

    @property
    def blank_lines(self) -> int:
        return self._splitter.blank_lines

    @property
    def reopenable(self) -> bool:
        return self._source.size_bytes is not None

    def reopen(self) -> InputFile:
        """The same file again from its start, up to the same size; InputError for a pipe: ``spool`` it first."""
        if not self.reopenable:
            raise InputError("a pipe can be read only once")
        return InputFile(self._source.again(), self._shape, self._max_line_bytes)

    async def batches(self) -> AsyncIterator[list[Line]]:
        """Lists of lines as they come: about 64 KiB from a file, from a pipe what has arrived.

        Raises StorageError if a read fails half-way, InputError if the first line does not end.
        """
        queue: asyncio.Queue[Item] = asyncio.Queue()  # bounded by the slots, which its thread waits for
        loop = asyncio.get_running_loop()
        source = self._lend()
        self._post = lambda item: _call_in_loop(loop, lambda: queue.put_nowait(item))
        threading.Thread(target=self._pump, args=(source, self._post), name="llmbatch-input", daemon=True).start()
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self._slots.release()
                yield item
        finally:
            self._stop()

    async def spool(self, directory: Path) -> InputFile:
        """Copy the rest of a pipe into an unnamed file (mode 0600) in ``directory`` and return an input over it.

        This input is used up. Raises StorageError if the disk is full.
        """
        source = self._lend()
        try:
            spooled = await _in_daemon_thread(lambda: self._copy(source, directory))
        finally:
            self._stop()
        return InputFile(spooled, self._shape, self._max_line_bytes)

    def close(self) -> None:
        """Stop reading. A thread that waits in a read is left behind; it ends with the process."""
        self._stop()
        if self._reading is not self._source:
            self._source.close()

    def _lend(self) -> ByteSource:
        if self._reading is not None or self._stopped.is_set():
            raise RuntimeError("this input was read already")
        self._reading = self._source.again() if self.reopenable else self._source
        return self._reading

    def _stop(self) -> None:
        self._stopped.set()
        self._slots.release()
        if self._post is not None:
            self._post(None)

    def _pump(self, source: ByteSource, post: Callable[[Item], None]) -> None:
        end: Exception | None = None
        try:
            for batch in self._read_lines(source):
                self._slots.acquire()
                if self._stopped.is_set():
                    break
                post(batch)
        except Exception as error:  # handed over to the task that reads
            end = error
        finally:
            source.close()
        post(end)

    def _read_lines(self, source: ByteSource) -> Iterator[list[Line]]:
        if self.format == "parquet":
            yield from parquet.batches(source.seekable(), source.name, self._max_line_bytes)
            self._look_back(source, source.cut())
            return
        unpacker = _unpacker(source, self._shape.packing)
        read = unpacker.read if unpacker else source.read
        while not self._stopped.is_set() and (chunk := read()):
            if batch := self._splitter.feed(chunk):
                yield batch
        if self._stopped.is_set():
            return
        if batch := self._splitter.finish():
            yield batch
        self._look_back(source, unpacker.damage if unpacker and unpacker.damage else source.shrunk())

    def _look_back(self, source: ByteSource, missing: str | None) -> None:
        if missing:
            self.truncated = True
            self.warnings.append(missing)
        if changed := source.changed():
            self.warnings.append(changed)

    def _copy(self, source: ByteSource, directory: Path) -> ByteSource:
        copy = ByteSource.spool_file(directory)
        try:
            while not self._stopped.is_set() and (chunk := source.read()):
                copy.append(chunk)
        except BaseException:
            copy.close()
            raise
        finally:
            source.close()
        return copy


def _open(path: str, input_format: FormatOption, max_line_bytes: int) -> InputFile:
    source = _open_source(path)
    try:
        head, raw, packed = _read_head(source, path)
        found = sniff(head, path, input_format)
        if found == "parquet":
            return _open_parquet(source, raw, packed, max_line_bytes)
        if found in ("csv", "tsv"):
            head, raw = _read_on(source, path, head, raw, packed)
    except BaseException:
        source.close()
        raise
    source.push_back(raw)
    first, rest = first_line(head.removeprefix(BOM))
    shape = Shape(found, packed, delimiter_of(first) if found == "csv" else "\t")
    opened = InputFile(source, shape, max_line_bytes)
    opened.first_line = first
    if shape.is_table:
        opened.first_line = _header_as_row(first, shape) + first_line(rest)[0]
        opened.notes.append(f"{source.name} is read as {found.upper()}, with {_DELIMITER_WORDS[shape.delimiter]}")
    opened.warnings.extend(filter(None, [doubt(head, path, found)]))
    return opened


def _open_parquet(source: ByteSource, raw: bytes, packed: Packing, max_line_bytes: int) -> InputFile:
    if packed != "none":
        raise InputError(f"{source.name} is Parquet within {packed}: unpack it first")
    if source.size_bytes is None:
        raise InputError("Parquet can not be read from a pipe, for its index is at the end: give the name of the file")
    columns = parquet.column_names(source.seekable(), source.name)
    source.push_back(raw)
    opened = InputFile(source, Shape("parquet"), max_line_bytes)
    opened.first_line = orjson.dumps(dict.fromkeys(columns))
    return opened


def _header_as_row(header: bytes, shape: Shape) -> bytes:
    """The names of the columns as the members of a row."""
    names, _ = header_names(header, shape.delimiter)
    return orjson.dumps(dict.fromkeys(names))


def _splitter(shape: Shape, max_line_bytes: int) -> LineSplitter | RecordSplitter:
    return RecordSplitter(max_line_bytes, shape.delimiter) if shape.is_table else LineSplitter(max_line_bytes)


def _unpacker(source: ByteSource, packing: Packing) -> Unpacked | None:
    if packing == "none":
        return None
    return Gunzip(source) if packing == "gzip" else Unzstd(source)


def _open_source(path: str) -> ByteSource:
    if path == STDIO:
        return _standard_input()
    try:
        _refuse_by_mode(os.stat(path).st_mode, path)  # noqa: PTH116
        return ByteSource(os.open(path, os.O_RDONLY), path)
    except FileNotFoundError:
        raise InputError(f"no such file: {excerpt(path)}") from None
    except PermissionError:
        raise InputError(f"no permission to read {excerpt(path)}: chmod u+r {shlex.quote(path)}") from None
    except OSError as error:
        raise InputError(f"cannot open {excerpt(path)}: {error.strerror}") from error


def _standard_input() -> ByteSource:
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        raise InputError("standard input is closed: give a file, or pipe rows in") from None
    _refuse_by_mode(mode, "standard input")
    start = os.lseek(0, 0, os.SEEK_CUR) if stat.S_ISREG(mode) else 0
    return ByteSource(os.dup(0), STDIO, start=start)  # its own descriptor, to be closed like any other


def _refuse_by_mode(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        every = shlex.quote(name.rstrip("/")) + "/*.jsonl"
        raise InputError(f"{excerpt(name)} is a directory: cat {every} | llmbatch run -")
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise InputError(f"{excerpt(name)} is a {'socket' if stat.S_ISSOCK(mode) else 'device'}, not a file of rows")


def _read_head(source: ByteSource, path: str) -> tuple[bytes, bytes, Packing]:
    """What decides the format: decompressed bytes, the raw bytes they came from, and how those are packed."""
    raw = b""
    while len(raw) < 6 and (more := source.read()):  # the longest magic number
        raw += more
    packed = packing(raw, path)
    head = _unpacked_head(raw, path, packed)
    while not _tells(head) and max(len(head), len(raw)) < HEAD_BYTES and (more := source.read()):
        raw += more
        head = _unpacked_head(raw, path, packed)
    if packed != "none" and packing(head, path) != "none":
        raise InputError(f"{excerpt(path)} is packed twice: unpack it once")
    return head, raw, packed


def _read_on(source: ByteSource, path: str, head: bytes, raw: bytes, packed: Packing) -> tuple[bytes, bytes]:
    """Until a table's first row stands behind its header, for the header alone does not tell two pipes apart."""
    while head.strip().count(b"\n") < 2 and max(len(head), len(raw)) < HEAD_BYTES and (more := source.read()):
        raw += more
        head = _unpacked_head(raw, path, packed)
    return head, raw


def _tells(head: bytes) -> bool:
    return head.startswith(PARQUET_MAGIC) or enough(head)


def _unpacked_head(raw: bytes, path: str, packed: Packing) -> bytes:
    if packed == "none":
        return raw
    if packed == "zstd":
        return _unzstd_head(raw, path)
    try:
        return zlib.decompressobj(ZLIB_GZIP).decompress(raw, HEAD_BYTES)
    except zlib.error as error:
        raise InputError(f"{excerpt(path)} is damaged gzip: {error}") from None


def _unzstd_head(raw: bytes, path: str) -> bytes:
    zstd = zstd_library(path)
    try:
        return bytes(zstd.ZstdDecompressor().decompress(raw, HEAD_BYTES))
    except zstd.ZstdError as error:
        raise InputError(f"{excerpt(path)} is damaged zstd: {error}") from None


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except Exception as error:
            failure = error
            _call_in_loop(loop, lambda: None if done.done() else done.set_exception(failure))
        else:
            _call_in_loop(loop, lambda: None if done.done() else done.set_result(result))

    threading.Thread(target=run, name="llmbatch-open", daemon=True).start()
    return await done


def _call_in_loop(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:  # the loop is closed, so nobody waits
        return
