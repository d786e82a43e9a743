"""What a request can have used at most: the table of bodies, and no tokenizer that counts more."""

from __future__ import annotations

import unicodedata
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.records import TokenBound
from llmbatch.rules.bound import TOKENS_PER_MESSAGE, TOKENS_PER_REQUEST, token_bound

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def bound_of(body: dict[str, Any], api: str = "openai-chat") -> TokenBound:
    return token_bound(api, body.get("model", "m"), body, orjson.dumps(body))


def bounds(**body: Any) -> tuple[int | None, int | None]:
    body = {"model": "m", "messages": [USER], **body}
    bound = bound_of(body)
    assert bound.model == "m"
    return bound.input_tokens, bound.output_tokens


def test_the_bytes_of_the_body_and_a_constant_for_what_a_server_adds() -> None:
    sent = orjson.dumps({"model": "m", "messages": [USER]})
    assert bounds() == (len(sent) + TOKENS_PER_MESSAGE + TOKENS_PER_REQUEST, None)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 100}, 100),
        ({"max_tokens": 100, "max_completion_tokens": 300}, 300),
        ({"max_tokens": None, "max_completion_tokens": 300}, 300),
        ({"max_tokens": 100, "n": 3}, 300),
        ({"max_tokens": 100, "n": None}, 100),
        ({"max_tokens": 100, "n": "3"}, None),
        ({"max_tokens": "100"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 1.5}, None),
        ({}, None),
        ({"max_tokens": 100, "prediction": {"type": "content", "content": "x"}}, None),
        ({"max_tokens": 100, "best_of": 4}, None),
    ],
)
def test_output_is_bounded_by_max_tokens_or_not_at_all(body: dict[str, Any], output: int | None) -> None:
    assert bounds(**body)[1] == output


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [TOOL], "tool_choice": "auto"},
        {"temperature": 0.5, "seed": 1, "response_format": {"type": "json_object"}, "service_tier": "flex"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]},
    ],
)
def test_texts_and_functions_are_bounded(body: dict[str, Any]) -> None:
    assert bounds(**body)[0] is not None


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": "b"}]}]},
        {"messages": [{"role": "user", "content": {"text": "a"}}]},
        {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
        {"messages": ["hi"]},
        {"messages": None},
        {"messages": "hi"},
        {"tools": [{"type": "web_search"}]},
        {"tools": ["x"]},
        {"tools": 7},
        {"web_search_options": {}},
        {"modalities": ["text", "audio"]},
        {"plugins": [{"id": "web"}]},
        {"something_new": 1},
    ],
)
def test_what_is_not_counted_in_bytes_has_no_bound(body: dict[str, Any]) -> None:
    assert bounds(**body)[0] is None


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
BODIES = st.fixed_dictionaries(
    {
        "model": st.just("m"),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "system", "assistant"])},
                optional={"content": TEXTS, "name": TEXTS},
            ),
            max_size=4,
        ),
    },
    optional={"stop": st.lists(TEXTS, max_size=3), "user": TEXTS},
)


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings(part)]
    return [text for part in value for text in strings(part)] if isinstance(value, list) else []


@given(BODIES)
def test_no_tokenizer_counts_more(body: dict[str, Any]) -> None:
    """The worst tokenizer there can be: one token per byte, after the normalisation that makes most bytes."""
    bound = bound_of(body).input_tokens
    assert bound is not None
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        worst = sum(len(unicodedata.normalize(form, text).encode()) for text in strings(body))
        assert worst + 5 * len(body["messages"]) + 3 <= bound


def test_characters_that_normalise_to_many_are_counted_as_many() -> None:
    ligature = "\ufdfa" * 100  # 3 bytes, of which NFKC makes 33
    tokens, _ = bounds(messages=[{"role": "user", "content": ligature}])
    assert tokens is not None and tokens > 3300


TURN = {"role": "user", "parts": [{"text": "hi"}]}
OWN_TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}


@pytest.mark.parametrize(
    ("api", "body", "known", "output"),
    [
        ("anthropic", {"messages": [USER], "max_tokens": 9}, True, 9),
        ("anthropic", {"messages": [USER], "max_tokens": 9, "system": "s", "tools": [OWN_TOOL]}, True, 9),
        ("anthropic", {"messages": [{"role": "user", "content": [IMAGE]}], "max_tokens": 9}, False, 9),
        ("anthropic", {"messages": [USER], "max_tokens": 9, "tools": [{"type": "web_search_20260209"}]}, False, 9),
        ("anthropic", {"messages": [USER], "max_tokens": 9, "speed": "fast"}, False, None),
        ("openai-responses", {"input": "hi", "max_output_tokens": 9}, True, 9),
        ("openai-responses", {"input": [USER], "instructions": "s"}, True, None),
        ("openai-responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, False, None),
        ("openai-responses", {"input": "hi", "max_output_tokens": 9, "previous_response_id": "r"}, False, None),
        ("gemini", {"contents": [TURN], "generationConfig": {"maxOutputTokens": 9, "candidateCount": 2}}, True, 18),
        ("gemini", {"contents": [TURN], "systemInstruction": {"parts": [{"text": "s"}]}}, True, None),
        ("gemini", {"contents": [{"parts": [{"inlineData": {}}]}], "generationConfig": {}}, False, None),
        ("gemini", {"contents": [TURN], "cachedContent": "cachedContents/x"}, False, None),
        ("openai-embeddings", {"input": "hi"}, True, 0),
        ("openai-embeddings", {"input": ["hi", "ho"]}, True, 0),
        ("openai-embeddings", {"input": [[1, 2]]}, False, 0),
        ("gemini-embeddings", {"requests": [{"content": {"parts": [{"text": "hi"}]}}]}, True, 0),
        ("another", {"input": "hi"}, False, None),
    ],
)
def test_every_dialect_has_its_bounds(api: str, body: dict[str, Any], known: bool, output: int | None) -> None:
    bound = bound_of(body, api)
    assert (bound.input_tokens is not None) is known and bound.output_tokens == output
    assert not known or bound.input_tokens >= len(orjson.dumps(body))  # type: ignore[operator]  # it is known
