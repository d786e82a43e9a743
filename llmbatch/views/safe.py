"""What may reach a terminal: every string from a model, a server, an input or a file name goes through ``safe``."""

from __future__ import annotations

import re
import unicodedata

# Controls, format characters (bidi, zero-width, tags), surrogates and line separators are told by their category;
# these invisible ones are filed under letters and marks.
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
_SUSPECT = re.compile(rf"[^\x20-\x7e\xa1-\xac\xae-\u0220]|[{_INVISIBLE}]")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\e"}
_ELLIPSIS = "…"
# Combining marks have no width of their own; this many characters per cell is more than any script needs.
_CHARS_PER_CELL = 4


def safe(text: str, width: int | None = None) -> str:
    """``text`` on one line, with everything that could steer or deceive a terminal shown as an escape.

    Escaped are C0, DEL and C1 controls (so no ESC sequence survives), bidirectional and zero-width characters,
    tags, variation selectors beyond the emoji ones, private, unassigned and surrogate code points. With ``width``
    it is cut to that many terminal cells.
    """
    if width is None:
        return _SUSPECT.sub(_shown, text)
    shown = _SUSPECT.sub(_shown, text[: width * _CHARS_PER_CELL + 1])
    return _cut(shown, width) if len(text) > width * _CHARS_PER_CELL or cells(shown) > width else shown


def cells(text: str) -> int:
    """The number of terminal columns that ``text``, already safe, takes."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _shown(match: re.Match[str]) -> str:
    char = match.group()
    if char in _SHORT:
        return _SHORT[char]
    if unicodedata.category(char) not in _HIDDEN and char not in _INVISIBLE and not 0xE0100 <= ord(char) <= 0xE01EF:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _cut(text: str, width: int) -> str:
    used, kept = 1, []  # the ellipsis takes one cell
    for char in text:
        used += _cells_of(char)
        if used > width:
            break
        kept.append(char)
    return "".join(kept) + _ELLIPSIS if width > 0 else ""


def _cells_of(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
