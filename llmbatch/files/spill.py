"""Where lines go that the output's own disk refuses: a file in another directory, as good as the journal.

Its first line names the journal it belongs to, so that the next run finds it (files/takeback.py).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from llmbatch.files.paths import sync_data, sync_directory, write_all

SUFFIX = ".spill"
_CHUNK_BYTES = 1 << 20


def state_directory(environ: Mapping[str, str]) -> Path | None:
    """The user's state directory (XDG Base Directory Specification); None for a user without a home."""
    state = environ.get("XDG_STATE_HOME")
    if state:
        return Path(state) / "llmbatch"
    try:
        return Path(environ.get("HOME") or "~").expanduser() / ".local" / "state" / "llmbatch"
    except RuntimeError:
        return None


def spill_directories(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Best first: the user's state directory, then TMPDIR."""
    state, temporary = state_directory(environ), Path(environ.get("TMPDIR") or tempfile.gettempdir())
    return (temporary,) if state is None else (state, temporary)


def header(journal: Path) -> bytes:
    """The first line of a spill. A journal may hold it too: it reads as the mark of a start."""
    return orjson.dumps({"llmbatch": 1, "spill_of": str(journal)}, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of an open file that its name may no longer lead to."""

    fd: int
    start: int
    end: int

    def chunks(self) -> Iterator[bytes]:
        for at in range(self.start, self.end, _CHUNK_BYTES):
            yield os.pread(self.fd, min(_CHUNK_BYTES, self.end - at), at)


class Spill:
    """Saves lines durably in a private file in the first directory that takes them. Used by one thread at a time."""

    def __init__(self, journal: Path, directories: Sequence[Path]) -> None:
        self.files: list[Path] = []
        self._journal = journal
        self._directories = directories

    def save(self, held: Held | None, lines: Sequence[bytes]) -> bool:
        """All or nothing; False if no directory takes them."""
        if self.files:
            with contextlib.suppress(OSError):
                _append(self.files[-1], held, lines)
                return True
        for directory in self._directories:
            with contextlib.suppress(OSError):
                self.files.append(_create(directory, self._journal, held, lines))
                return True
        return False

    def next_step(self, unsaved: int) -> str:
        """What the user can do about it."""
        saved = f"answers that it does not hold are in {', '.join(map(str, self.files))}; " if self.files else ""
        answers = "1 answer" if unsaved == 1 else f"{unsaved} answers"
        lost = f"{answers} could not be saved anywhere and will be sent again; " if unsaved else ""
        back = ", and takes them back" if self.files else ""
        return f"{lost}{saved}when that is mended, the same command continues{back}"


def _create(directory: Path, journal: Path, held: Held | None, lines: Sequence[bytes]) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, path = tempfile.mkstemp(prefix=f"{journal.name}.", suffix=SUFFIX, dir=directory)
    os.close(fd)
    try:
        _append(Path(path), None, [header(journal)])
        _append(Path(path), held, lines)
        sync_directory(directory)
    except OSError:
        Path(path).unlink()
        raise
    return Path(path)


def _append(path: Path, held: Held | None, lines: Sequence[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    size = os.fstat(fd).st_size
    try:
        for chunk in held.chunks() if held is not None else ():
            write_all(fd, chunk)
        write_all(fd, b"".join(lines))
        sync_data(fd)
    except OSError:
        os.ftruncate(fd, size)
        raise
    finally:
        os.close(fd)
