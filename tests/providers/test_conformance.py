"""One suite for all dialects. A new one is a line in DIALECTS and a folder of fixtures.

A folder holds recorded or documented answers (``.json`` a whole 200 body, ``.http`` status, headers and body,
``.sse`` a stream) and ``expected.json``: for each of them the fields of the Reply or of the Failure that matter.
"""

from __future__ import annotations

import json
from dataclasses import astuple
from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from llmbatch.providers.anthropic import Anthropic
from llmbatch.providers.base import Provider
from llmbatch.providers.gemini import Gemini
from llmbatch.providers.gemini_embeddings import GeminiEmbeddings
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.providers.openai_embeddings import OpenAIEmbeddings
from llmbatch.providers.openai_responses import OpenAIResponses
from llmbatch.records import Failure, Reply, Request

DIALECTS: dict[str, Provider] = {
    "openai-chat": OpenAIChat(),
    "openai-responses": OpenAIResponses(),
    "openai-embeddings": OpenAIEmbeddings(),
    "anthropic": Anthropic(),
    "gemini": Gemini(),
    "gemini-embeddings": GeminiEmbeddings(),
}

FIXTURES = Path(__file__).parent / "fixtures"
NO_HEADERS: CIMultiDict[str] = CIMultiDict()
KINDS = {"never_sent", "rejected", "ambiguous", "unusable", "permanent"}


def cases(suffix: str) -> list[Any]:
    return [
        pytest.param(dialect, (FIXTURES / name / file).read_bytes(), fields, id=f"{name}-{file}")
        for name, dialect in DIALECTS.items()
        for file, fields in json.loads((FIXTURES / name / "expected.json").read_text()).items()
        if file.endswith(suffix)
    ]


every_dialect = pytest.mark.parametrize("dialect", list(DIALECTS.values()), ids=list(DIALECTS))
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def http(raw: bytes) -> tuple[int, CIMultiDictProxy[str], bytes]:
    """Status, headers and body of a recorded answer."""
    head, _, body = raw.replace(b"\r\n", b"\n").partition(b"\n\n")
    status, *lines = head.decode().split("\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return int(status.split()[1]), CIMultiDictProxy(CIMultiDict(headers)), body.removesuffix(b"\n")


def streamed(dialect: Provider, raw: bytes, step: int | None = None) -> Reply | Failure:
    """What a stream means that arrives ``step`` bytes at a time and then ends."""
    events, decoder = dialect.events(), dialect.stream_decoder()
    for start in range(0, len(raw), step or len(raw) or 1):
        for data in events.feed(raw[start : start + (step or len(raw))]):
            decoder.feed(data)
    return decoder.finish()


def check(outcome: Reply | Failure, expected: dict[str, Any]) -> None:
    assert isinstance(outcome, Failure if "kind" in expected else Reply), outcome
    for name, value in expected.items():
        found = getattr(outcome, name)
        assert (list(astuple(found))[:4] if name == "usage" else found) == value, name


@pytest.mark.parametrize(("dialect", "raw", "expected"), cases(".json"))
def test_a_recorded_answer(dialect: Provider, raw: bytes, expected: dict[str, Any]) -> None:
    check(dialect.decode(200, NO_HEADERS, raw), expected)


@pytest.mark.parametrize(("dialect", "raw", "expected"), cases(".http"))
def test_a_recorded_error(dialect: Provider, raw: bytes, expected: dict[str, Any]) -> None:
    outcome = dialect.decode(*http(raw))
    check(outcome, expected)
    assert isinstance(outcome, Failure) and outcome.message


@pytest.mark.parametrize("step", [None, 1, 7])
@pytest.mark.parametrize(("dialect", "raw", "expected"), cases(".sse"))
def test_a_recorded_stream(dialect: Provider, raw: bytes, expected: dict[str, Any], step: int | None) -> None:
    check(streamed(dialect, raw, step), expected)


@pytest.mark.parametrize(("dialect", "raw", "expected"), cases(".json"))
def test_an_answer_cut_at_any_byte_is_never_ok(dialect: Provider, raw: bytes, expected: dict[str, Any]) -> None:
    raw = raw.rstrip()
    for end in range(len(raw)):
        assert isinstance(dialect.decode(200, NO_HEADERS, raw[:end]), Failure), raw[:end][-40:]


@pytest.mark.parametrize(("dialect", "raw", "expected"), cases(".sse"))
def test_a_stream_cut_at_any_byte_is_never_a_shorter_answer(
    dialect: Provider, raw: bytes, expected: dict[str, Any]
) -> None:
    for end in range(len(raw)):
        outcome = streamed(dialect, raw[:end])
        if isinstance(outcome, Reply):  # all of the text had come, only the epilogue is missing
            assert outcome.output == expected.get("output") and outcome.finish_reason == expected.get("finish_reason")
        else:
            assert outcome.retryable


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" \n",
        b"null",
        b"true",
        b"0",
        b'"text"',
        b"[]",
        b"{}",
        b"{} {}",
        b"{",
        b"NaN",
        b"<!DOCTYPE html><title>Sign in</title>",
        b"\xff\xfe{\x00}\x00",
        b'{"error":"overloaded"}',
        b'{"error":{"code":null}}',
        b'{"error":[1]}',
        b"[" * 100_000,
    ],
)
@every_dialect
def test_200_without_an_answer_is_an_error_that_may_have_been_billed(dialect: Provider, raw: bytes) -> None:
    outcome = dialect.decode(200, NO_HEADERS, raw)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "unusable" and outcome.maybe_billed and outcome.message


