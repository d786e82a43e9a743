"""One Result as the line that users, jq and the report read. The names are the contract (README, "Output")."""

from __future__ import annotations

import json
from typing import Any

import orjson

from llmbatch.records import Failure, Reply, Result


def result_line(result: Result) -> bytes:
    """The line with its newline."""
    line: dict[str, Any] = {"id": result.id, "row": result.row}
    if result.reply is not None:
        _add_reply(line, result.reply, result)
    else:
        assert result.failure is not None, "a Result has a reply or a failure"
        line["status"] = "error"
        line["error"] = _error(result.failure)
    line["attempts"] = result.attempts
    if result.ambiguous:
        line["ambiguous"] = result.ambiguous
    line["request_id"] = result.request_id
    line["key"] = result.key
    if result.input is not None:
        line["input"] = result.input
    return dump_line(line)


def dump_line(value: Any) -> bytes:
    """One JSON line; numbers beyond 64 bits, which orjson refuses, go the slow way and stay exact."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _add_reply(line: dict[str, Any], reply: Reply, result: Result) -> None:
    usage = reply.usage
    line["status"] = "ok"
    line["output"] = reply.output
    if reply.tool_calls:
        line["tool_calls"] = reply.tool_calls
    if reply.reasoning:
        line["reasoning"] = reply.reasoning
    line["finish_reason"] = reply.finish_reason
    line["model"] = reply.model
    line["usage"] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }
    line["cost_usd"] = result.cost_usd
    line["latency_s"] = None if result.latency_s is None else round(result.latency_s, 4)
    line["first_token_s"] = None if result.first_token_s is None else round(result.first_token_s, 4)


def _error(failure: Failure) -> dict[str, Any]:
    return {
        "type": failure.type,
        "http_status": failure.http_status,
        "message": failure.message,
        "retryable": failure.retryable,
        "maybe_billed": failure.maybe_billed,
        "body": failure.body,
    }
