"""Where ``--summary-json`` goes: checked before the run, written whole after it, and never left stale."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

from llmbatch.cli.scrub import scrubbed_value
from llmbatch.errors import OptionsError, StorageError
from llmbatch.files.paths import OutputPaths, is_stream, write_all
from llmbatch.files.stdout import STDOUT_FD, is_same_file
from llmbatch.options import STDIO

# Of a long name, so that the temporary one is not too long (255 bytes on most file systems).
_NAME_CHARS = 40


class SummaryFile:
    """One place for one JSON object. ``where`` None takes everything and writes nothing."""

    def __init__(self, where: str | None) -> None:
        self._where = where

    @classmethod
    def checked(cls, where: str | None, *, input_path: str, results: str | None) -> SummaryFile:
        """Raises OptionsError where it can not be written, or would hide the input or the ``results``.

        ``results`` is their path, ``-``, or None if none are written.
        """
        if where == STDIO or (where is not None and is_same_file(where, STDOUT_FD)):
            if results == STDIO:
                raise OptionsError(f"--summary-json {where}: results go to standard output; give it a file")
        elif where is not None:
            _refuse_data(where, input_path, results)
            _refuse_unwritable(where)
        return cls(where)

    def write(self, value: object) -> None:
        """Raises StorageError. A file is replaced as a whole, so that nobody reads half of it."""
        if self._where is None:
            return
        data = orjson.dumps(scrubbed_value(value), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        try:
            if self._where == STDIO:
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            elif is_stream(self._where):
                Path(self._where).write_bytes(data)
            else:
                _replace(Path(os.path.realpath(self._where)), data)
        except OSError as error:
            raise StorageError(f"--summary-json {self._where}: {error.strerror}") from error

    def write_error(self, exit_code: int, error: str) -> None:
        """What stands for the summary of a run that has none. Does not raise: the error itself is told elsewhere."""
        with contextlib.suppress(StorageError):
            self.write({"exit_code": exit_code, "error": error})


def _refuse_data(where: str, input_path: str, results: str | None) -> None:
    taken: dict[Any, str] = {} if input_path == STDIO else {os.path.realpath(input_path): "the input"}
    if results is not None and results != STDIO:
        paths = OutputPaths.of(results)
        taken |= {str(paths.out): "the output", str(paths.partial): "its journal", str(paths.lock): "its lock"}
    for path, what in taken.items():
        if os.path.realpath(where) == path or _same(where, path):
            raise OptionsError(f"--summary-json {where} is {what}; give it another file")


def _same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _refuse_unwritable(where: str) -> None:
    if is_stream(where):
        return
    path = Path(os.path.realpath(where))
    if path.is_dir():
        raise OptionsError(f"--summary-json {where} is a directory; name a file in it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OptionsError(f"--summary-json {where}: cannot write in {path.parent}; create it or make it writable")


def _replace(path: Path, data: bytes) -> None:
    """A new file beside it, renamed over it; it keeps the mode of an old one, else it is for us alone."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name[:_NAME_CHARS]}.", dir=path.parent)  # O_EXCL, O_NOFOLLOW
    try:
        try:
            os.fchmod(fd, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600)
            write_all(fd, data)
        finally:
            os.close(fd)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
