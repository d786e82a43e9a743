"""Whether the disk has room for the answers that are still to come."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmbatch.errors import StorageError

# Another program may fill the disk between two looks, and answers differ in size.
_SAFETY_FACTOR = 4
# On a big disk this much is kept free, on a small one this share: a volume of 1 GB is no reason to refuse to work.
_RESERVE_BYTES = 256 * 10**6
_RESERVE_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Space:
    """Of a file system: what is free for this user, as ``df`` says it, and all there is. 0 of 0 is unknown."""

    free_bytes: int
    total_bytes: int

    @classmethod
    def of(cls, file: int | Path) -> Space:
        """That of the file system of an open descriptor or a path; unknown where the system does not say."""
        try:
            found = os.statvfs(file)
        except OSError:
            return cls(0, 0)
        return cls(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)

    def is_low(self, in_flight: int, longest_line_bytes: int) -> bool:
        """Whether nothing more should be sent, so that what is in flight still finds room."""
        return self.total_bytes > 0 and self.free_bytes < self.reserve_bytes(in_flight, longest_line_bytes)

    def reserve_bytes(self, in_flight: int, longest_line_bytes: int) -> int:
        """What has to stay free while ``in_flight`` answers are still to be written."""
        answers = _SAFETY_FACTOR * in_flight * longest_line_bytes
        return max(answers, min(_RESERVE_BYTES, int(_RESERVE_SHARE * self.total_bytes)))


def refuse_full_disk(directory: Path) -> None:
    """Raise StorageError if answers would hardly find room there. Ask before anything is sent."""
    space = Space.of(directory)
    if space.is_low(0, 0):
        raise StorageError(f"{_nearly_full(directory, space, space.reserve_bytes(0, 0))}; nothing was sent. {_STEP}")


def running_full(path: Path, space: Space, in_flight: int, longest_line_bytes: int) -> StorageError:
    """What to tell when space became low while running."""
    reserve_bytes = space.reserve_bytes(in_flight, longest_line_bytes)
    return StorageError(f"{_nearly_full(path.parent, space, reserve_bytes)}: no new request is sent. {_STEP}")


_STEP = "Make room, then the same command continues"


def _nearly_full(directory: Path, space: Space, reserve_bytes: int) -> str:
    return (
        f"the disk of {directory} is nearly full: {megabytes(space.free_bytes)} are free, "
        f"{megabytes(reserve_bytes)} are needed for answers under way"
    )


def megabytes(size_bytes: int) -> str:
    """``0.3 MB``, ``12,400 MB``: in the unit in which disks are filled."""
    size = size_bytes / 1e6
    return f"{size:,.0f} MB" if size >= 9.95 else f"{size:.1f} MB"
