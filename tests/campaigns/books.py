"""Both sides' books: the provider's bills, and the lines that a run left on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from end_to_end.processes import Sim, until


class Bills:
    """The ledger file of a simulated provider, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The bills since the last call; read them to the end."""
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                self._read_bytes += len(line)
                yield orjson.loads(line)


def closed(sim: Sim, full: bool = True) -> dict[str, Any]:
    """The provider's counters, once it has answered all that was sent and every client but this one has left."""

    def idle() -> bool:
        counters = sim.ledger()
        return (counters["in_flight"], counters["connections"]) == (0, 1)

    until(idle, "the provider is idle")
    return sim.ledger(full)


def whole_lines(data: bytes) -> list[bytes]:
    """The lines of a journal without their newlines, and what follows the last newline if it is a whole record."""
    *lines, rest = data.split(b"\n")
    return [*lines, rest] if is_record(rest) else lines


def is_record(piece: bytes) -> bool:
    """Whether a line without its newline is JSON to its end."""
    try:
        return isinstance(json.loads(piece), dict)
    except ValueError:
        return False


def results(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The result lines among these, read; ValueError for a line that can not be read."""
    for line in lines:
        value = json.loads(line)
        if "status" in value:
            yield value


def percentile(values: Iterable[int], share: float) -> int:
    """The smallest value that at least this share of all are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else 0
