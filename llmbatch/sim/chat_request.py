"""A Chat Completions request as the OpenAI API reads it: strictly, and with its own words for what is wrong."""

from __future__ import annotations

from typing import Any

from llmbatch.sim.ask import (
    REASONING_TOKENS,
    Ask,
    Tool,
    Turn,
    any_json,
    prefixes_of,
    prompt_turn,
    tokens_of,
    tool_called,
)
from llmbatch.sim.dialect import json_object
from llmbatch.sim.fields import (
    ARRAY,
    BOOLEAN,
    OBJECT,
    STRING,
    STRING_OR_ARRAY,
    STRING_OR_OBJECT,
    check_fields,
    choice,
    integer,
    kind_of,
    number,
)
from llmbatch.sim.openai import OPENAI, WORDS, check_reasoning_model, check_schema, problem, writes_cache

_ROLES = ("assistant", "developer", "function", "system", "tool", "user")

# The body fields of POST /v1/chat/completions and their types (OpenAI API reference, "Create chat completion").
_FIELDS = {
    "model": STRING,
    "messages": ARRAY,
    "max_completion_tokens": integer(1),
    "max_tokens": integer(1),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "stop": STRING_OR_ARRAY,
    "seed": integer(),
    "n": integer(1, 128),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": OBJECT,
    "logprobs": BOOLEAN,
    "top_logprobs": integer(0, 20),
    "reasoning_effort": choice(*REASONING_TOKENS),
    "verbosity": choice("low", "medium", "high"),
    "response_format": OBJECT,
    "tools": ARRAY,
    "tool_choice": STRING_OR_OBJECT,
    "parallel_tool_calls": BOOLEAN,
    "functions": ARRAY,
    "function_call": STRING_OR_OBJECT,
    "stream": BOOLEAN,
    "stream_options": OBJECT,
    "service_tier": choice("auto", "default", "flex", "priority", "fast", "scale"),
    "store": BOOLEAN,
    "metadata": OBJECT,
    "prompt_cache_key": STRING,
    "prompt_cache_options": OBJECT,
    "prompt_cache_retention": STRING,
    "safety_identifier": STRING,
    "user": STRING,
    "prediction": OBJECT,
    "modalities": ARRAY,
    "audio": OBJECT,
    "web_search_options": OBJECT,
    "moderation": OBJECT,
}
_MESSAGE_FIELDS = {
    "role": STRING,
    "content": STRING_OR_ARRAY,
    "name": STRING,
    "refusal": STRING,
    "tool_calls": ARRAY,
    "tool_call_id": STRING,
    "function_call": OBJECT,
    "audio": OBJECT,
    "annotations": ARRAY,
}
_PART_FIELDS = {
    "text": {"type": STRING, "text": STRING, "prompt_cache_breakpoint": OBJECT},
    "image_url": {"type": STRING, "image_url": OBJECT, "prompt_cache_breakpoint": OBJECT},
    "input_audio": {"type": STRING, "input_audio": OBJECT},
    "file": {"type": STRING, "file": OBJECT},
    "refusal": {"type": STRING, "refusal": STRING},
}
_IMAGE_FIELDS = {"url": STRING, "detail": choice("auto", "low", "high", "original")}
_FORMATS = ("json_object", "json_schema", "text")
_SCHEMA_FIELDS = {"name": STRING, "description": STRING, "schema": OBJECT, "strict": BOOLEAN}
_TOOL_FIELDS = {"type": choice("function", "custom"), "function": OBJECT, "custom": OBJECT}
_FUNCTION_FIELDS = {"name": STRING, "description": STRING, "parameters": OBJECT, "strict": BOOLEAN}
_TOOL_CHOICES = ("auto", "none", "required")
# What reasoning models refuse, and what is said besides.
_NOT_FOR_REASONING = {"max_tokens": " Use 'max_completion_tokens' instead.", "stop": ""}


def parse_chat(body: bytes, deployment: str = "") -> Ask:
    """The request in ``body``; ApiError 400, as documented, when the API would refuse it.

    Behind a ``deployment`` (Azure) no model need be named.
    """
    fields: dict[str, Any] = json_object(body, OPENAI)
    if deployment:
        fields["model"] = deployment
    check_fields(fields, _FIELDS, WORDS, required=("model", "messages"))
    effort = fields.get("reasoning_effort")
    check_reasoning_model(fields, effort, _NOT_FOR_REASONING)
    _check_stream_options(fields)
    turns = _turns(fields["messages"])
    turn, tokens = prompt_turn(turns), tokens_of(turns)
    most = fields.get("max_completion_tokens")
    return Ask(
        model=fields["model"],
        prompt=turn.text,
        prompt_tokens=tokens,
        max_tokens=fields.get("max_tokens") if most is None else most,
        n=fields.get("n") or 1,
        stream=bool(fields.get("stream")),
        include_usage=bool((fields.get("stream_options") or {}).get("include_usage")),
        images=turn.images,
        reasoning_tokens=REASONING_TOKENS[effort] if effort else 0,
        schema=_schema(fields.get("response_format"), turn.text),
        tool=_tool(fields, turns) if fields.get("tools") or fields.get("tool_choice") else None,
        prefixes=prefixes_of(turns, tokens),
        writes_cache=writes_cache(fields["model"]),
    )


def _check_stream_options(fields: dict[str, Any]) -> None:
    options = fields.get("stream_options")
    if options is None:
        return
    if not fields.get("stream"):
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise problem(400, message, param="stream_options")
    table = {"include_usage": BOOLEAN, "include_obfuscation": BOOLEAN}
    check_fields(options, table, WORDS, "stream_options")


