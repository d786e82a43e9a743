"""A body for Anthropic's Messages as a Request in no dialect, so that a line of its batch API can be sent elsewhere.

Source: Anthropic API reference, "Create a Message".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from llmbatch.providers.schema_forms import NAME, openai_schema
from llmbatch.records import Request
from llmbatch.rules.params import KNOWN
from llmbatch.rules.reasons import RowError, excerpt, kind_of

Message = dict[str, Any]

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Said in other words below, or without any: cache_control is about the price, stream about how the answer travels.
_READ = frozenset({"model", "messages", "system", "stop_sequences", "tools", "tool_choice", "metadata", "output_config",
                   "cache_control", "stream"})  # fmt: skip


def of_anthropic(body: Mapping[str, Any]) -> Request:
    """The body's messages and parameters in neutral words. ``cache_control`` is dropped, for it changes only the price.

    Raises RowError for what no other dialect can say: thinking, documents, files, the API's own tools.
    """
    for name in body:
        if name not in _READ and name not in KNOWN:
            raise _no_form(f"'{excerpt(str(name), 40)}'")
    return Request(str(body.get("model")), _messages(body), _params(body))


def _params(body: Mapping[str, Any]) -> dict[str, Any]:
    params = {name: value for name, value in body.items() if name not in _READ}
    if "stop_sequences" in body:
        params["stop"] = body["stop_sequences"]
    if tools := _list_of(body.get("tools") or [], "tools"):
        params["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    choice = _object_of(body.get("tool_choice") or {}, "tool_choice")
    if choice:
        params["tool_choice"] = _tool_choice(choice)
        if choice.get("disable_parallel_tool_use"):
            params["parallel_tool_calls"] = False
    for name, value in _object_of(body.get("metadata") or {}, "metadata").items():
        if name != "user_id":
            raise _no_form(f"'metadata.{excerpt(str(name), 40)}'")
        if value is not None:
            params["user"] = value
    for name, value in _object_of(body.get("output_config") or {}, "output_config").items():
        if name == "effort":
            params["reasoning_effort"] = value
        elif name == "format":
            params["response_format"] = _response_format(value)
        else:
            raise _no_form(f"'output_config.{excerpt(str(name), 40)}'")
    return params


def _tool(tool: Any, where: str) -> dict[str, Any]:
    said = _object_of(tool, where)
    if said.get("type", "custom") != "custom" or "input_schema" not in said:
        raise _no_form(f"{where}, which is Anthropic's own,")
    for name in sorted(said.keys() - {"type", "name", "description", "input_schema", "strict", "cache_control"}):
        raise _no_form(f"'{excerpt(str(name), 40)}' of {where}")
    function = {name: said[name] for name in ("name", "description", "strict") if said.get(name) is not None}
    return {"type": "function", "function": {**function, "parameters": said["input_schema"]}}


def _tool_choice(choice: Mapping[str, Any]) -> Any:
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    kind = choice.get("type")
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise _no_form(f"a 'tool_choice' of the type {excerpt(repr(kind), 40)}")
    return _CHOICES[kind]


def _response_format(given: Any) -> dict[str, Any]:
    said = _object_of(given, "output_config.format")
    schema = said.get("schema")
    if said.get("type") != "json_schema" or not isinstance(schema, dict):
        raise _no_form("an 'output_config.format' that is no json_schema")
    # OpenAI holds the model to a schema that is in its strict form already; another would be refused.
    strict = openai_schema(schema)["schema"] == schema
    return {"type": "json_schema", "json_schema": {"name": NAME, "schema": schema, "strict": strict}}


def _messages(body: Mapping[str, Any]) -> list[Message]:
    messages: list[Message] = []
    if system := body.get("system"):
        messages.append({"role": "system", "content": _content(system, "system")})
    for number, turn in enumerate(_list_of(body.get("messages"), "messages")):
        where = f"messages[{number}]"
        said = _object_of(turn, where)
        for name in sorted(said.keys() - {"role", "content"}):
            raise _no_form(f"'{excerpt(str(name), 40)}' of {where}")
        role, content = said.get("role"), said.get("content")
        if role == "assistant":
            messages.append(_of_assistant(content, where))
        elif role == "user":
            messages += _of_user(content, where)
        elif role == "system":
            messages.append({"role": "system", "content": _content(content, where)})
        else:
            raise _no_form(f"the role {excerpt(repr(role), 40)} of {where}")
    return messages


def _of_user(content: Any, where: str) -> Iterator[Message]:
    """The results of tools are messages of their own, and so is what stands between them."""
    if not isinstance(content, list):
        yield {"role": "user", "content": _content(content, where)}
        return
    parts: list[Any] = []
    for number, block in enumerate(content):
        said = _object_of(block, f"{where}.content[{number}]")
        if said.get("type") != "tool_result":
            parts.append(_part(said, f"{where}.content[{number}]"))
            continue
        if parts:
            yield {"role": "user", "content": _plain(parts)}
            parts = []
        yield _tool_message(said, f"{where}.content[{number}]")
    if parts or not content:
        yield {"role": "user", "content": _plain(parts)}


def _tool_message(block: Mapping[str, Any], where: str) -> Message:
    if block.get("is_error"):
        raise _no_form(f"'is_error' of {where}")
    return {
        "role": "tool",
        "tool_call_id": block.get("tool_use_id"),
        "content": _content(block.get("content") or "", where),
    }


def _of_assistant(content: Any, where: str) -> Message:
    if not isinstance(content, list):
        return {"role": "assistant", "content": _content(content, where)}
    parts: list[Any] = []
    calls: list[Any] = []
    for number, block in enumerate(content):
        place = f"{where}.content[{number}]"
        said = _object_of(block, place)
        if said.get("type") == "tool_use":
            calls.append(_tool_call(said, place))
        elif calls:
            raise _no_form(f"{place}, which comes after a tool call,")
        else:
            parts.append(_part(said, place))
    message: Message = {"role": "assistant", "content": _plain(parts) or None}
    return {**message, "tool_calls": calls} if calls else message


def _tool_call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        arguments = orjson.dumps(_object_of(block.get("input") or {}, f"{where}.input")).decode()
    except TypeError as error:
        raise RowError(f"{where}.input can not be written as JSON: {error}") from None
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    blocks = _list_of(content, f"the content of {where}")
    return _plain([_part(block, f"{where}.content[{number}]") for number, block in enumerate(blocks)])


def _plain(parts: list[Any]) -> Any:
    """One text as such: some servers take nothing else from an assistant, a system or a tool."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _part(block: Any, where: str) -> dict[str, Any]:
    said = _object_of(block, where)
    kind, source = said.get("type"), said.get("source")
    if kind == "text" and isinstance(said.get("text"), str):
        if said.get("citations"):
            raise _no_form(f"'citations' of {where}")
        return {"type": "text", "text": said["text"]}
    if kind == "image" and isinstance(source, dict):
        if source.get("type") == "url" and isinstance(source.get("url"), str):
            return {"type": "image_url", "image_url": {"url": source["url"]}}
        if source.get("type") == "base64":
            url = f"data:{source.get('media_type')};base64,{source.get('data')}"
            return {"type": "image_url", "image_url": {"url": url}}
    raise _no_form(f"{where}, of the type {excerpt(repr(kind), 40)},")


def _object_of(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RowError(f"{where} must be an object, not {kind_of(value)}")
    return value


def _list_of(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError(f"{where} must be a list, not {kind_of(value)}")
    return value


def _no_form(what: str) -> RowError:
    return RowError(f"{what} can be sent to Anthropic's Messages only: leave it out, or use --api anthropic")
