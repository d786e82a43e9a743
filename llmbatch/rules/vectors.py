"""Does an embeddings answer have a vector for each text that was asked for?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmbatch.records import Failure, Reply, Request


def as_asked(reply: Reply, request: Request) -> Reply | Failure:
    """``reply`` with a vector for a text, and a list of vectors for a list of texts; a Failure if some are missing."""
    texts = request.input if request.body is None else request.body.get("input")
    many = isinstance(texts, list | tuple) and not (texts and isinstance(texts[0], int))  # a list of tokens is one text
    vectors: Any = [reply.output] if _is_vector(reply.output) else reply.output
    expected = len(texts) if many and texts is not None else 1
    if len(vectors) != expected:
        return Failure(
            "unusable",
            "bad_answer",
            f"the answer has {len(vectors)} vectors for {expected} texts",
            http_status=200,
            retryable=True,
            usage=reply.usage,
        )
    return replace(reply, output=vectors if many else vectors[0])


def _is_vector(output: Any) -> bool:
    return not output or isinstance(output[0], int | float)
