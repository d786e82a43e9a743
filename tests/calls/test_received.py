"""The body of one answer: bounded, unpacked where it was packed, and whole or a failure that has what came."""

from __future__ import annotations

import gzip
import random
import zlib
from dataclasses import replace

import pytest

from llmbatch.calls import received as received_module
from llmbatch.calls.received import Received
from llmbatch.providers.openai_stream import ChatStream
from llmbatch.records import CallFailed, Failure

LIMIT = 1000
CUT = Failure("ambiguous", "disconnected", "m", retryable=True)
BROKEN = Failure(
    "unusable",
    "bad_encoding",
    "the answer came compressed, unasked, and is broken or cut short",
    http_status=200,
    retryable=True,
)
TOO_LARGE = Failure("unusable", "answer_too_large", "the answer is larger than 0 MiB", http_status=200, retryable=True)


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received_module, "MAX_BODY_BYTES", LIMIT)


def body(encoding: str = "", *parts: bytes) -> Received:
    received = Received()
    received.encoded_as(encoding)
    for part in parts:
        received.add(part)
    return received


def refused(received: Received, data: bytes) -> Failure:
    with pytest.raises(CallFailed) as failed:
        received.add(data)
    return failed.value.failure


@pytest.mark.parametrize("encoding", ["", " ", "identity", " Identity "])
def test_a_plain_body_is_the_parts_together(encoding: str) -> None:
    assert body(encoding).whole() == b""
    assert body(encoding, b"one").whole() == b"one"
    assert body(encoding, b"one", b"two").whole() == b"onetwo"


@pytest.mark.parametrize("encoding", ["gzip", "X-Gzip", "deflate"])
@pytest.mark.parametrize("text", [b"", b"some text"])
def test_a_packed_body_is_unpacked(encoding: str, text: bytes) -> None:
    packed = zlib.compress(text) if encoding == "deflate" else gzip.compress(text, mtime=0)
    assert body(encoding, packed[:5], packed[5:]).whole() == text
    assert body(encoding).whole() == b""


def test_an_encoding_that_nobody_asked_for_is_named_and_cut() -> None:
    with pytest.raises(CallFailed) as failed:
        body("x" * 99, b"?").whole()
    said = f"the answer is packed as {'x' * 39}…, unasked"
    assert failed.value.failure == replace(BROKEN, message=said)


def test_no_more_than_the_limit_is_taken() -> None:
    received = body("", b"x" * LIMIT)
    assert refused(received, b"y") == TOO_LARGE
    assert received.told(CUT).body == "x" * LIMIT


def test_a_small_part_that_unpacks_to_much_is_unpacked_to_just_over_the_limit() -> None:
    """100 MB of zeros fit in 100 KB."""
    pack = zlib.compressobj(wbits=31)
    first = pack.compress(b"x" * 600) + pack.flush(zlib.Z_SYNC_FLUSH)
    bomb = pack.compress(b"y" * 100 * LIMIT) + pack.flush()
    received = body("gzip", first)
    assert refused(received, bomb) == TOO_LARGE
    assert received.told(CUT).body == "x" * 600 + "y" * (LIMIT - 599)


def test_what_came_out_before_the_byte_that_is_wrong_is_kept() -> None:
    text = random.Random(3).randbytes(300).hex().encode()
    packed = bytearray(zlib.compress(text, level=0))
    packed[-1] ^= 1
    received = body("deflate")
    assert refused(received, bytes(packed) + b"and more") == BROKEN
    assert received.told(CUT).body == text.decode()


def test_what_unpacks_to_much_and_is_broken_is_kept_to_about_the_limit() -> None:
    packed = bytearray(zlib.compress(b"z" * 50 * LIMIT))
    packed[-1] ^= 1
    received = body("deflate")
    assert refused(received, bytes(packed)) == TOO_LARGE
    assert received.told(CUT).body == "z" * (LIMIT + 1)


@pytest.mark.parametrize("cut", [1, 8, 9])
def test_a_packed_body_without_its_end_is_not_whole(cut: int) -> None:
    received = body("gzip", gzip.compress(b"x" * 100)[:-cut])
    with pytest.raises(CallFailed) as failed:
        received.whole()
    assert failed.value.failure == BROKEN


def test_packed_bytes_of_which_nothing_came_out_are_kept_themselves() -> None:
    head = gzip.compress(b"x")[:6]
    told = body("gzip", head[:2], head[2:]).told(CUT)
    assert told.body == head


@pytest.mark.parametrize(("encoding", "readable"), [("", True), ("gzip", True), ("Deflate ", True), ("br", False)])
def test_whether_it_can_be_read(encoding: str, readable: bool) -> None:
    assert body(encoding).readable is readable


def test_what_came_with_the_byte_that_broke_the_framing_is_kept() -> None:
    error = RuntimeError("bad chunk")
    received = body("", b"one")
    received.add_unparsed(error)
    assert received.told(CUT).body == "one"
    error.__cause__ = ValueError("odd")
    received.add_unparsed(error)
    error.__cause__.unparsed = b"two"  # type: ignore[attr-defined]
    received.add_unparsed(error)
    assert received.told(CUT).body == "onetwo"


def test_of_a_stream_the_text_so_far_is_kept_too() -> None:
    received = body("", b"data: x")
    received.answer = ChatStream()
    assert received.told(CUT).output_so_far is None
    received.answer.feed('{"choices":[{"delta":{"content":"Hel"}}]}')
    told = received.told(CUT)
    assert (told.body, told.output_so_far) == ("data: x", "Hel")


@pytest.mark.parametrize(
    ("parts", "kept"),
    [((b"abc", b"defg", b"hij"), b"abcdefg"), ((b"abc", b"de", b"fgh"), b"abcde"), ((b"abcdef", b"gh"), b"abcdef")],
)
def test_what_is_more_than_enough_is_not_kept(parts: tuple[bytes, ...], kept: bytes) -> None:
    received = Received()
    received.keep_bytes = 5
    for part in parts:
        assert received.add(part) == part
    assert received.whole() == kept
    refusal = Failure("rejected", "overloaded", "m", retryable=True)
    assert received.told(refusal).body == kept.decode()


@pytest.mark.parametrize("mebibytes", [1, 3])
def test_the_limit_is_said_in_mebibytes(monkeypatch: pytest.MonkeyPatch, mebibytes: int) -> None:
    monkeypatch.setattr(received_module, "MAX_BODY_BYTES", mebibytes * 2**20)
    failure = refused(body(), bytes(mebibytes * 2**20 + 1))
    assert failure.message == f"the answer is larger than {mebibytes} MiB"
