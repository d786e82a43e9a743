"""A Request as the body of OpenAI Responses.

Source: OpenAI API reference, "Create a model response", and guide "Migrate to the Responses API".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmbatch.providers.schema_forms import openai_schema
from llmbatch.records import Request
from llmbatch.rules.reasons import RowError, excerpt, kind_of

Message = Mapping[str, Any]
Body = dict[str, Any]

_SYSTEM = ("system", "developer")
# What a message may say here. The others of Chat Completions (name, audio, function_call) have no place.
_MESSAGE_FIELDS = frozenset({"role", "content", "tool_calls", "tool_call_id", "refusal"})
# What models add to their answers, which rows repeat, and which says nothing to the model.
_ABOUT_ANSWERS = frozenset({"annotations", "reasoning", "reasoning_content", "reasoning_details"})
_SAME = frozenset(
    {"temperature", "top_p", "top_logprobs", "parallel_tool_calls", "service_tier", "store", "user", "metadata"}
)
_NO_WORD = frozenset({"top_k", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias"})


def body_of(request: Request) -> Body:
    """The body of a neutral request. Raises RowError for what Responses has no word for."""
    if request.input is not None:
        raise RowError("'input' is for embeddings models; a chat model takes 'prompt' or 'messages'")
    body: Body = {"model": request.model, **_conversation(request.messages), "store": False}
    for name, value in {**request.extra, **request.params}.items():
        _put(body, name, value)
    if request.schema is not None:
        _merge(body, {"text": {"format": {"type": "json_schema", **openai_schema(request.schema)}}})
    return body


def _conversation(messages: Sequence[Message]) -> Body:
    """What stands before the first turn are instructions; a conversation of nothing else is its input."""
    leading = 0
    while leading < len(messages) and _is_instruction(messages[leading]):
        leading += 1
    if leading == len(messages):
        leading = 0
    turns = enumerate(messages[leading:], leading)
    said: Body = {"input": [item for number, one in turns for item in _items(number, one)]}
    if leading:
        said["instructions"] = "\n\n".join(_plain_text(one["content"]) for one in messages[:leading])
    return said


def _is_instruction(message: Message) -> bool:
    content = message.get("content")
    plain = isinstance(content, str) or (
        isinstance(content, list)
        and all(part.keys() == {"type", "text"} and part["type"] == "text" for part in content)
    )
    return message.get("role") in _SYSTEM and message.keys() == {"role", "content"} and plain


def _plain_text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _items(number: int, message: Message) -> Iterator[Body]:
    """One message as input items: its text, then its tool calls; or the output of a tool."""
    role = message.get("role")
    for name, value in message.items():
        if name not in _MESSAGE_FIELDS and name not in _ABOUT_ANSWERS and value:
            raise RowError(f"messages[{number}] has {excerpt(repr(name), 40)}, for which OpenAI Responses has no place")
    where = f"messages[{number}].content"
    if role == "tool":
        output = _content(message.get("content"), role, where)
        yield {"type": "function_call_output", "call_id": message.get("tool_call_id"), "output": output}
        return
    if role == "function":
        raise RowError(f"messages[{number}] has the role 'function', which OpenAI Responses has not: use 'tool'")
    content = _content(message.get("content"), role, where)
    if message.get("refusal"):
        content = [*([_text_part(content, role)] if isinstance(content, str) and content else content or ())]
        content.append({"type": "refusal", "refusal": message["refusal"]})
    if content:
        yield {"role": role, "content": content}
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise RowError(f"the 'tool_calls' of messages[{number}] must be a list, not {kind_of(calls)}")
    for call in calls:
        yield _call(call, number)


def _content(content: Any, role: Any, where: str) -> Any:
    if not isinstance(content, list):
        return content or ""
    return [_part(part, role, f"{where}[{place}]") for place, part in enumerate(content)]


def _text_part(text: str, role: Any) -> Body:
    return {"type": "output_text" if role == "assistant" else "input_text", "text": text}


def _part(part: Message, role: Any, where: str) -> Body:
    kind = part.get("type")
    if kind == "text":
        return {**part, **_text_part(part["text"], role)}
    if kind == "refusal" and role == "assistant":
        return dict(part)
    if kind == "image_url":
        image = part.get("image_url")
        url, detail = (image.get("url"), image.get("detail")) if isinstance(image, dict) else (image, None)
        if not isinstance(url, str):
            raise RowError(f'{where} must say {{"type": "image_url", "image_url": {{"url": "…"}}}}')
        return {"type": "input_image", "image_url": url, **({"detail": detail} if detail else {})}
    if kind == "file" and isinstance(part.get("file"), dict):
        return {"type": "input_file", **part["file"]}
    raise RowError(
        f"{where} is of the type {excerpt(repr(kind), 40)}, for which OpenAI Responses has no place: "
        "use text, image_url or file, or --api openai-chat"
    )


def _call(call: Any, number: int) -> Body:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise RowError(f"messages[{number}] has a tool call without a 'function'")
    named = {"name": function.get("name"), "arguments": function.get("arguments") or "{}"}
    return {"type": "function_call", "call_id": call.get("id"), **named}


def _put(body: Body, name: str, value: Any) -> None:
    """Say one parameter: by its neutral name, or as a field of Responses."""
    if name in _NO_WORD:
        raise RowError(f"OpenAI Responses has no '{name}': leave it out, or use --api openai-chat")
    if name in _SAID_SO:
        _merge(body, _SAID_SO[name](value))
    elif name in _SAME:
        body[name] = value
    elif name != "n":  # which is 1, or was refused before
        _merge(body, {name: value})


def _merge(into: Body, more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        there = into.get(name)
        if isinstance(there, dict) and isinstance(value, Mapping):
            into[name] = {**there}
            _merge(into[name], value)
        else:
            into[name] = value


def _logprobs(value: Any) -> Body:
    return {"include": ["message.output_text.logprobs"]} if value else {}


def _response_format(value: Any) -> Body:
    """``json_schema`` is flat here."""
    schema = value.get("json_schema")
    return {"text": {"format": {"type": "json_schema", **schema} if isinstance(schema, dict) else value}}


def _tools(tools: Any) -> Body:
    return {"tools": [_flat(tool) for tool in tools]}


def _flat(tool: Any) -> Any:
    """``{"type": "function", "function": {...}}`` without the inner object; tools of Responses stay as they are."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    inner = tool.get(kind) if isinstance(kind, str) else None
    if not isinstance(inner, dict):
        return tool
    return {"type": kind, **inner, **{name: value for name, value in tool.items() if name not in ("type", kind)}}


def _tool_choice(choice: Any) -> Body:
    choice = _flat(choice)
    if isinstance(choice, dict) and isinstance(choice.get("tools"), list):
        choice = {**choice, **_tools(choice["tools"])}
    return {"tool_choice": choice}


_SAID_SO: Mapping[str, Callable[[Any], Body]] = {
    "max_tokens": lambda value: {"max_output_tokens": value},
    "max_completion_tokens": lambda value: {"max_output_tokens": value},
    "reasoning_effort": lambda value: {"reasoning": {"effort": value}},
    "verbosity": lambda value: {"text": {"verbosity": value}},
    "logprobs": _logprobs,
    "response_format": _response_format,
    "tools": _tools,
    "tool_choice": _tool_choice,
}