def _turns(messages: list[Any]) -> list[Turn]:
    if not messages:
        raise WORDS.invalid("messages", "empty array. Expected an array with minimum length 1.", "empty_array")
    return [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _turn(message: Any, where: str) -> Turn:
    check_fields(message, _MESSAGE_FIELDS, WORDS, where, required=("role",))
    role, content = message["role"], message.get("content")
    if role not in _ROLES:
        raise WORDS.not_one_of(f"{where}.role", _ROLES, role)
    if role == "tool" and message.get("tool_call_id") is None:
        raise WORDS.missing(f"{where}.tool_call_id")
    if role == "assistant":
        _check_tool_calls(message.get("tool_calls") or [], f"{where}.tool_calls")
    elif content is None:
        name = f"{where}.content"
        raise WORDS.wrong_type(name, "text", None) if "content" in message else WORDS.missing(name)
    if content is None or isinstance(content, str):
        return Turn(role, content or "")
    parts = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    return Turn(role, "".join([text for text, _ in parts]), sum([image for _, image in parts]))


def _check_tool_calls(calls: list[Any], where: str) -> None:
    for index, call in enumerate(calls):
        place = f"{where}[{index}]"
        table = {"id": STRING, "type": choice("function", "custom"), "function": OBJECT, "custom": OBJECT}
        check_fields(call, table, WORDS, place, required=("id", "type"))
        if call["type"] == "function":
            table = {"name": STRING, "arguments": STRING}
            check_fields(call.get("function"), table, WORDS, f"{place}.function", required=("name", "arguments"))


def _part(part: Any, where: str) -> tuple[str, bool]:
    """The text of a part, and whether it is an image."""
    kind = kind_of(part, WORDS, where)
    if kind not in _PART_FIELDS:
        raise WORDS.not_one_of(f"{where}.type", tuple(_PART_FIELDS), kind)
    check_fields(part, _PART_FIELDS[kind], WORDS, where, required=("type", kind))
    if kind == "image_url":
        check_fields(part["image_url"], _IMAGE_FIELDS, WORDS, f"{where}.image_url", required=("url",))
        check_image_url(part["image_url"]["url"], f"{where}.image_url.url")
    return part["text"] if kind == "text" else "", kind == "image_url"


def check_image_url(url: str, where: str) -> None:
    """Images come by https, or in the request as data."""
    if not url.startswith(("https://", "http://", "data:image/")):
        raise WORDS.invalid(where, "Expected a valid URL, but got a value with an invalid format.", "invalid_value")


def _schema(response_format: Any, prompt: str) -> Any:
    """The schema the answer must fit, None for text."""
    if response_format is None:
        return None
    kind = kind_of(response_format, WORDS, "response_format")
    if kind not in _FORMATS:
        raise WORDS.not_one_of("response_format.type", _FORMATS, kind)
    table = {"type": STRING, "json_schema": OBJECT} if kind == "json_schema" else {"type": STRING}
    required = ("type", "json_schema") if kind == "json_schema" else ("type",)
    check_fields(response_format, table, WORDS, "response_format", required)
    if kind == "json_schema":
        return format_schema(response_format["json_schema"], _SCHEMA_FIELDS, "response_format.json_schema")
    return any_json(prompt) if kind == "json_object" else None


def format_schema(form: Any, table: dict[str, Any], where: str) -> Any:
    """The schema of a named answer format."""
    check_fields(form, table, WORDS, where, required=("name", "schema"))
    name = form["name"]
    if not (0 < len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() and name.isascii()):
        raise WORDS.invalid(f"{where}.name", "string does not match pattern '^[a-zA-Z0-9_-]{1,64}$'.")
    check_schema(form["schema"], form.get("strict") is True, f"response_format '{name}'", where.partition(".json")[0])
    return form["schema"]


def _tool(fields: dict[str, Any], turns: list[Turn]) -> Tool | None:
    """The tool that is called."""
    tools = [_function(tool, f"tools[{index}]") for index, tool in enumerate(fields.get("tools") or [])]
    wanted = fields.get("tool_choice")
    if isinstance(wanted, dict):
        return named_tool(tools, kind_of(wanted.get("function"), WORDS, "tool_choice.function", "name"))
    return chosen_tool(tools, wanted, turns)


def _function(tool: Any, where: str) -> Tool:
    check_fields(tool, _TOOL_FIELDS, WORDS, where, required=("type",))
    if tool["type"] != "function":
        return Tool("", {})
    check_fields(tool.get("function"), _FUNCTION_FIELDS, WORDS, f"{where}.function", required=("name",))
    return tool_of(tool["function"], f"{where}.function.parameters")


def tool_of(function: dict[str, Any], where: str) -> Tool:
    name, parameters = function["name"], function.get("parameters")
    check_schema(parameters, function.get("strict") is True, f"function '{name}'", where)
    return Tool(name, parameters or {"type": "object"})


def named_tool(tools: list[Tool], name: str) -> Tool:
    for tool in tools:
        if tool.name == name:
            return tool
    raise problem(400, f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")


def chosen_tool(tools: list[Tool], wanted: str | None, turns: list[Turn]) -> Tool | None:
    if wanted is not None and not tools:
        message = "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        raise problem(400, message, param="tool_choice")
    if wanted is not None and wanted not in _TOOL_CHOICES:
        raise WORDS.not_one_of("tool_choice", _TOOL_CHOICES, wanted)
    return None if wanted == "none" else tool_called(tools, wanted == "required", turns)
