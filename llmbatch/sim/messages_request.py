"""A Messages request as the Anthropic API reads it (Anthropic API reference, "Create a Message")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmbatch.sim.anthropic import ANTHROPIC, WORDS, invalid
from llmbatch.sim.ask import REASONING_TOKENS, Ask, Tool, Turn, prompt_turn, tokens_of, tool_called
from llmbatch.sim.cache_marks import marked_prefixes
from llmbatch.sim.claude_models import check_model
from llmbatch.sim.dialect import json_object
from llmbatch.sim.fields import (
    ARRAY,
    BOOLEAN,
    OBJECT,
    STRING,
    STRING_OR_ARRAY,
    Field,
    check_fields,
    choice,
    integer,
    kind_of,
    number,
)
from llmbatch.sim.problems import ApiError
from llmbatch.sim.schemas import ANYTHING, SchemaRules, complaint_about

_FIELDS = {
    "model": STRING,
    "max_tokens": integer(0),
    "messages": ARRAY,
    "system": STRING_OR_ARRAY,
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": integer(0),
    "stop_sequences": ARRAY,
    "stream": BOOLEAN,
    "thinking": OBJECT,
    "output_config": OBJECT,
    "tools": ARRAY,
    "tool_choice": OBJECT,
    "metadata": OBJECT,
    "service_tier": choice("auto", "standard_only"),
    "speed": choice("standard", "fast"),
    "inference_geo": STRING,
    "cache_control": OBJECT,
    "container": Field("a string or an object", (str, dict)),
    "context_management": OBJECT,
    "mcp_servers": ARRAY,
    "diagnostics": OBJECT,
}
_THINKING_FIELDS = {
    "type": choice("adaptive", "enabled", "between_tools", "disabled"),
    "display": choice("summarized", "omitted"),
    "budget_tokens": integer(1024),
}
_OUTPUT_FIELDS = {"effort": choice("low", "medium", "high", "xhigh", "max"), "format": OBJECT}
_CHOICE_FIELDS = {
    "type": choice("auto", "any", "tool", "none"),
    "name": STRING,
    "disable_parallel_tool_use": BOOLEAN,
}
_TOOL_FIELDS = {
    "type": STRING,
    "name": STRING,
    "description": STRING,
    "input_schema": OBJECT,
    "strict": BOOLEAN,
    "cache_control": OBJECT,
    "input_examples": ARRAY,
    "defer_loading": BOOLEAN,
}
_ROLES = choice("user", "assistant", "system")
_BLOCK = {"type": STRING, "cache_control": OBJECT}
_THOUGHT = {"type": STRING, "thinking": STRING, "signature": STRING}
_RESULT = {**_BLOCK, "tool_use_id": STRING, "content": STRING_OR_ARRAY, "is_error": BOOLEAN}
# Kinds of blocks: their fields, and those that are required.
_BLOCKS: dict[str, tuple[dict[str, Field], tuple[str, ...]]] = {
    "text": ({**_BLOCK, "text": STRING, "citations": Field("a list or an object", (list, dict))}, ("text",)),
    "image": ({**_BLOCK, "source": OBJECT}, ("source",)),
    "document": (
        {**_BLOCK, "source": OBJECT, "title": STRING, "context": STRING, "citations": OBJECT},
        ("source",),
    ),
    "tool_use": ({**_BLOCK, "id": STRING, "name": STRING, "input": OBJECT}, ("id", "name", "input")),
    "tool_result": (_RESULT, ("tool_use_id",)),
    "thinking": (_THOUGHT, ("thinking", "signature")),
    "redacted_thinking": ({"type": STRING, "data": STRING}, ("data",)),
}
_SOURCES: dict[str, tuple[str, ...]] = {
    "base64": ("type", "media_type", "data"),
    "url": ("type", "url"),
    "file": ("type", "file_id"),
    "text": ("type", "media_type", "data"),
    "content": ("type", "content"),
}
_MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
# What the official SDK moves into descriptions because the API does not take it.
_SCHEMA_RULES = SchemaRules(
    keywords=frozenset(
        {
            *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "allOf"),
            *("$defs", "definitions", "$ref", "title", "description", "format", "minItems"),
        }
    ),
    closed=True,
    most_min_items=1,
)


def parse_messages(body: bytes, headers: Mapping[str, str]) -> Ask:
    """The request in ``body``; ApiError 400, as documented, when the API would refuse it."""
    fields: dict[str, Any] = json_object(body, ANTHROPIC)
    check_fields(fields, _FIELDS, WORDS, required=("model", "max_tokens", "messages"))
    _check_settings(fields)
    version = headers["anthropic-version"]
    check_model(fields, version)
    turns = _turns(fields["messages"], version)
    if fields.get("system") is not None:
        turns.insert(0, _turn("system", fields["system"], "system", version))
    turn, tokens = prompt_turn(turns), tokens_of(turns)
    tool = _tool(fields, turns) if fields.get("tools") or fields.get("tool_choice") else None
    prefixes = marked_prefixes(fields, tokens)
    return Ask(
        model=fields["model"],
        prompt=turn.text,
        prompt_tokens=tokens,
        max_tokens=fields["max_tokens"],
        stream=bool(fields.get("stream")),
        images=turn.images,
        reasoning_tokens=_thinking_tokens(fields),
        shows_thoughts=(fields.get("thinking") or {}).get("display") == "summarized",
        schema=_schema(fields.get("output_config") or {}),
        tool=tool,
        prefixes=prefixes,
        writes_cache=bool(prefixes),
    )


def _check_settings(fields: dict[str, Any]) -> None:
    thinking = fields.get("thinking")
    if thinking is not None:
        check_fields(thinking, _THINKING_FIELDS, WORDS, "thinking", required=("type",))
        if thinking["type"] == "enabled":
            if "budget_tokens" not in thinking:
                raise WORDS.missing("thinking.enabled.budget_tokens")
            if thinking["budget_tokens"] >= fields["max_tokens"]:
                raise invalid("`max_tokens` must be greater than `thinking.budget_tokens`.")
    if fields.get("output_config") is not None:
        check_fields(fields["output_config"], _OUTPUT_FIELDS, WORDS, "output_config")
    if fields.get("metadata") is not None:
        check_fields(fields["metadata"], {"user_id": STRING}, WORDS, "metadata")
    if fields.get("cache_control") is not None:
        _check_cache_control(fields["cache_control"], "cache_control")
    for index, stop in enumerate(fields.get("stop_sequences") or []):
        if not isinstance(stop, str):
            raise WORDS.wrong_type(f"stop_sequences.{index}", "a string", stop)


def _check_cache_control(control: Any, where: str) -> None:
    check_fields(control, {"type": choice("ephemeral"), "ttl": choice("5m", "1h")}, WORDS, where, required=("type",))


def _turns(messages: list[Any], version: str) -> list[Turn]:
    if not messages:
        raise invalid("messages: at least one message is required")
    turns = []
    called: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        check_fields(message, {"role": _ROLES, "content": STRING_OR_ARRAY}, WORDS, where, required=("role", "content"))
        turns.append(_turn(message["role"], message["content"], where, version))
        if isinstance(message["content"], list):
            _check_results(message["content"], called, where)
    return turns


def _check_results(blocks: list[dict[str, Any]], called: set[str], where: str) -> None:
    """Every result answers a call before it."""
    for index, block in enumerate(blocks):
        if block["type"] == "tool_use":
            called.add(block["id"])
        if block["type"] == "tool_result" and block["tool_use_id"] not in called:
            raise invalid(f"{where}.content.{index}: unexpected `tool_use_id` found in `tool_result` blocks")


def _turn(role: str, content: str | list[Any], where: str, version: str) -> Turn:
    if isinstance(content, str):
        return Turn(role, content)
    inside = where if where == "system" else f"{where}.content"
    for index, block in enumerate(content):
        _check_block(block, role, f"{inside}.{index}", version)
    kinds = [block["type"] for block in content]
    text = "".join([block["text"] for block in content if block["type"] == "text"])
    results = [_result_text(block.get("content")) for block in content if block["type"] == "tool_result"]
    if results and not text:
        return Turn("tool", "".join(results))
    return Turn(role, text, kinds.count("image"))


def _result_text(content: Any) -> str:
    if isinstance(content, list):
        return "".join([str(block.get("text", "")) for block in content if isinstance(block, dict)])
    return content or ""


def _check_block(block: Any, role: str, where: str, version: str) -> None:
    kind = kind_of(block, WORDS, where)
    if kind not in _BLOCKS or (role == "system" and kind != "text"):
        raise _unexpected_tag(kind, where)
    table, required = _BLOCKS[kind]
    check_fields(block, table, WORDS, f"{where}.{kind}", required)
    if block.get("cache_control") is not None:
        _check_cache_control(block["cache_control"], f"{where}.{kind}.cache_control")
        if kind == "text" and not block["text"]:
            raise invalid(f"{where}.{kind}: cache_control cannot be set for empty text blocks")
    if kind == "text" and not block["text"]:
        raise invalid("messages: text content blocks must be non-empty")
    if kind in ("image", "document"):
        _check_source(block["source"], kind, f"{where}.{kind}.source")
    if version == "2026-10-21":
        _check_new_version(block, role, where)


def _unexpected_tag(kind: Any, where: str) -> ApiError:
    expected = ", ".join(repr(known) for known in _BLOCKS)
    return invalid(f"{where}: Input tag '{kind}' does not match any of the expected tags: {expected}")


def _check_source(source: Any, kind: str, where: str) -> None:
    form = kind_of(source, WORDS, where)
    if form not in _SOURCES or (kind == "image" and form in ("text", "content")):
        raise invalid(f"{where}.type: Input should be 'base64', 'url' or 'file'")
    names = _SOURCES[form]
    check_fields(source, dict.fromkeys(names, STRING_OR_ARRAY), WORDS, where, required=names)
    if kind == "image" and form == "base64" and source["media_type"] not in _MEDIA_TYPES:
        raise invalid(f"{where}.media_type: Input should be {' or '.join(map(repr, _MEDIA_TYPES))}")
    if form == "url" and not str(source["url"]).startswith(("https://", "http://")):
        raise invalid(f"{where}.url: Only HTTPS URLs are supported.")


def _check_new_version(block: dict[str, Any], role: str, where: str) -> None:
    """What only version 2023-06-01 takes."""
    if block["type"] == "document" and role == "assistant":
        raise invalid(f"{where}: document blocks are not permitted in assistant messages")
    if block["type"] == "text" and role == "user" and block.get("citations"):
        raise invalid(f"{where}.citations: must be empty on user text blocks")


def _thinking_tokens(fields: dict[str, Any]) -> int:
    """Only who asks for thinking gets it, although models of the fifth generation think by default."""
    thinking = fields.get("thinking") or {}
    effort = (fields.get("output_config") or {}).get("effort") or "medium"
    return REASONING_TOKENS[effort] if thinking.get("type") in ("adaptive", "enabled") else 0


def _schema(output_config: dict[str, Any]) -> Any:
    """The schema the answer must fit, None for text."""
    form = output_config.get("format")
    if form is None:
        return None
    where = "output_config.format"
    check_fields(form, {"type": choice("json_schema"), "schema": OBJECT}, WORDS, where, required=("type", "schema"))
    if why := complaint_about(form["schema"], _SCHEMA_RULES):
        raise invalid(f"{where}.schema: {why}")
    return form["schema"]


def _tool(fields: dict[str, Any], turns: list[Turn]) -> Tool | None:
    """The tool that is called."""
    tools = [_declared(tool, f"tools.{index}") for index, tool in enumerate(fields.get("tools") or [])]
    wanted = fields.get("tool_choice") or {"type": "auto"}
    check_fields(wanted, _CHOICE_FIELDS, WORDS, "tool_choice", required=("type",))
    if not tools:
        raise invalid("tool_choice: may only be specified while providing `tools`.")
    if wanted["type"] == "none":
        return None
    if wanted["type"] != "tool":
        return tool_called(tools, wanted["type"] == "any", turns)
    for tool in tools:
        if tool.name == wanted.get("name"):
            return tool
    raise invalid(f"Tool '{wanted.get('name')}' not found in provided tools")


def _declared(tool: Any, where: str) -> Tool:
    if isinstance(tool, dict) and tool.get("type") not in (None, "custom"):
        return Tool("", {})  # the tools that Anthropic runs itself
    check_fields(tool, _TOOL_FIELDS, WORDS, where, required=("name", "input_schema"))
    if tool["input_schema"].get("type") != "object":
        raise invalid(f"{where}.custom.input_schema.type: Input should be 'object'")
    if why := complaint_about(tool["input_schema"], _SCHEMA_RULES if tool.get("strict") else ANYTHING):
        raise invalid(f"{where}.custom.input_schema: {why}")
    return Tool(tool["name"], tool["input_schema"])
