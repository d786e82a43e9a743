"""Server-Sent Events as the WHATWG standard has them, whatever the chunks."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.providers.sse import EventDecoder


def decode(*chunks: bytes) -> list[str]:
    decoder = EventDecoder()
    return [data for chunk in chunks for data in decoder.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\n\n", ["a"]),
        (b"data:  a\n\n", [" a"]),  # one space is removed, not two
        (b"data: a\r\n\r\n", ["a"]),
        (b"data: a\r\rdata: b\r\n\r\n", ["a", "b"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data: a\ndata\ndata:\n\n", ["a\n\n"]),
        (b"data\n\n", [""]),
        (b"data: a: b\n\n", ["a: b"]),
        (b": ping\n\n", []),
        (b"\n\n\n", []),
        (b": ping\ndata: a\n: pong\n\n", ["a"]),
        (b"event: error\nid: 7\nretry: 10\ndata: a\n\n", ["a"]),
        (b"datax: a\n\n", []),
        (b" data: a\n\n", []),
        (b"DATA: a\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"data: \xef\xbb\xbfa\n\n", ["\ufeffa"]),
        ("data: a\u2028b\u0085c\x0bd\n\n".encode(), ["a\u2028b\u0085c\x0bd"]),  # these end no line
        (b"data: a", []),
        (b"data: a\n", []),  # no blank line: the event may be cut
        (b"data: a\n\ndata: b\n", ["a"]),
        ("data: Grüße 🎉\n\n".encode(), ["Grüße 🎉"]),
    ],
)
def test_events(stream: bytes, events: list[str]) -> None:
    assert decode(stream) == events


TRICKY = "\ufeff: ping\r\ndata: Grüße\r\rdata: 🎉\ndata: b\r\n\r\n\n\ndata:c\n\nevent: x\ndata: \u2028\r\n\r\n".encode()


@given(st.lists(st.integers(0, len(TRICKY)), max_size=30).map(sorted))
def test_the_same_events_however_the_bytes_are_split(cuts: list[int]) -> None:
    chunks = [TRICKY[start:end] for start, end in pairwise([0, *cuts, len(TRICKY)])]
    assert decode(*chunks) == decode(TRICKY) == ["Grüße", "🎉\nb", "c", "\u2028"]


def test_the_same_events_byte_by_byte() -> None:
    assert decode(*(bytes([byte]) for byte in TRICKY)) == decode(TRICKY)


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_any_bytes_give_events_or_say_that_they_are_not_utf8(chunks: list[bytes]) -> None:
    try:
        decode(*chunks)
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            b"".join(chunks).decode()


def test_bytes_that_are_not_utf8_are_refused_not_replaced() -> None:
    with pytest.raises(UnicodeDecodeError):
        decode(b"data: \xff\n\n")


def test_a_ten_megabyte_event_in_small_chunks_does_not_stop_the_loop() -> None:
    stream = b"data: " + b"x" * (10 * 2**20) + b"\n\n"
    chunks = [stream[start : start + 2**16] for start in range(0, len(stream), 2**16)]
    before_s = time.process_time()
    (event,) = decode(*chunks)
    assert len(event) == 10 * 2**20
    assert time.process_time() - before_s < 0.5
