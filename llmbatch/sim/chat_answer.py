"""A Chat Completions answer on the wire: one JSON body, or the Server-Sent Events of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from llmbatch.sim.answers import CHARS_PER_TOKEN, count_tokens, expected_answer
from llmbatch.sim.chat_request import ChatRequest

FINGERPRINT = "fp_sim"
# Tokens that fall into one tick of a paced stream share a chunk: 10,000 streams must not need a timer per token.
TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What the model says to one request. ``tokens`` counts one choice; every choice is the same text."""

    id: str
    created: int
    model: str
    text: str
    tokens: int
    finish_reason: str
    n: int
    usage: dict[str, Any]

    @property
    def billed_tokens(self) -> tuple[int, int]:
        """Prompt tokens and completion tokens."""
        return self.usage["prompt_tokens"], self.usage["completion_tokens"]

    @property
    def total_tokens(self) -> int:
        return sum(self.billed_tokens)


def answer_chat(request: ChatRequest, id: str, created: int, output_tokens: int | None) -> ChatAnswer:
    """The answer of ``output_tokens`` (its natural length when None), cut at the request's maximum."""
    text = expected_answer(request.prompt, output_tokens)
    tokens, finish_reason = count_tokens(text), "stop"
    if request.max_tokens is not None and tokens > request.max_tokens:
        tokens, finish_reason = request.max_tokens, "length"
        text = text[: tokens * CHARS_PER_TOKEN]
    usage = _usage(request.prompt_tokens, tokens * request.n)
    return ChatAnswer(id, created, request.model, text, tokens, finish_reason, request.n, usage)


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def completion_body(answer: ChatAnswer) -> bytes:
    """The body of an answer that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
    return orjson.dumps(
        {
            "id": answer.id,
            "object": "chat.completion",
            "created": answer.created,
            "model": answer.model,
            "choices": [
                {"index": index, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
                for index in range(answer.n)
            ],
            "usage": answer.usage,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
    )


def stream_steps(tokens: int, first_s: float, total_s: float) -> Iterator[tuple[float, int, int]]:
    """When which tokens of a stream are sent: (seconds after arrival, from, to).

    The first token goes at ``first_s`` and the last at ``total_s``, evenly between. Tokens that are due at once are
    still chunks of their own.
    """
    span_s = total_s - first_s
    steps = tokens if span_s <= 0 else min(tokens, max(2, math.ceil(span_s / TICK_S)))
    for step in range(steps):
        at_s = first_s + span_s * step / max(1, steps - 1)
        yield at_s, tokens * step // steps, tokens * (step + 1) // steps


class StreamEvents:
    """The events of one streamed answer, as ``data:`` lines ready to send."""

    def __init__(self, answer: ChatAnswer, include_usage: bool) -> None:
        self._answer = answer
        self._common = {
            "id": answer.id,
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": answer.model,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
        # With include_usage every chunk but the one that reports it says null.
        self._no_usage: dict[str, Any] = {"usage": None} if include_usage else {}

    def role(self) -> Iterator[bytes]:
        return self._chunks({"role": "assistant", "content": "", "refusal": None}, None)

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """The tokens from ``start`` to before ``stop``."""
        text = self._answer.text[start * CHARS_PER_TOKEN : stop * CHARS_PER_TOKEN]
        return self._chunks({"content": text}, None)

    def finish(self) -> Iterator[bytes]:
        """The finish reason, the usage if it was asked for, and the end mark."""
        yield from self._chunks({}, self._answer.finish_reason)
        if self._no_usage:
            yield event({**self._common, "choices": [], "usage": self._answer.usage})
        yield b"data: [DONE]\n\n"

    def _chunks(self, delta: dict[str, Any], finish_reason: str | None) -> Iterator[bytes]:
        """One chunk for each choice, as choices of a stream arrive apart."""
        for index in range(self._answer.n):
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            yield event({**self._common, "choices": [choice], **self._no_usage})


def event(data: Any) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