@every_dialect
def test_no_other_status_is_ok(dialect: Provider) -> None:
    good = next(FIXTURES.glob("*/*_response.json")).read_bytes()
    for status, body in product([*range(201, 600), 600, 999], (b"", good, b'{"error":{"message":"m"}}')):
        outcome = dialect.decode(status, NO_HEADERS, body)
        assert isinstance(outcome, Failure), status
        assert outcome.http_status == status and outcome.kind in KINDS and outcome.type and outcome.message


@pytest.mark.parametrize(
    ("status", "kind", "retryable", "fatal", "rate_limited"),
    [
        (204, "unusable", True, False, False),
        (302, "permanent", False, True, False),
        (304, "unusable", True, False, False),
        (307, "permanent", False, True, False),
        (400, "permanent", False, False, False),
        (401, "permanent", False, True, False),
        (402, "permanent", False, True, False),
        (403, "permanent", False, False, False),
        (404, "permanent", False, True, False),
        (407, "permanent", False, True, False),
        (408, "ambiguous", True, False, False),
        (409, "rejected", True, False, False),
        (413, "permanent", False, False, False),
        (422, "permanent", False, False, False),
        (425, "rejected", True, False, False),
        (429, "rejected", True, False, True),
        (498, "rejected", True, False, False),
        (500, "rejected", True, False, False),
        (501, "permanent", False, False, False),
        (502, "ambiguous", True, False, False),
        (503, "rejected", True, False, False),
        (504, "ambiguous", True, False, False),
        (524, "ambiguous", True, False, False),
        (529, "rejected", True, False, False),
        (999, "ambiguous", True, False, False),
    ],
)
@every_dialect
def test_what_a_bare_status_means(
    dialect: Provider, status: int, kind: str, retryable: bool, fatal: bool, rate_limited: bool
) -> None:
    failure = dialect.decode(status, NO_HEADERS, b"")
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.retryable, failure.fatal, failure.rate_limited) == (
        kind,
        retryable,
        fatal,
        rate_limited,
    )


@pytest.mark.parametrize(
    ("status", "word", "retryable"), [(500, "false", False), (400, "True", True), (500, "x", True)]
)
@every_dialect
def test_the_servers_own_word_on_retrying_is_obeyed(dialect: Provider, status: int, word: str, retryable: bool) -> None:
    failure = dialect.decode(status, CIMultiDict({"X-Should-Retry": word}), b"")
    assert isinstance(failure, Failure) and failure.retryable is retryable


