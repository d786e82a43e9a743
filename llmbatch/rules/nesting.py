"""How deep may JSON nest? Deeper than any use of it, and less than what its writers bear.

orjson writes at most 254 levels; a request puts a few of its own around the row, a result around the answer.
"""

from __future__ import annotations

from typing import Any

MAX_NESTING = 200


def nests_too_deeply(document: Any, text: bytes) -> bool:
    """Whether ``document``, parsed from ``text``, has more than MAX_NESTING levels; free for most texts."""
    return text.count(b"[") + text.count(b"{") > MAX_NESTING and _nests_deeper(document, MAX_NESTING)


def _nests_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
        if not level:
            return False
    return True
