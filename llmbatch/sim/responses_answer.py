"""A Responses answer on the wire: one JSON body, or named events with sequence numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from llmbatch.sim.answer import Answer
from llmbatch.sim.dialect import named_event


def response_body(answer: Answer) -> bytes:
    """The body of an answer that is not streamed."""
    return orjson.dumps(_response(answer, _status(answer), _output(answer)))


def failed_body(answer: Answer) -> bytes:
    """A status of 200 that is a failure: the Responses API reports what goes wrong later in ``status``."""
    return orjson.dumps(_failed(answer))


def _failed(answer: Answer) -> dict[str, Any]:
    error = {"code": "server_error", "message": "An error occurred while processing your request."}
    return {**_response(answer, "failed", []), "error": error, "usage": None}


def _status(answer: Answer) -> str:
    return "incomplete" if answer.cut else "completed"


def _response(answer: Answer, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    ask = answer.ask
    return {
        "id": f"resp_sim{answer.number:08d}",
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "max_output_tokens": ask.max_tokens,
        "metadata": {},
        "model": ask.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None if status == "in_progress" else _usage(answer),
    }


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "input_tokens": answer.ask.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": answer.cached_tokens,
            "cache_write_tokens": answer.cache_written_tokens,
        },
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": answer.total_tokens,
    }


def _output(answer: Answer) -> list[dict[str, Any]]:
    said = _call(answer, _status(answer), answer.text) if answer.ask.tool else _message(answer)
    return [*_reasoning(answer), said]


def _reasoning(answer: Answer) -> list[dict[str, Any]]:
    if not answer.reasoning_tokens:
        return []
    summary = [{"type": "summary_text", "text": "Thinking it over."}] if answer.ask.shows_thoughts else []
    return [{"type": "reasoning", "id": f"rs_sim{answer.number:08d}", "summary": summary}]


def _message(answer: Answer) -> dict[str, Any]:
    return {
        "type": "message",
        "id": f"msg_sim{answer.number:08d}",
        "role": "assistant",
        "status": _status(answer),
        "content": [_part(answer.text)],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(answer: Answer, status: str, arguments: str) -> dict[str, Any]:
    assert answer.ask.tool, "only an answer that calls a tool has a call"
    return {
        "type": "function_call",
        "id": f"fc_sim{answer.number:08d}",
        "call_id": f"call_sim{answer.number:08d}",
        "name": answer.ask.tool.name,
        "arguments": arguments,
        "status": status,
    }


class ResponsesStream:
    """From ``response.created`` to the terminal event, which repeats the whole response. There is no ``[DONE]``."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._numbered = 0
        self._index = len(_reasoning(answer))
        self._item = _output(answer)[-1]

    def begin(self) -> Iterator[bytes]:
        skeleton = _response(self._answer, "in_progress", [])
        yield self._event("response.created", response=skeleton)
        yield self._event("response.in_progress", response=skeleton)
        for item in _reasoning(self._answer):
            yield self._event("response.output_item.added", output_index=0, item={**item, "summary": []})
            yield self._event("response.output_item.done", output_index=0, item=item)
        empty: dict[str, Any] = {"arguments": ""} if self._answer.ask.tool else {"content": []}
        item = {**self._item, "status": "in_progress", **empty}
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        if not self._answer.ask.tool:
            yield self._placed("response.content_part.added", content_index=0, part=_part(""))

    def content(self, start: int, stop: int) -> Iterator[bytes]:
        piece = self._answer.piece(start, stop)
        if self._answer.ask.tool:
            yield self._placed("response.function_call_arguments.delta", delta=piece)
        else:
            yield self._placed("response.output_text.delta", content_index=0, delta=piece, logprobs=[])

    def finish(self) -> Iterator[bytes]:
        yield from self._done()
        status = _status(self._answer)
        yield self._event(f"response.{status}", response=_response(self._answer, status, _output(self._answer)))

    def failure(self) -> Iterator[bytes]:
        yield self._event("response.failed", response=_failed(self._answer))

    def garbage(self) -> Iterator[bytes]:
        """The event that everything hangs on is spoilt: clients may ignore all others."""
        yield from self._done()
        yield b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"resp_\n\n'

    def _done(self) -> Iterator[bytes]:
        text = self._answer.text
        if self._answer.ask.tool:
            yield self._placed("response.function_call_arguments.done", arguments=text, name=self._answer.ask.tool.name)
        else:
            yield self._placed("response.output_text.done", content_index=0, text=text, logprobs=[])
            yield self._placed("response.content_part.done", content_index=0, part=_part(text))
        yield self._event("response.output_item.done", output_index=self._index, item=self._item)

    def _placed(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = named_event(kind, {"type": kind, "sequence_number": self._numbered, **fields})
        self._numbered += 1
        return event
