"""Three fatal failures in a row stop the run; a good answer between them does not let it come so far."""

from __future__ import annotations

import pytest

from llmbatch.records import Failure
from llmbatch.rules.fuse import Fuse

FATAL = Failure("permanent", "invalid_api_key", "m", http_status=401, fatal=True)
ROW = Failure("permanent", "bad_request", "m", http_status=400)


@pytest.mark.parametrize(
    ("story", "blown_at"),
    [
        ("FFF", 3),
        ("FF", None),
        ("FFgFF", None),
        ("FFgFFF", 6),
        ("FrFrF", 5),  # another row's own fault says nothing about the key
        ("rrrrrr", None),
        ("FFFF", 3),
    ],
)
def test_blows(story: str, blown_at: int | None) -> None:
    fuse, first = Fuse(), None
    for step, what in enumerate(story, 1):
        if what == "g":
            fuse.good()
        elif fuse.blows(FATAL if what == "F" else ROW) and first is None:
            first = step
    assert first == blown_at
