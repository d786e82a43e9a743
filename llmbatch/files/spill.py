"""Where lines go that the output's own disk refuses: a file in another directory, as good as the journal."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from llmbatch.files.paths import sync_data, sync_directory, write_all

_CHUNK_BYTES = 1 << 20


def spill_directories(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Best first: the user's state directory (XDG Base Directory Specification), then TMPDIR."""
    state = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local" / "state")
    return Path(state) / "llmbatch", Path(environ.get("TMPDIR") or tempfile.gettempdir())


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

    def __init__(self, name: str, directories: Sequence[Path]) -> None:
        self.files: list[Path] = []
        self._name = name
        self._directories = directories

    def save(self, held: Held | None, lines: Sequence[bytes]) -> bool:
        """All or nothing; False if no directory takes them."""
        if self.files:
            with contextlib.suppress(OSError):
                _append(self.files[-1], held, lines)
                return True
        for directory in self._directories:
            with contextlib.suppress(OSError):
                self.files.append(_create(directory, self._name, held, lines))
                return True
        return False

    def next_step(self, journal: Path, unsaved: int) -> str:
        """What the user can do about it."""
        saved = f"answers that it does not hold are in {', '.join(map(str, self.files))}: " if self.files else ""
        back = f"cat {' '.join(quote(str(file)) for file in self.files)} >> {quote(str(journal))}; " if saved else ""
        answers = "1 answer" if unsaved == 1 else f"{unsaved} answers"
        lost = f"{answers} could not be saved anywhere and will be sent again; " if unsaved else ""
        return f"{lost}{saved}{back}when that is mended, the same command continues"


def _create(directory: Path, name: str, held: Held | None, lines: Sequence[bytes]) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, path = tempfile.mkstemp(prefix=f"{name}.", suffix=".spill", dir=directory)
    os.close(fd)
    try:
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
