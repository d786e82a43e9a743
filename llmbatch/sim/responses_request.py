"""A Responses request as the OpenAI API reads it (OpenAI API reference, "Create a model response")."""

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
)
from llmbatch.sim.chat_request import check_image_url, chosen_tool, format_schema, named_tool, tool_of
from llmbatch.sim.dialect import json_object
from llmbatch.sim.fields import (
    ARRAY,
    BOOLEAN,
    OBJECT,
    STRING,
    STRING_OR_ARRAY,
    STRING_OR_OBJECT,
    Field,
    check_fields,
    choice,
    integer,
    kind_of,
    number,
)
from llmbatch.sim.openai import OPENAI, WORDS, check_reasoning_model, writes_cache

_FIELDS = {
    "model": STRING,
    "input": STRING_OR_ARRAY,
    "instructions": STRING,
    "max_output_tokens": integer(1),
    "max_tool_calls": integer(1),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_logprobs": integer(0, 20),
    "reasoning": OBJECT,
    "text": OBJECT,
    "tools": ARRAY,
    "tool_choice": STRING_OR_OBJECT,
    "parallel_tool_calls": BOOLEAN,
    "stream": BOOLEAN,
    "stream_options": OBJECT,
    "store": BOOLEAN,
    "background": BOOLEAN,
    "previous_response_id": STRING,
    "conversation": STRING_OR_OBJECT,
    "truncation": choice("auto", "disabled"),
    "include": ARRAY,
    "metadata": OBJECT,
    "prompt": OBJECT,
    "prompt_cache_key": STRING,
    "prompt_cache_options": OBJECT,
    "prompt_cache_retention": STRING,
    "safety_identifier": STRING,
    "service_tier": choice("auto", "default", "flex", "priority", "fast", "scale", "ultrafast"),
    "user": STRING,
    "moderation": OBJECT,
}
_REASONING_FIELDS = {
    "effort": choice(*REASONING_TOKENS),
    "summary": choice("auto", "concise", "detailed"),
    "mode": choice("standard", "pro"),
    "context": STRING,
}
_TEXT_FIELDS = {"format": OBJECT, "verbosity": choice("low", "medium", "high")}
_FORMATS = ("json_object", "json_schema", "text")
_SCHEMA_FIELDS = {"type": STRING, "name": STRING, "description": STRING, "schema": OBJECT, "strict": BOOLEAN}
_ROLES = ("assistant", "developer", "system", "user")
_MESSAGE_FIELDS = {
    "type": STRING,
    "role": STRING,
    "content": STRING_OR_ARRAY,
    "id": STRING,
    "status": STRING,
    "phase": choice("commentary", "final_answer"),
}
_CALL = {"type": STRING, "id": STRING, "status": STRING, "call_id": STRING, "name": STRING, "arguments": STRING}
_OUTPUT = {"type": STRING, "id": STRING, "status": STRING, "call_id": STRING, "output": STRING_OR_ARRAY}
# Other kinds of items: their fields, and those that are required.
_ITEMS: dict[str, tuple[dict[str, Field], tuple[str, ...]]] = {
    "function_call": (_CALL, ("call_id", "name", "arguments")),
    "function_call_output": (_OUTPUT, ("call_id", "output")),
    "reasoning": (
        {"type": STRING, "id": STRING, "summary": ARRAY, "content": ARRAY, "encrypted_content": STRING},
        ("summary",),
    ),
    "item_reference": ({"type": STRING, "id": STRING}, ("id",)),
}
_PART_FIELDS = {
    "input_text": {"type": STRING, "text": STRING, "prompt_cache_breakpoint": OBJECT},
    "input_image": {
        "type": STRING,
        "image_url": STRING,
        "file_id": STRING,
        "detail": choice("auto", "low", "high", "original"),
    },
    "input_file": {
        "type": STRING,
        "file_id": STRING,
        "file_data": STRING,
        "file_url": STRING,
        "filename": STRING,
        "detail": STRING,
    },
    "output_text": {"type": STRING, "text": STRING, "annotations": ARRAY, "logprobs": ARRAY},
    "refusal": {"type": STRING, "refusal": STRING},
}
_PARTS_OF_OTHERS = ("input_text", "input_image", "input_file")
_PARTS_OF_ASSISTANT = ("output_text", "refusal")
_FUNCTION_FIELDS = {
    "type": STRING,
    "name": STRING,
    "description": STRING,
    "parameters": OBJECT,
    "strict": BOOLEAN,
}


