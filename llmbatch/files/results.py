"""One Result as the line that users, jq and the report read. The names are the contract (README, "Output")."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import orjson

from llmbatch.files.checksum import with_checksum, without_checksum
from llmbatch.files.recovery import FORMAT
from llmbatch.records import Failure, Reply, Result, Usage
from llmbatch.rules.answer import MISMATCH


def result_line(result: Result) -> bytes:
    """The line with its newline."""
    return written(line_of(result))


def written(line: Mapping[str, Any]) -> bytes:
    """``line`` as it stands in a file: with its checksum and its newline."""
    return with_checksum(dump_line(line))


def part_line(part: str, line: Mapping[str, Any], row: int, id: str | int | float | None) -> bytes:
    """The line of one part of a row, which no one reads but the run that continues."""
    return written({"llmbatch": FORMAT, "part": part, **line, "id": id, "row": row})


def line_of(result: Result) -> dict[str, Any]:
    """What the line says."""
    line: dict[str, Any] = {"id": result.id, "row": result.row}
    if result.reply is not None:
        _add_reply(line, result.reply, result)
    elif result.failure is not None:
        line["status"] = "error"
        line["error"] = _error(result.failure)
        if result.partial_output is not None:
            line["output"] = result.partial_output
        if result.failure.usage is not None:
            line["usage"] = _usage(result.failure.usage)
            line["cost_usd"] = result.cost_usd
    else:
        line["status"] = "skipped"
    if result.tasks is not None:
        line["tasks"] = _tasks(result)
    line["attempts"] = result.attempts
    if result.ambiguous:
        line["ambiguous"] = result.ambiguous
    line["request_id"] = result.request_id
    if result.attempts > 1:
        line["request_ids"] = result.request_ids
    line["key"] = result.key
    if result.input is not None:
        line["input"] = result.input
    return line


def again_line(recorded: Mapping[str, Any], row: int) -> bytes:
    """The line of an earlier run once more, for row number ``row``."""
    return written({**without_checksum(recorded), "row": row})


def dump_line(value: Any) -> bytes:
    """One JSON line; numbers beyond 64 bits, which orjson refuses, go the slow way and stay exact."""
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _add_reply(line: dict[str, Any], reply: Reply, result: Result) -> None:
    line["status"] = "ok"
    line["output"] = reply.output
    if reply.tool_calls:
        line["tool_calls"] = reply.tool_calls
    if reply.reasoning:
        line["reasoning"] = reply.reasoning
    line["finish_reason"] = reply.finish_reason
    if reply.native_finish_reason is not None:
        line["native_finish_reason"] = reply.native_finish_reason
    line["model"] = reply.model
    line["usage"] = _usage(reply.usage)
    line["cost_usd"] = result.cost_usd
    for flag in reply.flags:
        line[flag] = True
    line["latency_s"] = None if result.latency_s is None else round(result.latency_s, 4)
    line["first_token_s"] = None if result.first_token_s is None else round(result.first_token_s, 4)


def _usage(usage: Usage) -> dict[str, int | None]:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


def _tasks(result: Result) -> dict[str, Any]:
    """Of a good row without the outputs, which stand in ``output``; else as they are, for the run that continues."""
    assert result.tasks is not None, "asked for by its caller"
    left_out = {"id", "row", "input", *(["output"] if result.ok else [])}
    return {
        name: {word: value for word, value in line.items() if word not in left_out}
        for name, line in result.tasks.items()
    }


def _error(failure: Failure) -> dict[str, Any]:
    error: dict[str, Any] = {
        "type": failure.type,
        "http_status": failure.http_status,
        "message": failure.message,
        "retryable": failure.retryable,
        "maybe_billed": failure.maybe_billed and failure.type != MISMATCH,
        "body": None if isinstance(failure.body, bytes) else failure.body,
    }
    if isinstance(failure.body, bytes):
        error["body_b64"] = b64encode(failure.body).decode()
    if failure.body_bytes is not None:
        error["body_bytes"] = failure.body_bytes
    if failure.output_so_far is not None:
        error["output_so_far"] = failure.output_so_far
    return error