@every_dialect
def test_a_message_is_bounded(dialect: Provider) -> None:
    for status in (200, 400, 503):
        outcome = dialect.decode(status, NO_HEADERS, b"x" * 10**6)
        assert isinstance(outcome, Failure) and len(outcome.message) <= 4096


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def recorded() -> list[Any]:
    return [json.loads(path.read_bytes()) for path in sorted(FIXTURES.glob("*/*_response.json"))]


def with_garbage(document: Any, garbage: Any, draw: st.DataObject) -> Any:
    """``document`` with one member, somewhere inside, replaced or removed."""
    if isinstance(document, list) and document:
        index = draw.draw(st.integers(0, len(document) - 1))
        return [*document[:index], with_garbage(document[index], garbage, draw), *document[index + 1 :]]
    if isinstance(document, dict) and document and draw.draw(st.integers(0, 9)):
        name = draw.draw(st.sampled_from(sorted(document)))
        return {**document, name: with_garbage(document[name], garbage, draw)}
    return garbage


@every_dialect
@quick
@given(garbage=JSON, draw=st.data())
def test_a_damaged_answer_never_raises(dialect: Provider, recorded: list[Any], garbage: Any, draw: Any) -> None:
    document = with_garbage(draw.draw(st.sampled_from(recorded)), garbage, draw)
    raw = json.dumps(document).encode()
    for status in (200, 400, 429, 500):
        assert isinstance(dialect.decode(status, NO_HEADERS, raw), Reply | Failure)


@every_dialect
@quick
@given(raw=st.binary(max_size=60), status=st.integers(100, 999))
def test_any_bytes_never_raise(dialect: Provider, raw: bytes, status: int) -> None:
    assert isinstance(dialect.decode(status, NO_HEADERS, raw), Failure)


@pytest.mark.parametrize(("dialect", "raw", "expected"), cases(".sse"))
@quick
@given(garbage=JSON, draw=st.data())
def test_a_damaged_stream_never_raises(
    dialect: Provider, raw: bytes, expected: dict[str, Any], garbage: Any, draw: Any
) -> None:
    decoder, events = dialect.stream_decoder(), list(dialect.events().feed(raw))
    for _ in range(2):
        place = draw.draw(st.integers(0, len(events) - 1))
        if events[place].startswith("{"):
            events[place] = json.dumps(with_garbage(json.loads(events[place]), garbage, draw))
    for data in events:
        decoder.feed(data)
    assert isinstance(decoder.finish(), Reply | Failure)


@every_dialect
def test_a_stream_without_events_is_never_ok(dialect: Provider) -> None:
    assert isinstance(dialect.stream_decoder().finish(), Failure)


def requests_of(dialect: Provider) -> list[Request]:
    """Requests that every dialect of its kind has words for; the last is a body of its own."""
    if dialect.name.endswith("-embeddings"):
        asked = [Request("m", input="Hi 🎉"), Request("m", input=["a", "b"])]
    else:
        asked = [
            Request("m", [{"role": "user", "content": "Hi 🎉"}]),
            Request("m", [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], {"max_tokens": 7}),
        ]
    body = {"model": "m2", "messages": [], "input": "a", "anything": {"goes": True}}
    return [*asked, Request("m2", body=body, api=dialect.name)]


@every_dialect
def test_encode_is_json_the_same_every_time_and_changes_nothing(dialect: Provider) -> None:
    for request in requests_of(dialect):
        before = repr(request)
        first = orjson.dumps(dialect.encode(request))
        assert orjson.dumps(dialect.encode(request)) == first
        assert repr(request) == before
        streamed = (orjson.dumps(dialect.streamed(dialect.encode(request))), dialect.path(request.model, stream=True))
        assert (streamed != (first, dialect.path(request.model))) is dialect.streams


@every_dialect
def test_a_whole_body_goes_as_it_is(dialect: Provider) -> None:
    request = requests_of(dialect)[-1]
    assert dialect.encode(request) == request.body


@every_dialect
def test_no_limit_headers_say_nothing(dialect: Provider) -> None:
    assert not dialect.limits(NO_HEADERS, 1e9)
