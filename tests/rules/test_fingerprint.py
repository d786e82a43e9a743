"""The fingerprint is how finished rows are found again, so its values are fixed for ever."""

import pytest

from llmbatch.rules.fingerprint import Fingerprinter, fingerprint

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
        (URL, {"seed": 2**80, "stop": "\ud800", "text": "ü"}, "fp1:d7439b21e6b18e47696dc02a2446fb74"),
    ],
    ids=["chat", "empty", "local", "beyond-orjson"],
)
def test_value_never_changes(endpoint, body, expected):
    assert fingerprint(endpoint, body) == expected


def test_key_order_never_matters():
    shuffled = {
        "temperature": 0.2,
        "messages": [{"content": "Grüße \U0001f600", "role": "user"}],
        "model": "gpt-4.1-mini",
    }
    assert fingerprint(URL, shuffled) == fingerprint(URL, BODY)
    assert fingerprint(URL, {"b": 2**80, "a": 1}) == fingerprint(URL, {"a": 1, "b": 2**80})


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


def test_fast_form_is_the_same_and_keeps_no_state():
    fast = Fingerprinter(URL)
    assert [fast(BODY), fast({}), fast(BODY)] == [fingerprint(URL, BODY), fingerprint(URL, {}), fingerprint(URL, BODY)]
