"""How much of a bad answer's body is kept, and as what."""

from __future__ import annotations

import pytest

from llmbatch.records import Failure
from llmbatch.rules import kept as kept_module
from llmbatch.rules.kept import with_body

PAID = Failure("ambiguous", "disconnected", "m", retryable=True)
REFUSED = Failure("rejected", "overloaded", "m", retryable=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "KEPT_BODY_BYTES", 8)
    monkeypatch.setattr(kept_module, "EXCERPT_BYTES", 4)


@pytest.mark.parametrize(
    ("parts", "body", "size"),
    [
        ([], None, None),
        ([b"abc"], "abc", None),
        ([b"abcd", b"efgh"], "abcdefgh", None),
        ([b"abc", b"def", b"ghi", b"jkl"], "abcdefgh", 12),
        ([b"abc", b"d", b"ef", b"g", b"hi"], "abcdefgh", 9),
        ([b"abcdefghij"], "abcdefgh", 10),
        ([b"abcdefg\xc3", b"\xbc"], "abcdefg", 9),  # our own cut went through the ü
        ([b"abcde\xf0\x9f\x8e", b"\x89"], "abcde", 9),
        ([b"abcdefg\xc3"], b"abcdefg\xc3", None),  # the server's own cut
        ([b"abc\xffdefgh", b"i"], b"abc\xffdefg", 10),
        ([b"abcd\xf0\x9f\x8e", b"xy"], b"abcd\xf0\x9f\x8ex", 9),
    ],
)
def test_of_what_may_have_been_paid_for(parts: list[bytes], body: str | bytes | None, size: int | None) -> None:
    told = with_body(PAID, parts, sum(map(len, parts)))
    assert (told.body, told.body_bytes) == (body, size)


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ([b"abcdef"], "abcd"),
        ([b" a", b"b\n", b"x"], "ab"),
        ([b"  \n ", b"x"], None),
        ([b"ab\xffdef"], "ab\ufffdd"),
        ([b"abc\xc3\xbc"], "abc\ufffd"),
    ],
)
def test_of_a_refusal(parts: list[bytes], body: str | None) -> None:
    told = with_body(REFUSED, parts, sum(map(len, parts)))
    assert (told.body, told.body_bytes) == (body, None)


def test_of_a_body_without_end_only_the_start_is_put_together() -> None:
    """What stands after the kept bytes is not looked at: it need not even be there."""
    parts: list[bytes] = [b"abcd", b"efgh", None]  # type: ignore[list-item]
    assert with_body(PAID, parts, 99).body == "abcdefgh"
