"""OpenAI Embeddings, also of vLLM, Ollama, Mistral, Together: texts in, vectors out.

Source: OpenAI API reference, "Create embeddings"; the official SDK's ``lib/_parsing/_embeddings.py`` (Base64).
"""

from __future__ import annotations

import binascii
import math
import struct
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from llmbatch.providers.answer import bad_answer, document_of
from llmbatch.providers.limit_headers import openai_limits
from llmbatch.providers.neutral import neutral
from llmbatch.providers.no_stream import NoStream
from llmbatch.providers.openai_errors import request_id
from llmbatch.providers.openai_usage import usage_of
from llmbatch.providers.sse import EventDecoder
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.limits import Limits
from llmbatch.rules.params import KNOWN
from llmbatch.rules.reasons import RowError

MOST_TEXTS = 2048
# Of the neutral parameters, those that the API has too.
_SAME = frozenset({"model", "user"})


class OpenAIEmbeddings:
    """The dialect. One text gives a vector, several give a list of vectors. ``path`` as in OpenAIChat."""

    name = "openai-embeddings"
    headers: Mapping[str, str] = {}
    streams = False
    embeds = True
    max_body_bytes: int | None = None

    def __init__(self, *, path: str | None = None) -> None:
        self._path = path or "/embeddings"

    def path(self, model: str, *, stream: bool = False) -> str:
        """The same for all models, but for Azure's deployments."""
        return self._path.replace("{model}", quote(model, safe=""))

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body. Raises RowError for what is not to be embedded, and for parameters of chat models."""
        if request.schema is not None:
            raise RowError("--schema is for answers in JSON; an embeddings model gives vectors")
        if request.body is not None and request.api == self.name:
            return request.body
        request = neutral(request)
        params = {**request.extra, **request.params}
        unknown = sorted((params.keys() & KNOWN) - _SAME)
        if unknown:
            raise RowError(f"an embeddings model has no '{unknown[0]}': leave it out")
        return {"model": request.model, "input": texts_of(request), **params}

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """As it is: vectors are not streamed."""
        return body

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """The vectors, in the order of the texts."""
        document = document_of(status, headers, body)
        reply = document if isinstance(document, Failure) else _reply_of(document)
        if isinstance(reply, Failure):
            return replace(reply, http_status=reply.http_status or status, request_id=request_id(headers))
        return reply

    def limits(self, headers: Mapping[str, str], time_s: float) -> Limits:
        """The ``x-ratelimit-*`` family."""
        return openai_limits(headers, time_s)

    def events(self) -> EventDecoder:
        """None ever come."""
        return EventDecoder()

    def stream_decoder(self) -> NoStream:
        """For no stream."""
        return NoStream()


def texts_of(request: Request) -> str | Sequence[str]:
    """What a neutral request wants embedded: its ``input``, or the text of its only turn. Raises RowError."""
    if request.input is None:
        return _only_text(request.messages)
    if isinstance(request.input, list) and len(request.input) > MOST_TEXTS:
        raise RowError(f"'input' has {len(request.input):,} texts; one request takes {MOST_TEXTS:,}: make rows of them")
    return request.input


def _only_text(messages: Sequence[Mapping[str, Any]]) -> str:
    content = messages[0].get("content") if len(messages) == 1 and messages[0].get("role") == "user" else None
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RowError("an embeddings model takes one text and no conversation: give it as 'input', or as 'prompt'")
    return content


def _reply_of(document: Any) -> Reply | Failure:
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list) or not data:
        return bad_answer("the answer has no data with vectors")
    items = [item for item in data if isinstance(item, dict) and type(item.get("index", 0)) is int]
    found = {item.get("index", 0): _vector(item.get("embedding")) for item in items}
    vectors = [found.get(index) for index in range(len(data))]
    if any(vector is None for vector in vectors):
        return bad_answer("the answer does not have one vector of numbers for each index")
    usage, model = usage_of(document.get("usage")), document.get("model")
    return Reply(
        output=vectors if len(vectors) > 1 else vectors[0],
        finish_reason=None,
        model=model if isinstance(model, str) else None,
        usage=replace(usage, output_tokens=0),  # it writes none
    )


def _vector(embedding: Any) -> list[float] | None:
    """Numbers, or Base64 of little-endian 32-bit floats; None for anything else."""
    if isinstance(embedding, str):
        return _unpacked(embedding)
    if not isinstance(embedding, list) or not {float, int}.issuperset(map(type, embedding)):
        return None
    return embedding or None


def _unpacked(text: str) -> list[float] | None:
    try:
        data = b64decode(text, validate=True)
        vector = [number for (number,) in struct.iter_unpack("<f", data)]
    except (binascii.Error, ValueError, struct.error):
        return None
    return vector if vector and all(map(math.isfinite, vector)) else None
