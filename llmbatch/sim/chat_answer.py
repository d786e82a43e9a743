"""A Chat Completions answer on the wire: one JSON body, or the Server-Sent Events of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from llmbatch.sim.answer import Answer
from llmbatch.sim.dialect import data_event

FINGERPRINT = "fp_sim"


def completion_body(answer: Answer) -> bytes:
    """The body of an answer that is not streamed."""
    return orjson.dumps(completion(answer))


def completion(answer: Answer) -> dict[str, Any]:
    message = _message(answer)
    finish_reason = _finish_reason(answer)
    return {
        "id": _id(answer),
        "object": "chat.completion",
        "created": answer.created,
        "model": answer.ask.model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}
            for index in range(answer.ask.n)
        ],
        "usage": _usage(answer),
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


def _id(answer: Answer) -> str:
    return f"chatcmpl-sim{answer.number:08d}"


def _message(answer: Answer) -> dict[str, Any]:
    if answer.ask.tool:
        calls = [_tool_call(answer, answer.text)]
        return {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": calls}
    return {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}


def _tool_call(answer: Answer, arguments: str) -> dict[str, Any]:
    assert answer.ask.tool, "only an answer that calls a tool has tool calls"
    function = {"name": answer.ask.tool.name, "arguments": arguments}
    return {"id": f"call_sim{answer.number:08d}", "type": "function", "function": function}


def _finish_reason(answer: Answer) -> str:
    if answer.cut:
        return "length"
    return "tool_calls" if answer.ask.tool else "stop"


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.ask.prompt_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": answer.cached_tokens,
            "cache_write_tokens": answer.cache_written_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": answer.reasoning_tokens * answer.ask.n,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


class ChatStream:
    """Chunks without event names, then ``[DONE]``."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._common = {
            "id": _id(answer),
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": answer.ask.model,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
        # With include_usage every chunk but the one that reports it says null.
        self._no_usage: dict[str, Any] = {"usage": None} if answer.ask.include_usage else {}

    def begin(self) -> Iterator[bytes]:
        yield from self._chunks({"role": "assistant", "content": "", "refusal": None}, None)
        if self._answer.ask.tool:
            yield from self._chunks({"tool_calls": [{"index": 0, **_tool_call(self._answer, "")}]}, None)

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        piece = self._answer.piece(start, stop)
        if self._answer.ask.tool:
            return self._chunks({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}, None)
        return self._chunks({"content": piece}, None)

    def finish(self) -> Iterator[bytes]:
        """The finish reason, the usage if it was asked for, and the end mark."""
        yield from self._chunks({}, _finish_reason(self._answer))
        if self._no_usage:
            yield data_event({**self._common, "choices": [], "usage": _usage(self._answer)})
        yield b"data: [DONE]\n\n"

    def failure(self) -> Iterator[bytes]:
        error = {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}
        yield data_event({"error": error})

    def garbage(self) -> Iterator[bytes]:
        yield b'data: {"id":"chatcmpl-\n\n'
        yield b"data: [DONE]\n\n"

    def _chunks(self, delta: dict[str, Any], finish_reason: str | None) -> Iterator[bytes]:
        """One chunk for each choice, as choices of a stream arrive apart."""
        for index in range(self._answer.ask.n):
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            yield data_event({**self._common, "choices": [choice], **self._no_usage})
