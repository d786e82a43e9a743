"""What is particular to OpenAI Embeddings."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from multidict import CIMultiDict

from llmbatch.providers.openai_embeddings import MOST_TEXTS, OpenAIEmbeddings
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.reasons import RowError

EMBEDDINGS = OpenAIEmbeddings()
PROMPT = {"role": "user", "content": "a"}


def decoded(*data: Any, **fields: Any) -> Reply | Failure:
    return EMBEDDINGS.decode(200, CIMultiDict(), json.dumps({"data": list(data), **fields}).encode())


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (Request("m", input="a"), {"model": "m", "input": "a"}),
        (Request("m", input=["a", "b"]), {"model": "m", "input": ["a", "b"]}),
        (Request("m", [PROMPT]), {"model": "m", "input": "a"}),
        (Request("m", [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]),
         {"model": "m", "input": "a\nb"}),
        (Request("m", params={"dimensions": 4}, extra={"encoding_format": "base64", "user": "u"}, input="a"),
         {"model": "m", "input": "a", "dimensions": 4, "encoding_format": "base64", "user": "u"}),
        (Request("m", body={"model": "m", "input": [[1, 2]]}, api="openai-embeddings"),
         {"model": "m", "input": [[1, 2]]}),
        (Request("m", input=["a"] * MOST_TEXTS), {"model": "m", "input": ["a"] * MOST_TEXTS}),
    ],
)  # fmt: skip
def test_encode(request_: Request, body: dict[str, Any]) -> None:
    assert EMBEDDINGS.encode(request_) == body
    assert EMBEDDINGS.streamed(body) is body


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (Request("m", input=["a"] * (MOST_TEXTS + 1)), "2,049"),
        (Request("m", [{"role": "system", "content": "s"}, PROMPT]), "conversation"),
        (Request("m", [{"role": "assistant", "content": "s"}]), "conversation"),
        (Request("m", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]), "one text"),
        (Request("m", params={"temperature": 0}, input="a"), "'temperature'"),
        (Request("m", extra={"max_tokens": 5}, input="a"), "'max_tokens'"),
        (Request("m", input="a", schema={"type": "object"}), "--schema"),
    ],
)
def test_what_is_not_to_be_embedded_is_refused(request_: Request, word: str) -> None:
    with pytest.raises(RowError, match=word):
        EMBEDDINGS.encode(request_)


def test_the_vectors_stand_in_the_order_of_the_texts() -> None:
    found = decoded({"index": 2, "embedding": [3]}, {"index": 0, "embedding": [1.5]}, {"index": 1, "embedding": [2]})
    assert isinstance(found, Reply) and found.output == [[1.5], [2], [3]]


@pytest.mark.parametrize(
    "data",
    [
        [],
        [None],
        [{"index": 0}],
        [{"index": 0, "embedding": []}],
        [{"index": 0, "embedding": ["1"]}],
        [{"index": 0, "embedding": [True]}],
        [{"index": 1, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}],
        [{"index": "0", "embedding": [1.0]}],
        [{"index": 0, "embedding": ""}],
        [{"index": 0, "embedding": "AAA="}],  # two bytes
        [{"index": 0, "embedding": "no base64"}],
        [{"index": 0, "embedding": "é"}],
    ],
)
def test_what_is_no_list_of_vectors_is_no_answer(data: list[Any]) -> None:
    found = decoded(*data)
    assert isinstance(found, Failure) and (found.kind, found.type, found.retryable) == ("unusable", "bad_answer", True)


def test_numbers_that_json_can_not_hold_are_no_vector() -> None:
    nan = b64encode(b"\x00\x00\xc0\x7f").decode()
    assert isinstance(decoded({"index": 0, "embedding": nan}), Failure)


@pytest.mark.parametrize("body", [None, {"model": "m", "input": "a"}])
def test_a_schema_is_refused_before_anything_is_paid(body: dict[str, Any] | None) -> None:
    request = Request("m", input=None if body else "a", body=body, api="openai-embeddings", schema={"type": "object"})
    with pytest.raises(RowError, match="an embeddings model gives vectors"):
        OpenAIEmbeddings().encode(request)
