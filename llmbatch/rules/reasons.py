"""Why a row can not be sent, and how to show the value that is wrong."""

from __future__ import annotations

EXCERPT_CHARS = 120
LISTED_NAMES = 20


class RowError(Exception):
    """One row can not become a request. Its text is the reason, without the line number."""


def excerpt(text: str, limit: int = EXCERPT_CHARS) -> str:
    """``text`` on one line, cut to ``limit`` characters, with all that is not printable escaped.

    Control, bidirectional and zero-width characters would act on a terminal instead of being seen.
    """
    shown = "".join(char if char.isprintable() else _escaped(char) for char in text[:limit])
    return shown if len(text) <= limit and len(shown) <= limit else shown[: limit - 1] + "…"


def names(found: list[str]) -> str:
    """A bounded, escaped list of names: ``a, b, c`` and how many more."""
    listed = ", ".join(excerpt(name, 40) for name in found[:LISTED_NAMES])
    more = len(found) - LISTED_NAMES
    return f"{listed} and {more} more" if more > 0 else listed or "none"


def kind_of(value: object) -> str:
    """What JSON calls the type of ``value``, with its article."""
    if value is None:
        return "null"
    kinds: dict[type, str] = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return kinds.get(type(value), "a number")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
