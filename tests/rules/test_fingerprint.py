"""The fingerprint is how finished rows are found again, so its values are fixed for ever."""

import orjson
import pytest

from llmbatch.rules.fingerprint import Fingerprinter, Unwritable, fingerprint

URL = "https://api.openai.com/v1/chat/completions"
BODY = {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "Grüße \U0001f600"}], "temperature": 0.2}


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        (URL, BODY, "fp1:ac367df058a829124ae16ad0de37c36d"),
        (URL, {}, "fp1:4058d779228c03bf086c1b21504b381a"),
        (
            "http://localhost:8000/v1/embeddings",
            {"input": ["a", "b"], "dimensions": 2**63},
            "fp1:08c908357a8022d6415e67e459f6f24d",
        ),
    ],
    ids=["chat", "empty", "local"],
)
def test_value_never_changes(endpoint, body, expected):
    assert fingerprint(endpoint, body) == expected


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (0, "fp1:ac367df058a829124ae16ad0de37c36d"),
        (1, "fp1:8aa43a7c482ab15b2e0a731516cfeefb"),
        (2, "fp1:6b9942a3ac63ae1adde3a57f1a428664"),
    ],
)
def test_generation_counts_only_above_0(generation, expected):
    assert Fingerprinter(URL, generation)(BODY) == expected


def test_key_order_never_matters():
    shuffled = {
        "temperature": 0.2,
        "messages": [{"content": "Grüße \U0001f600", "role": "user"}],
        "model": "gpt-4.1-mini",
    }
    assert fingerprint(URL, shuffled) == fingerprint(URL, BODY)


@pytest.mark.parametrize(
    "other",
    [
        {**BODY, "temperature": 0.3},
        {**BODY, "model": "gpt-4.1"},
        {**BODY, "max_tokens": 1},
        {**BODY, "messages": [{"role": "user", "content": "Grüße"}]},
        {**BODY, "temperature": None},
    ],
)
def test_any_change_of_the_body_shows(other):
    assert fingerprint(URL, other) != fingerprint(URL, BODY)


@pytest.mark.parametrize(
    "other",
    [
        "http://api.openai.com/v1/chat/completions",
        "https://api.openai.com/v1/responses",
        "https://api.openai.com:8443/v1/chat/completions",
    ],
)
def test_another_endpoint_shows(other):
    assert fingerprint(other, BODY) != fingerprint(URL, BODY)


@pytest.mark.parametrize(
    "same",
    [
        "https://API.OpenAI.com:443/v1/chat/completions",
        "https://api.openai.com/v1/chat/completions?key=secret",
        "https://user:secret@api.openai.com/v1/chat/completions",
    ],
)
def test_spelling_and_secrets_of_the_endpoint_do_not_show(same):
    assert fingerprint(same, BODY) == fingerprint(URL, BODY)


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ({1: "a"}, "key must be str"),
        ({None: "a"}, "key must be str"),
        (2**64, "64-bit"),
        (-(2**63) - 1, "64-bit"),
        ({1, 2}, "set"),
        (object(), "object"),
        (b"bytes", "bytes"),
        (1j, "complex"),
        (nested(1_000), "ecursion"),
        (nested(100_000), "ecursion"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_body_that_can_not_be_sent_has_none_and_says_why(value, words):
    with pytest.raises(Unwritable, match=words):
        fingerprint(URL, {**BODY, "metadata": value})


def test_a_body_within_itself_has_none():
    body = {}
    body["body"] = body
    with pytest.raises(Unwritable):
        fingerprint(URL, body)


def test_whatever_has_a_fingerprint_can_be_sent():
    body = {"high": 2**64 - 1, "low": -(2**63), "nest": nested(200), "text": "\U0001f600\x00"}
    assert fingerprint(URL, body) and orjson.dumps(body)


def test_fast_form_is_the_same_and_keeps_no_state():
    fast = Fingerprinter(URL)
    assert [fast(BODY), fast({}), fast(BODY)] == [fingerprint(URL, BODY), fingerprint(URL, {}), fingerprint(URL, BODY)]


def test_the_schema_of_the_answer_counts() -> None:
    """Of what it demands the body may hold only a part."""
    url, body = "https://api.openai.com/v1/chat/completions", {"model": "m"}
    plain, one, other = (Fingerprinter(url, 0, schema)(body) for schema in (None, {"a": 1, "b": 2}, {"a": 1}))
    assert plain == Fingerprinter(url)(body)
    assert len({plain, one, other}) == 3
    assert Fingerprinter(url, 0, {"b": 2, "a": 1})(body) == one
