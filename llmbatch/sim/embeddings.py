"""The OpenAI Embeddings endpoint: the request read strictly, and its vectors."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson

from llmbatch.sim.answer import Answer
from llmbatch.sim.answers import count_tokens, expected_vector
from llmbatch.sim.ask import Ask
from llmbatch.sim.dialect import json_object
from llmbatch.sim.fields import STRING, STRING_OR_ARRAY, check_fields, choice, integer
from llmbatch.sim.openai import OPENAI, WORDS, problem

# Numbers of a vector that nobody gave a length: few, as a test wants them.
DIMENSIONS = 8
# OpenAI API reference, "Create embeddings".
MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 8192
MAX_REQUEST_TOKENS = 300_000

_FIELDS = {
    "model": STRING,
    "input": STRING_OR_ARRAY,
    "dimensions": integer(1, 3072),
    "encoding_format": choice("float", "base64"),
    "user": STRING,
}


def parse_embeddings(body: bytes, deployment: str = "") -> Ask:
    """The request in ``body``; ApiError 400, as documented, when the API would refuse it."""
    fields: dict[str, Any] = json_object(body, OPENAI)
    if deployment:
        fields["model"] = deployment
    check_fields(fields, _FIELDS, WORDS, required=("model", "input"))
    inputs = _inputs(fields["input"])
    counts = [_tokens(value, where) for where, value in inputs]
    if sum(counts) > MAX_REQUEST_TOKENS:
        message = f"Requested {sum(counts)} tokens, max {MAX_REQUEST_TOKENS} tokens per request."
        raise problem(400, message, "max_tokens_per_request", "max_tokens_per_request", "input")
    texts = tuple([value if isinstance(value, str) else " ".join(map(str, value)) for _, value in inputs])
    return Ask(
        model=fields["model"],
        prompt="\n".join(texts),
        prompt_tokens=sum(counts),
        texts=texts,
        dimensions=fields.get("dimensions") or DIMENSIONS,
        as_base64=fields.get("encoding_format") == "base64",
    )


def _inputs(value: Any) -> list[tuple[str, Any]]:
    """Every text, or list of token ids, with its place."""
    if isinstance(value, str) or (value and all(type(token) is int for token in value)):
        return [("input", value)]
    if not value:
        raise WORDS.invalid("input", "input cannot be an empty array.")
    if len(value) > MAX_INPUTS:
        raise WORDS.invalid("input", f"array too long. Expected at most {MAX_INPUTS}, but got {len(value)}.")
    return [(f"input[{index}]", item) for index, item in enumerate(value)]


def _tokens(value: Any, where: str) -> int:
    if isinstance(value, str):
        if not value:
            raise WORDS.invalid(where, "string is empty.")
        tokens = count_tokens(value)
    elif isinstance(value, list) and value and all(type(token) is int for token in value):
        tokens = len(value)
    else:
        raise WORDS.wrong_type(where, "a string or an array of integers", value)
    if tokens > MAX_INPUT_TOKENS:
        raise WORDS.invalid(where, f"maximum input length is {MAX_INPUT_TOKENS} tokens.")
    return tokens


def embeddings_body(answer: Answer) -> bytes:
    """One vector for each text; base64 is that of little-endian 32-bit floats."""
    vectors = [expected_vector(text, answer.ask.dimensions) for text in answer.ask.texts]
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if answer.ask.as_base64 else vector}
        for index, vector in enumerate(vectors)
    ]
    tokens = answer.ask.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "model": answer.ask.model, "data": data, "usage": usage})


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
