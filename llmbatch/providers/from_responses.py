"""A whole body for OpenAI Responses as a Request in no dialect; the way back is responses_body.py.

Source: OpenAI API reference, "Create a model response".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llmbatch.records import Request
from llmbatch.rules.reasons import RowError, excerpt

Body = Mapping[str, Any]
Message = dict[str, Any]

# What is kept at the provider, or done there besides: no other dialect can say it.
_ITS_OWN = (
    "previous_response_id", "conversation", "prompt", "background", "truncation", "include", "max_tool_calls",
    "context_management", "moderation",
)  # fmt: skip
_READ_ALREADY = ("model", "instructions", "input", "stream", "stream_options")
_TEXT_PARTS = ("input_text", "output_text", "text")


def of_responses(body: Body) -> Request:
    """The same request. Raises RowError for what only Responses can say."""
    for name in _ITS_OWN:
        if body.get(name):
            raise _only_here(f"'{name}'")
    messages = [*_instructions(body.get("instructions")), *_messages(body.get("input"))]
    params: dict[str, Any] = {}
    for name, value in body.items():
        if name not in (*_READ_ALREADY, *_ITS_OWN) and value is not None:
            params |= _READ[name](value) if name in _READ else {name: value}
    return Request(str(body.get("model")), messages, params)


def _only_here(what: str) -> RowError:
    return RowError(f"{what} of a Responses body can not be said to another API: leave it out, or use that API")


def _instructions(said: Any) -> Iterator[Message]:
    if isinstance(said, str) and said:
        yield {"role": "system", "content": said}
    elif said:
        raise _only_here("a list as 'instructions'")


def _messages(said: Any) -> list[Message]:
    if isinstance(said, str):
        return [{"role": "user", "content": said}]
    if not isinstance(said, list):
        raise RowError("'input' of a Responses body must be a text or a list of items")
    messages: list[Message] = []
    for number, item in enumerate(said):
        message = _message(item, f"input[{number}]")
        calls = message.get("tool_calls")
        if calls and messages and messages[-1]["role"] == "assistant":
            # One turn here: its text and its calls are items beside each other there.
            messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", ()), *calls]
        else:
            messages.append(message)
    return messages


def _message(item: Any, where: str) -> Message:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "message" and isinstance(item.get("role"), str):
        return {"role": item["role"], "content": _content(item.get("content"), where)}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        output = _content(item.get("output"), where)
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}
    raise _only_here(f"{where}, of the type {excerpt(repr(kind), 40)},")


def _content(content: Any, where: str) -> Any:
    if not isinstance(content, list):
        return content
    return [_part(part, where) for part in content]


def _part(part: Any, where: str) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "refusal", "refusal": part.get("refusal")}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    if kind == "input_file":
        return {"type": "file", "file": {name: value for name, value in part.items() if name != "type"}}
    raise _only_here(f"a part of {where}, of the type {excerpt(repr(kind), 40)},")


def _reasoning(value: Any) -> Body:
    return _members("reasoning", value, {"effort": lambda effort: {"reasoning_effort": effort}})


def _text(value: Any) -> Body:
    return _members("text", value, {"verbosity": lambda word: {"verbosity": word}, "format": _format})


def _members(name: str, value: Any, known: Mapping[str, Callable[[Any], Body]]) -> Body:
    if not isinstance(value, dict):
        raise RowError(f"'{name}' of a Responses body must be an object")
    params: dict[str, Any] = {}
    for member, inner in value.items():
        if inner is not None:
            if member not in known:
                raise _only_here(f"'{name}.{member}'")
            params |= known[member](inner)
    return params


def _format(value: Any) -> Body:
    if not isinstance(value, dict):
        raise RowError("'text.format' of a Responses body must be an object")
    if value.get("type") != "json_schema":
        return {"response_format": value}
    inner = {name: member for name, member in value.items() if name != "type"}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


def _tools(tools: Any) -> Body:
    return {"tools": [_tool(tool) for tool in tools]}


def _tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else None
        raise _only_here(f"a tool of the type {excerpt(repr(kind), 40)}")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(choice: Any) -> Body:
    return {"tool_choice": _tool(choice) if isinstance(choice, dict) else choice}


_READ: Mapping[str, Callable[[Any], Body]] = {
    "max_output_tokens": lambda value: {"max_tokens": value},
    "reasoning": _reasoning,
    "text": _text,
    "tools": _tools,
    "tool_choice": _tool_choice,
}
