"""Gemini's embedContent and batchEmbedContents (Gemini API reference, "Embeddings")."""

from __future__ import annotations

from typing import Any

import orjson

from llmbatch.sim.answer import Answer
from llmbatch.sim.answers import count_tokens, expected_vector
from llmbatch.sim.ask import Ask
from llmbatch.sim.dialect import json_object
from llmbatch.sim.embeddings import DIMENSIONS
from llmbatch.sim.fields import ARRAY, BOOLEAN, OBJECT, STRING, check_fields, choice, integer
from llmbatch.sim.gemini import GEMINI, WORDS, invalid
from llmbatch.sim.gemini_request import camel, check_model, turn_of

MAX_REQUESTS = 100

_FIELDS = {
    "model": STRING,
    "content": OBJECT,
    "taskType": choice(
        "TASK_TYPE_UNSPECIFIED",
        "RETRIEVAL_QUERY",
        "RETRIEVAL_DOCUMENT",
        "SEMANTIC_SIMILARITY",
        "CLASSIFICATION",
        "CLUSTERING",
        "QUESTION_ANSWERING",
        "FACT_VERIFICATION",
        "CODE_RETRIEVAL_QUERY",
    ),
    "title": STRING,
    "outputDimensionality": integer(1, 3072),
    "autoTruncate": BOOLEAN,
}


def parse_embed(body: bytes, model: str) -> Ask:
    """One text; the model need not be named in the body."""
    fields: dict[str, Any] = json_object(body, GEMINI)
    return _ask(model, [_text(fields, "", model, required=("content",))])


def parse_batch_embed(body: bytes, model: str) -> Ask:
    """Many texts; each names its model, which is that of the path."""
    fields: dict[str, Any] = json_object(body, GEMINI)
    check_fields(fields, {"requests": ARRAY}, WORDS, required=("requests",))
    requests = fields["requests"]
    if not 0 < len(requests) <= MAX_REQUESTS:
        message = f"* BatchEmbedContentsRequest.requests: at most {MAX_REQUESTS} requests can be in one batch"
        raise invalid(message, "requests")
    required = ("model", "content")
    return _ask(model, [_text(item, f"requests[{index}]", model, required) for index, item in enumerate(requests)])


def _text(given: Any, where: str, model: str, required: tuple[str, ...]) -> tuple[str, int]:
    """The text to embed and the length of its vector."""
    fields = camel(given, _FIELDS)
    check_fields(fields, _FIELDS, WORDS, where, required)
    check_model(fields.get("model"), model)
    turn = turn_of(fields["content"], f"{where}.content" if where else "content")
    if not turn.text:
        raise invalid("Content must not be empty.", f"{where}.content" if where else "content")
    return turn.text, fields.get("outputDimensionality") or DIMENSIONS


def _ask(model: str, wanted: list[tuple[str, int]]) -> Ask:
    texts = tuple([text for text, _ in wanted])
    lengths = {length for _, length in wanted}
    if len(lengths) > 1:
        raise invalid("All requests of a batch must have the same outputDimensionality.", "requests")
    tokens = sum([count_tokens(text) for text in texts])
    return Ask(model=model, prompt="\n".join(texts), prompt_tokens=tokens, texts=texts, dimensions=lengths.pop())


def embed_body(answer: Answer) -> bytes:
    [vector] = _vectors(answer)
    return orjson.dumps({"embedding": vector})


def batch_embed_body(answer: Answer) -> bytes:
    usage = {"promptTokenCount": answer.ask.prompt_tokens}
    return orjson.dumps({"embeddings": _vectors(answer), "usageMetadata": usage})


def _vectors(answer: Answer) -> list[dict[str, Any]]:
    return [{"values": expected_vector(text, answer.ask.dimensions)} for text in answer.ask.texts]
