"""Bytes in, requests out."""

import pytest

from llmbatch.sim.http11 import BadRequest, HttpRequest, RequestParser, response_head

POST = b"POST /v1/x?full HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-A: one\r\nx-a: two\r\n\r\nhello"
CHUNKED = (
    b"POST /v1/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nTrailer: t\r\n\r\n"
)


def parse(*pieces: bytes) -> list[HttpRequest]:
    parser = RequestParser()
    return [request for piece in pieces for request in parser.feed(piece)]


def test_request_is_read():
    [request] = parse(POST)
    assert (request.method, request.path, request.query, request.body) == ("POST", "/v1/x", "full", b"hello")
    assert request.headers == {"host": "h", "content-length": "5", "x-a": "one, two"}
    assert request.keep_alive


@pytest.mark.parametrize("message", [POST, CHUNKED])
def test_request_is_the_same_however_its_bytes_arrive(message: bytes):
    whole = parse(message)
    assert whole[0].body == b"hello"
    assert parse(*(message[i : i + 1] for i in range(len(message)))) == whole
    for cut in range(1, len(message)):
        assert parse(message[:cut], message[cut:]) == whole


def test_pipelined_requests_come_apart():
    assert [request.body for request in parse(POST + CHUNKED + POST)] == [b"hello"] * 3


def test_good_request_before_a_bad_one_is_still_delivered():
    parser = RequestParser()
    requests = parser.feed(POST + b"BAD\r\n\r\n")
    assert next(requests).body == b"hello"
    with pytest.raises(BadRequest):
        next(requests)
    assert list(parser.feed(POST)) == [], "nothing may be read behind bytes that made no sense"


def test_connection_close_is_heard():
    assert not parse(b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n")[0].keep_alive


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://other/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nx", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000, 431),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(message: bytes, status: int):
    with pytest.raises(BadRequest) as refused:
        parse(message)
    assert refused.value.status == status


def test_unregistered_status_has_a_status_line():
    assert response_head(529, [("a", "b")], 0.0) == (
        b"HTTP/1.1 529 Unknown\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\na: b\r\n\r\n"
    )