def parse_responses(body: bytes) -> Ask:
    """The request in ``body``; ApiError 400, as documented, when the API would refuse it."""
    fields: dict[str, Any] = json_object(body, OPENAI)
    check_fields(fields, _FIELDS, WORDS, required=("model", "input"))
    reasoning = fields.get("reasoning") or {}
    check_fields(reasoning, _REASONING_FIELDS, WORDS, "reasoning")
    effort = reasoning.get("effort")
    check_reasoning_model(fields, effort, {})
    turns = _turns(fields["input"])
    if fields.get("instructions"):
        turns.insert(0, Turn("system", fields["instructions"]))
    turn, tokens = prompt_turn(turns), tokens_of(turns)
    return Ask(
        model=fields["model"],
        prompt=turn.text,
        prompt_tokens=tokens,
        max_tokens=fields.get("max_output_tokens"),
        stream=bool(fields.get("stream")),
        images=turn.images,
        reasoning_tokens=REASONING_TOKENS[effort] if effort else 0,
        shows_thoughts=bool(reasoning.get("summary")),
        schema=_schema(fields.get("text") or {}, turn.text),
        tool=_tool(fields, turns) if fields.get("tools") or fields.get("tool_choice") else None,
        prefixes=prefixes_of(turns, tokens),
        writes_cache=writes_cache(fields["model"]),
    )


def _turns(given: str | list[Any]) -> list[Turn]:
    if isinstance(given, str):
        return [Turn("user", given)]
    if not given:
        raise WORDS.invalid("input", "empty array. Expected an array with minimum length 1.", "empty_array")
    return [_turn(item, f"input[{index}]") for index, item in enumerate(given)]


def _turn(item: Any, where: str) -> Turn:
    if not isinstance(item, dict):
        raise WORDS.wrong_type(where, "an object", item)
    kind = "message" if item.get("type") is None else kind_of(item, WORDS, where)
    if kind == "message":
        return _message(item, where)
    if kind not in _ITEMS:
        raise WORDS.not_one_of(f"{where}.type", ("message", *_ITEMS), kind)
    table, required = _ITEMS[kind]
    check_fields(item, table, WORDS, where, required)
    if kind == "function_call_output":
        return Turn("tool", item["output"] if isinstance(item["output"], str) else "")
    return Turn("assistant", "")


def _message(item: dict[str, Any], where: str) -> Turn:
    check_fields(item, _MESSAGE_FIELDS, WORDS, where, required=("role", "content"))
    role, content = item["role"], item["content"]
    if role not in _ROLES:
        raise WORDS.not_one_of(f"{where}.role", _ROLES, role)
    if isinstance(content, str):
        return Turn(role, content)
    allowed = _PARTS_OF_ASSISTANT if role == "assistant" else _PARTS_OF_OTHERS
    parts = [_part(part, allowed, f"{where}.content[{index}]") for index, part in enumerate(content)]
    return Turn(role, "".join([text for text, _ in parts]), sum([image for _, image in parts]))


def _part(part: Any, allowed: tuple[str, ...], where: str) -> tuple[str, bool]:
    """The text of a part, and whether it is an image."""
    kind = kind_of(part, WORDS, where)
    if kind not in allowed:
        raise WORDS.not_one_of(f"{where}.type", allowed, kind)
    says_text = kind in ("input_text", "output_text")
    check_fields(part, _PART_FIELDS[kind], WORDS, where, required=("type", "text") if says_text else ("type",))
    if kind == "input_image" and part.get("image_url") is not None:
        check_image_url(part["image_url"], f"{where}.image_url")
    return part["text"] if says_text else "", kind == "input_image"


def _schema(text: dict[str, Any], prompt: str) -> Any:
    """The schema the answer must fit, None for text."""
    check_fields(text, _TEXT_FIELDS, WORDS, "text")
    form = text.get("format")
    if form is None:
        return None
    kind = kind_of(form, WORDS, "text.format")
    if kind not in _FORMATS:
        raise WORDS.not_one_of("text.format.type", _FORMATS, kind)
    if kind == "json_schema":
        return format_schema(form, _SCHEMA_FIELDS, "text.format")
    check_fields(form, {"type": STRING}, WORDS, "text.format")
    return any_json(prompt) if kind == "json_object" else None


def _tool(fields: dict[str, Any], turns: list[Turn]) -> Tool | None:
    tools = [_function(tool, f"tools[{index}]") for index, tool in enumerate(fields.get("tools") or [])]
    wanted = fields.get("tool_choice")
    if isinstance(wanted, dict):
        return named_tool(tools, kind_of(wanted, WORDS, "tool_choice", "name"))
    return chosen_tool(tools, wanted, turns)


def _function(tool: Any, where: str) -> Tool:
    if kind_of(tool, WORDS, where) != "function":
        return Tool("", {})  # the tools that OpenAI runs itself
    check_fields(tool, _FUNCTION_FIELDS, WORDS, where, required=("name",))
    return tool_of(tool, f"{where}.parameters")
