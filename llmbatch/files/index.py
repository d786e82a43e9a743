"""Compact tables from row identity to journal offset: tens of millions of rows in memory.

Keys are 64 hash bits, so the first bits choose a segment evenly and each segment is a short sorted array that C code
searches and shifts. Against open addressing in Python this was smaller (no empty slots) and faster (no probe loop).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b

# Short enough that shifting half a segment costs less than finding the place in it.
_SEGMENT_ENTRIES = 1024
_PAGE_ROWS = 4096


def identity_text(id: str | int | float | None, row: int) -> str:
    """A row's identity as type-tagged text: 1, 1.0 and "1" are three ids; a row without id is its row number."""
    if id is None:
        return f"#{row}"
    if isinstance(id, str):
        return "s:" + id
    return f"i:{id}" if isinstance(id, int) else f"f:{id!r}"


def unsent_identity(id: str | int | float | None, row: int) -> str:
    """The identity of a line that says that a row can not be sent: its number, for its id may be another row's.

    With an id it is no answer's identity, whose row may have had that number and no id.
    """
    return identity_text(None, row) if id is None else f"!{row}"


def identity_hash(identity: str | int, salt: int = 0) -> int:
    """64 bits of BLAKE2b over an identity text, or over a row number. ``salt`` gives another try after a collision."""
    text = f"#{identity}" if isinstance(identity, int) else identity
    try:
        data = text.encode()
    except UnicodeEncodeError:  # asked for at once, surrogatepass would cost every other text twice the time
        data = text.encode("utf-8", "surrogatepass")
    if salt:
        data += b"\0%d" % salt
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


class IdentitySet:
    """A set of 64-bit hashes in about 11 bytes each; finds ids given twice."""

    def __init__(self) -> None:
        self._bits = 0
        self._segments = [array("Q")]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, key: int) -> bool:
        """True if it was new."""
        segment = self._segments[key >> (64 - self._bits)]
        at = bisect_left(segment, key)
        if at < len(segment) and segment[at] == key:
            return False
        segment.insert(at, key)
        self._length += 1
        if self._length > _SEGMENT_ENTRIES << self._bits:
            self._bits += 1
            self._segments = _halved(self._segments, self._bits)
        return True


class IdentityIndex:
    """64-bit hash to 64-bit value in about 21 bytes an entry. The last value set stands."""

    def __init__(self) -> None:
        self._bits = 0
        self._keys = [array("Q")]
        self._values = [array("Q")]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def get(self, key: int) -> int | None:
        segment = self._keys[key >> (64 - self._bits)]
        at = bisect_left(segment, key)
        if at < len(segment) and segment[at] == key:
            return self._values[key >> (64 - self._bits)][at]
        return None

    def __setitem__(self, key: int, value: int) -> None:
        number = key >> (64 - self._bits)
        at = bisect_left(self._keys[number], key)
        if at < len(self._keys[number]) and self._keys[number][at] == key:
            self._values[number][at] = value
        else:
            self._insert(number, at, key, value)

    def add(self, key: int, value: int) -> int | None:
        """Set ``value`` if the key is new and return None; else change nothing and return the value there."""
        number = key >> (64 - self._bits)
        segment = self._keys[number]
        at = bisect_left(segment, key)
        if at < len(segment) and segment[at] == key:
            return self._values[number][at]
        self._insert(number, at, key, value)
        return None

    def _insert(self, number: int, at: int, key: int, value: int) -> None:
        self._keys[number].insert(at, key)
        self._values[number].insert(at, value)
        self._length += 1
        if self._length > _SEGMENT_ENTRIES << self._bits:
            self._split()

    def _split(self) -> None:
        self._bits += 1
        cuts = [bisect_left(keys, _middle(i, self._bits)) for i, keys in enumerate(self._keys)]
        self._keys = _cut(self._keys, cuts)
        self._values = _cut(self._values, cuts)


class RowTable:
    """Row number to journal offset, 8 bytes a row, in pages, so that a wild row number costs one page only."""

    def __init__(self, rows: int = 0) -> None:
        """With room for ``rows`` from the start: memory that this thread has freed is not there for another one."""
        self._pages = {number: _page() for number in range(rows // _PAGE_ROWS + 1)} if rows else {}

    def get(self, row: int) -> int | None:
        page = self._pages.get(row // _PAGE_ROWS)
        return page[row % _PAGE_ROWS] - 1 if page and page[row % _PAGE_ROWS] else None

    def set(self, row: int, offset: int | None) -> None:
        page = self._pages.get(row // _PAGE_ROWS)
        if page is None:
            page = self._pages[row // _PAGE_ROWS] = _page()
        page[row % _PAGE_ROWS] = 0 if offset is None else offset + 1

    def gaps(self) -> Iterator[range]:
        """The numbers from 1 to the largest that have no offset, in ascending ranges."""
        expected = 1
        for number in sorted(self._pages):
            for row, offset in enumerate(self._pages[number], number * _PAGE_ROWS):
                if offset:
                    if row > expected:
                        yield range(expected, row)
                    expected = row + 1

    def above(self, row: int) -> list[int]:
        """The offsets of all rows with a larger number."""
        return [
            offset - 1
            for number, page in self._pages.items()
            if (number + 1) * _PAGE_ROWS > row
            for at, offset in enumerate(page)
            if offset and number * _PAGE_ROWS + at > row
        ]


def _page() -> array[int]:
    return array("Q", bytes(8 * _PAGE_ROWS))


def _halved(segments: list[array[int]], bits: int) -> list[array[int]]:
    return _cut(segments, [bisect_left(keys, _middle(i, bits)) for i, keys in enumerate(segments)])


def _middle(segment: int, bits: int) -> int:
    """The smallest key of the upper half of this segment, once there are ``2**bits`` of them."""
    return (2 * segment + 1) << (64 - bits)


def _cut(segments: list[array[int]], cuts: list[int]) -> list[array[int]]:
    """Each segment in two. Every old one is let go as soon as it is cut, so the table is never held twice."""
    halves: list[array[int]] = []
    segments.reverse()
    for cut in cuts:
        segment = segments.pop()
        halves += (segment[:cut], segment[cut:])
    return halves
