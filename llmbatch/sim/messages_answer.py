"""A Messages answer on the wire: one JSON body, or named events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from llmbatch.sim.answer import Answer
from llmbatch.sim.dialect import named_event

_SIGNATURE = "c2lnbmF0dXJl"


def message_body(answer: Answer) -> bytes:
    """The body of an answer that is not streamed."""
    message = _message(answer)
    message["content"] = [*_thoughts(answer), *_said(answer)]
    message["stop_reason"] = _stop_reason(answer)
    message["usage"] = {**_input_usage(answer), **_output_usage(answer), "service_tier": "standard"}
    return orjson.dumps(message)


def overloaded_body(_answer: Answer) -> bytes:
    return orjson.dumps(_overloaded())


def _overloaded() -> dict[str, Any]:
    return {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": None}


def _message(answer: Answer) -> dict[str, Any]:
    return {
        "id": f"msg_sim{answer.number:08d}",
        "type": "message",
        "role": "assistant",
        "model": answer.ask.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": {**_input_usage(answer), "output_tokens": 1, "service_tier": "standard"},
    }


def _thoughts(answer: Answer) -> list[dict[str, Any]]:
    if not answer.reasoning_tokens:
        return []
    text = "Thinking it over." if answer.ask.shows_thoughts else ""
    return [{"type": "thinking", "thinking": text, "signature": _SIGNATURE}]


def _said(answer: Answer) -> list[dict[str, Any]]:
    if not answer.ask.tool:
        return [{"type": "text", "text": answer.text, "citations": None}] if answer.text else []
    return [_tool_use(answer, answer.arguments())]


def _tool_use(answer: Answer, arguments: Any) -> dict[str, Any]:
    assert answer.ask.tool, "only an answer that calls a tool has a tool_use"
    return {
        "type": "tool_use",
        "id": f"toolu_sim{answer.number:08d}",
        "name": answer.ask.tool.name,
        "input": arguments,
    }


def _stop_reason(answer: Answer) -> str:
    if answer.cut:
        return "max_tokens"
    return "tool_use" if answer.ask.tool else "end_turn"


def _input_usage(answer: Answer) -> dict[str, Any]:
    """Input tokens without those read from or written to the cache."""
    written = answer.cache_written_tokens
    return {
        "input_tokens": answer.ask.prompt_tokens - answer.cached_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": answer.cached_tokens,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
    }


def _output_usage(answer: Answer) -> dict[str, Any]:
    return {
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"thinking_tokens": answer.reasoning_tokens},
    }


class MessagesStream:
    """From ``message_start`` to ``message_stop``; the usage at the end is that of the whole message."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._index = len(_thoughts(answer))

    def begin(self) -> Iterator[bytes]:
        yield _event("message_start", message=_message(self._answer))
        for block in _thoughts(self._answer):
            yield from self._thought(block)
        yield _event("ping")
        if self._answer.ask.tool:
            block = _tool_use(self._answer, {})
            yield _event("content_block_start", index=self._index, content_block=block)
            yield self._delta(type="input_json_delta", partial_json="")
        else:
            block = {"type": "text", "text": "", "citations": None}
            yield _event("content_block_start", index=self._index, content_block=block)

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        piece = self._answer.piece(start, stop)
        if self._answer.ask.tool:
            yield self._delta(type="input_json_delta", partial_json=piece)
        else:
            yield self._delta(type="text_delta", text=piece)

    def finish(self) -> Iterator[bytes]:
        yield _event("content_block_stop", index=self._index)
        delta = {"stop_reason": _stop_reason(self._answer), "stop_sequence": None, "stop_details": None}
        yield _event("message_delta", delta=delta, usage=_output_usage(self._answer))
        yield _event("message_stop")

    def failure(self) -> Iterator[bytes]:
        yield named_event("error", _overloaded())

    def garbage(self) -> Iterator[bytes]:
        yield b'event: content_block_delta\ndata: {"type":"content_block_delta","index":\n\n'
        yield from self.finish()

    def _thought(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield _event("content_block_start", index=0, content_block={**block, "thinking": "", "signature": ""})
        if block["thinking"]:
            yield _event(
                "content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": block["thinking"]}
            )
        signature = {"type": "signature_delta", "signature": block["signature"]}
        yield _event("content_block_delta", index=0, delta=signature)
        yield _event("content_block_stop", index=0)

    def _delta(self, **delta: Any) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, {"type": kind, **fields})
