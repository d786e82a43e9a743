"""What is particular to Gemini's embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from llmbatch.providers.gemini_embeddings import MOST_TEXTS, GeminiEmbeddings
from llmbatch.records import Failure, Request
from llmbatch.rules.reasons import RowError

EMBEDDINGS = GeminiEmbeddings()
FIXTURES = Path(__file__).parent / "fixtures" / "gemini-embeddings"
ONE = {"requests": [{"model": "models/m", "content": {"parts": [{"text": "a"}]}}]}


def test_the_documented_request() -> None:
    request = Request("gemini-embedding-2", params={"dimensions": 4}, input=["red apple", "green pear"])
    assert EMBEDDINGS.encode(request) == json.loads((FIXTURES / "gem_embed_request.json").read_bytes())
    assert EMBEDDINGS.path(request.model) == "/models/gemini-embedding-2:batchEmbedContents"


@pytest.mark.parametrize(
    "request_",
    [
        Request("m", input="a"),
        Request("models/m", input=["a"]),
        Request("m", [{"role": "user", "content": "a"}]),
        Request("m", input="a", params={"encoding_format": "float"}),
        Request("m", body={"model": "m", "input": "a"}, api="openai-embeddings"),
    ],
)
def test_one_text(request_: Request) -> None:
    assert EMBEDDINGS.encode(request_) == ONE


def test_every_text_has_the_same_parameters() -> None:
    request = Request("m", params={"taskType": "CLUSTERING"}, extra={"dimensions": 8}, input=["a", "b"])
    said = EMBEDDINGS.encode(request)["requests"]
    assert [(one["taskType"], one["outputDimensionality"]) for one in said] == [("CLUSTERING", 8)] * 2


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("m", input=["a"] * (MOST_TEXTS + 1)), "at most 100 texts"),
        (Request("m", input="a", schema={}), "--schema"),
        (Request("m", input="a", params={"temperature": 1}), "temperature"),
        (Request("m", input="a", params={"encoding_format": "base64"}), "base64"),
        (Request("m", [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]), "system"),
        (Request("m", [{"role": "assistant", "content": "a"}]), "prompt"),
        (Request("m", [{"role": "user", "content": [{"type": "text", "text": "a"}]}]), "prompt"),
    ],
)
def test_what_can_not_be_embedded(request_: Request, said: str) -> None:
    with pytest.raises(RowError, match=said):
        EMBEDDINGS.encode(request_)


def test_as_many_texts_as_allowed() -> None:
    assert len(EMBEDDINGS.encode(Request("m", input=["a"] * MOST_TEXTS))["requests"]) == MOST_TEXTS


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"embeddings": []},
        {"embeddings": {}},
        {"embeddings": [{"values": []}]},
        {"embeddings": [{"values": [1.0]}, {}]},
        {"embeddings": [{"values": [1.0, None]}]},
        {"embeddings": [{"values": [True]}]},
        {"embeddings": [7]},
    ],
)
def test_another_shape_is_no_answer(document: Any) -> None:
    outcome = EMBEDDINGS.decode(200, CIMultiDict(), json.dumps(document).encode())
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.type, outcome.retryable) == ("unusable", "bad_answer", True)
