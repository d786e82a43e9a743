import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.views.safe import cells, safe

CASES = [
    ("plain text, naïve, 日本語, Ω, 👍, e\u0301", None),
    ("a\nb\r\tc", "a\\nb\\r\\tc"),
    ("\x1b[31mred\x1b[0m", "\\e[31mred\\e[0m"),
    ("\x1b]52;c;aGk=\x07", "\\e]52;c;aGk=\\x07"),
    ("\x1b]8;;http://x\x1b\\y", "\\e]8;;http://x\\e\\y"),
    ("\x00\x08\x7f", "\\x00\\x08\\x7f"),
    ("\x9b31m\x85", "\\x9b31m\\x85"),
    ("abc\u202edcba\u2066x\u2069", "abc\\u202edcba\\u2066x\\u2069"),
    ("zero\u200bwidth\ufeff\u2060\u00ad", "zero\\u200bwidth\\ufeff\\u2060\\xad"),
    ("tag\U000e0041\U000e007f", "tag\\U000e0041\\U000e007f"),
    ("selector\U000e0100", "selector\\U000e0100"),
    ("line\u2028para\u2029", "line\\u2028para\\u2029"),
    ("file\udcff", "file\\udcff"),
    ("blank\u3164\uffa0\u034f", "blank\\u3164\\uffa0\\u034f"),
    ("private\ue000", "private\\ue000"),
]


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_what_could_steer_a_terminal_is_shown_as_an_escape(text: str, shown: str | None) -> None:
    assert safe(text) == (text if shown is None else shown)


@given(st.text(st.characters()))
def test_nothing_hidden_gets_through_whatever_comes(text: str) -> None:
    shown = safe(text)
    assert all(unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown)
    shown.encode()


# What steers a terminal or deceives its reader, listed by hand, not by what Python knows of Unicode.
STEERING = [
    *range(0x20),
    *range(0x7F, 0xA0),  # DEL and C1
    0xAD,
    0x061C,  # bidirectional
    *range(0x200B, 0x2010),  # zero-width, and bidirectional marks
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xD800, 0xE000),
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE01F0),  # tags, and variation selectors that can hide text
]


def test_not_one_steering_character_gets_through() -> None:
    for code in STEERING:
        shown = safe(f"a{chr(code)}b")
        assert chr(code) not in shown and shown.startswith("a\\") and shown.endswith("b"), hex(code)


@given(st.text(st.sampled_from([chr(code) for code in STEERING] + list("[]m;8\\x1b0Kab"))), st.integers(0, 30))
def test_no_mixture_of_them_gets_through_nor_does_what_is_cut(text: str, width: int) -> None:
    for shown in (safe(text), safe(text, width), safe(safe(text))):
        assert not set(map(ord, shown)) & set(STEERING)


@given(st.text(st.characters()), st.integers(0, 30))
def test_the_width_is_never_exceeded(text: str, width: int) -> None:
    assert cells(safe(text, width)) <= width


CUTS = [
    ("hello", 5, "hello"),
    ("hello!", 5, "hell…"),
    ("日本語", 6, "日本語"),
    ("日本語", 5, "日本…"),
    ("日本語", 4, "日…"),
    ("x" * 10_000_000, 4, "xxx…"),
    ("a\nb", 3, "a\\…"),
    ("abc", 0, ""),
    ("abc", 1, "…"),
]


@pytest.mark.parametrize(("text", "width", "shown"), CUTS)
def test_cut_to_the_cells_of_a_terminal(text: str, width: int, shown: str) -> None:
    assert safe(text, width) == shown


def test_a_tower_of_combining_marks_is_bounded() -> None:
    assert len(safe("a" + "\u0300" * 10_000, 10)) <= 50
