"""A Chat Completions request as the OpenAI API reads it: strictly, and with its own words for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from llmbatch.sim.answers import count_tokens
from llmbatch.sim.problems import INVALID, ApiError, invalid_value, missing, unknown_parameter, wrong_type

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

_STRING = ("a string", str)
_INTEGER = ("an integer", int)
_NUMBER = ("a number", int, float)
_BOOLEAN = ("a boolean", bool)
_OBJECT = ("an object", dict)
_ARRAY = ("an array", list)
_STRING_OR_OBJECT = ("a string or an object", str, dict)

# The body fields of POST /v1/chat/completions and their types (OpenAI API reference, "Create chat completion").
_FIELDS: dict[str, tuple[Any, ...]] = {
    "model": _STRING,
    "messages": _ARRAY,
    "max_completion_tokens": _INTEGER,
    "max_tokens": _INTEGER,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "stop": ("a string or an array", str, list),
    "seed": _INTEGER,
    "n": _INTEGER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "logit_bias": _OBJECT,
    "logprobs": _BOOLEAN,
    "top_logprobs": _INTEGER,
    "reasoning_effort": _STRING,
    "verbosity": _STRING,
    "response_format": _OBJECT,
    "tools": _ARRAY,
    "tool_choice": _STRING_OR_OBJECT,
    "parallel_tool_calls": _BOOLEAN,
    "functions": _ARRAY,
    "function_call": _STRING_OR_OBJECT,
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "service_tier": _STRING,
    "store": _BOOLEAN,
    "metadata": _OBJECT,
    "prompt_cache_key": _STRING,
    "prompt_cache_options": _OBJECT,
    "prompt_cache_retention": _STRING,
    "safety_identifier": _STRING,
    "user": _STRING,
    "prediction": _OBJECT,
    "modalities": _ARRAY,
    "audio": _OBJECT,
    "web_search_options": _OBJECT,
    "moderation": _OBJECT,
}

_RANGES: dict[str, tuple[float, float]] = {
    "max_completion_tokens": (1, 2**31),
    "max_tokens": (1, 2**31),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "n": (1, 128),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "top_logprobs": (0, 20),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What matters of a request. ``prompt`` is the text of its last user message."""

    model: str
    prompt: str
    prompt_tokens: int
    max_tokens: int | None
    n: int
    stream: bool
    include_usage: bool


def parse_chat(body: bytes) -> ChatRequest:
    """The request in ``body``; ApiError 400, as documented, when the API would refuse it."""
    fields = _json_object(body)
    for name in ("model", "messages"):
        if name not in fields:
            raise missing(name)
    for name, value in fields.items():
        _check_field(name, value)
    texts = _message_texts(fields["messages"])
    max_tokens = fields.get("max_completion_tokens")
    return ChatRequest(
        model=fields["model"],
        prompt=_last_user_text(texts),
        prompt_tokens=sum(count_tokens(text) for _, text in texts),
        max_tokens=fields.get("max_tokens") if max_tokens is None else max_tokens,
        n=fields.get("n") or 1,
        stream=bool(fields.get("stream")),
        include_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"We could not parse the JSON body of your request: {error}", INVALID) from None
    if not isinstance(fields, dict):
        raise ApiError(400, "The JSON body of your request must be an object.", INVALID)
    return fields


def _check_field(name: str, value: Any) -> None:
    if name not in _FIELDS:
        raise unknown_parameter(name)
    wanted, *types = _FIELDS[name]
    if value is None and name not in ("model", "messages"):
        return
    if type(value) not in types:
        raise wrong_type(name, wanted, value)
    if name in _RANGES:
        _check_range(name, value)


def _check_range(name: str, value: float) -> None:
    low, high = _RANGES[name]
    if value < low:
        code = "integer_below_min_value" if isinstance(value, int) else "decimal_below_min_value"
        raise invalid_value(name, f"expected a value >= {low:g}, but got {value:g} instead.", code)
    if value > high:
        code = "integer_above_max_value" if isinstance(value, int) else "decimal_above_max_value"
        raise invalid_value(name, f"expected a value <= {high:g}, but got {value:g} instead.", code)


def _message_texts(messages: list[Any]) -> list[tuple[str, str]]:
    """The role and text of every message."""
    if not messages:
        raise invalid_value("messages", "empty array. Expected an array with minimum length 1.", "empty_array")
    return [_message_text(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message_text(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise wrong_type(where, "an object", message)
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise missing(f"{where}.role")
    if role not in _ROLES:
        raise invalid_value(f"{where}.role", f"supported values are: {', '.join(sorted(_ROLES))}.")
    if content is None and role != "assistant":
        raise missing(f"{where}.content") if "content" not in message else wrong_type(f"{where}.content", "text", None)
    return role, _content_text(content, f"{where}.content")


def _content_text(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(where, "a string or an array of content parts", content)
    return "".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part_text(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise wrong_type(where, "an object", part)
    if not isinstance(part.get("type"), str):
        raise missing(f"{where}.type")
    if part["type"] != "text":
        return ""
    if not isinstance(part.get("text"), str):
        raise missing(f"{where}.text")
    return str(part["text"])


def _last_user_text(texts: list[tuple[str, str]]) -> str:
    return next((text for role, text in reversed(texts) if role == "user"), texts[-1][1])
