"""Gemini's ``batchEmbedContents``: vectors for texts.

Source: Gemini API reference, "Embeddings"; the official SDK google-genai 3.4, which asks only for batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmbatch.providers.answer import bad_answer
from llmbatch.providers.gemini import MAX_BODY_BYTES, resource_of
from llmbatch.providers.gemini_answer import usage_of
from llmbatch.providers.gemini_errors import decoded
from llmbatch.providers.gemini_stream import GeminiStream
from llmbatch.providers.neutral import neutral
from llmbatch.providers.sse import EventDecoder
from llmbatch.records import Failure, Reply, Request
from llmbatch.rules.limits import NO_LIMITS, Limits
from llmbatch.rules.params import KNOWN, checked
from llmbatch.rules.reasons import RowError, excerpt

# As client libraries have it; the API reference names no limit.
MOST_TEXTS = 100


class GeminiEmbeddings:
    """The dialect. One vector is the output for one text, a list of them for several."""

    name = "gemini-embeddings"
    headers: Mapping[str, str] = {}
    streams = False
    embeds = True
    max_body_bytes: int | None = MAX_BODY_BYTES

    def path(self, model: str, *, stream: bool = False) -> str:
        """The endpoint of ``model``."""
        return f"/{resource_of(model)}:batchEmbedContents"

    def encode(self, request: Request) -> Mapping[str, Any]:
        """The JSON body: one request for each text, all with the same parameters."""
        if request.body is not None and request.api == self.name and request.schema is None:
            return request.body
        request = neutral(request)
        if request.schema is not None:
            raise RowError("an embeddings model gives vectors, which fit no --schema: leave it out")
        texts = _texts_of(request)
        if len(texts) > MOST_TEXTS:
            raise RowError(f"Gemini embeds at most {MOST_TEXTS} texts at once, not {len(texts):,}: split the row")
        model = request.model if request.model.startswith(("models/", "tunedModels/")) else f"models/{request.model}"
        params = _params_of({**request.extra, **request.params})
        return {"requests": [{"model": model, "content": {"parts": [{"text": text}]}, **params} for text in texts]}

    def streamed(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same body: vectors come as a whole."""
        return body

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply | Failure:
        """A whole answer. ``ok`` needs 200, complete JSON, and numbers in every vector."""
        return decoded(status, headers, body, _reply_of)

    def limits(self, headers: Mapping[str, str], time_s: float) -> Limits:
        """Gemini says nothing of its limits in headers."""
        return NO_LIMITS

    def events(self) -> EventDecoder:
        """Never asked for."""
        return EventDecoder()

    def stream_decoder(self) -> GeminiStream:
        """Never asked for; a stream is no answer."""
        return GeminiStream()


def _texts_of(request: Request) -> Sequence[str]:
    if request.input is not None:
        return [request.input] if isinstance(request.input, str) else request.input
    messages = request.messages
    content = messages[0].get("content") if len(messages) == 1 and messages[0].get("role") == "user" else None
    if not isinstance(content, str):
        raise RowError("an embeddings model takes 'input', or one 'prompt' that is text, and no system message")
    return [content]


def _params_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """``dimensions`` in Gemini's spelling; other names of the API go as they are, those of chat models do not."""
    params = checked(given)
    if (encoding := params.pop("encoding_format", "float")) != "float":
        raise RowError(f"Gemini gives vectors as numbers, not as {excerpt(repr(encoding), 40)}: leave it out")
    named = {"outputDimensionality": params.pop("dimensions")} if "dimensions" in params else {}
    for name in params:
        if name in KNOWN:
            raise RowError(f"an embeddings model of Gemini has no '{name}': leave it out")
    return {**named, **params}


def _reply_of(document: Any) -> Reply | Failure:
    found = document.get("embeddings") if isinstance(document, dict) else None
    if not isinstance(found, list) or not found:
        return bad_answer("the answer has no embeddings")
    vectors = [embedding.get("values") if isinstance(embedding, dict) else None for embedding in found]
    for number, vector in enumerate(vectors):
        if not isinstance(vector, list) or not vector or not all(type(value) in (int, float) for value in vector):
            return bad_answer(f"embeddings[{number}].values is no list of numbers")
    return Reply(
        output=vectors[0] if len(vectors) == 1 else vectors,
        finish_reason=None,
        model=None,
        usage=usage_of(document.get("usageMetadata")),
    )
