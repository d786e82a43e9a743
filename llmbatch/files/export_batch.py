"""A result line in the shape of the OpenAI Batch API's output, so that code written for that reads it.

Fields as in "The request output object" of https://platform.openai.com/docs/api-reference/batch. Whichever provider
answered, the body is a chat.completion, or a list of embeddings. What the line does not know is null or left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})


def batch_line(line: Mapping[str, Any], created: int) -> dict[str, Any]:
    """``created`` (Unix seconds) stands in completions, for results do not say when they came."""
    given = line.get("id")
    return {
        "id": f"batch_req_{line['row']}",
        "custom_id": str(line["row"] if given is None else given),
        "response": _response(line, created),
        "error": _error(line),
    }


def text_of(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json_text(value)


def json_text(value: Any) -> str:
    """JSON; what orjson refuses (a lone surrogate, an integer beyond 64 bits) goes the slow way."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value, separators=(",", ":"))


def vectors_in(line: Mapping[str, Any]) -> list[list[float]] | None:
    """The embeddings that a line holds, None if its output is another: no text model ends without a finish_reason."""
    output = line.get("output")
    if line.get("finish_reason") is not None or not isinstance(output, list) or not output:
        return None
    if all(type(number) in (int, float) for number in output):
        return [output]
    both = all(isinstance(one, list) and all(type(number) in (int, float) for number in one) for one in output)
    return output if both else None


def _response(line: Mapping[str, Any], created: int) -> dict[str, Any] | None:
    if line["status"] == "ok":
        vectors = vectors_in(line)
        body = _completion(line, created) if vectors is None else _embeddings(line, vectors)
        return {"status_code": 200, "request_id": line.get("request_id") or "", "body": body}
    status = _refused_with(line)
    if status is None:
        return None
    return {"status_code": status, "request_id": line.get("request_id") or "", "body": {"error": _server_error(line)}}


def _error(line: Mapping[str, Any]) -> dict[str, str] | None:
    if line["status"] == "skipped":
        return {"code": "skipped", "message": "This row was skipped by a hook, and not sent."}
    if line["status"] == "ok" or _refused_with(line) is not None:
        return None
    return {"code": line["error"]["type"], "message": line["error"]["message"]}


def _refused_with(line: Mapping[str, Any]) -> int | None:
    """The status of a server that answered no."""
    status = line.get("error", {}).get("http_status")
    return status if type(status) is int and status >= 400 else None


def _server_error(line: Mapping[str, Any]) -> dict[str, Any]:
    """The server's own words where they have the shape of OpenAI's."""
    error = line["error"]
    try:
        theirs = orjson.loads(error.get("body") or "").get("error")
    except (ValueError, AttributeError):
        theirs = None
    ours = {"message": error["message"], "type": error["type"], "param": None, "code": error["type"]}
    return {**ours, **theirs} if isinstance(theirs, dict) else ours


def _completion(line: Mapping[str, Any], created: int) -> dict[str, Any]:
    output, calls = line.get("output"), line.get("tool_calls")
    content = None if output is None or (calls and output == "") else text_of(output)
    message = {"role": "assistant", "content": content, "refusal": None, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(line)}
    usage = _usage(line)
    return {
        "id": f"chatcmpl-{line['row']}",
        "object": "chat.completion",
        "created": created,
        "model": line.get("model") or "",
        "choices": [choice],
        **({} if usage is None else {"usage": usage}),
    }


def _finish_reason(line: Mapping[str, Any]) -> str:
    """OpenAI has no word for an answer that paused, or met the end of the context: it was cut, as by the limit."""
    reason = line.get("finish_reason")
    if reason is None:
        return "stop"
    return reason if reason in _FINISH_REASONS else "length"


def _usage(line: Mapping[str, Any]) -> dict[str, Any] | None:
    usage = line.get("usage") or {}
    read, written = usage.get("input_tokens"), usage.get("output_tokens")
    if read is None or written is None:
        return None
    cached, reasoning = usage.get("cached_input_tokens"), usage.get("reasoning_tokens")
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        **({} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}),
        **({} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}),
    }


def _embeddings(line: Mapping[str, Any], vectors: list[list[float]]) -> dict[str, Any]:
    read = (line.get("usage") or {}).get("input_tokens")
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    usage = {} if read is None else {"usage": {"prompt_tokens": read, "total_tokens": read}}
    return {"object": "list", "data": data, "model": line.get("model") or "", **usage}
