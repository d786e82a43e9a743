"""Turns as Chat Completions has them, as Anthropic's: a system prompt, and turns of blocks.

Sources: Anthropic API reference, "Create a Message", messages; guides "Vision", "Tool use" and "Mid-conversation system
messages" (where such a message may stand).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmbatch.providers.json_text import loads
from llmbatch.rules.reasons import RowError, excerpt, kind_of

Block = dict[str, Any]
Content = str | list[Block]

_SYSTEM = ("system", "developer")
_ROLES = {"user": "user", "assistant": "assistant", "tool": "user", "system": "system", "developer": "system"}
# What may stand in a turn of each role besides what it says.
_MEMBERS = {"assistant": ("tool_calls", "refusal"), "tool": ("tool_call_id", "name", "cache_control")}
_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^;,]*)*;base64,", re.IGNORECASE)
_MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")


def turns_of(messages: Sequence[Mapping[str, Any]]) -> tuple[Content, list[dict[str, Any]]]:
    """The system prompt (empty if there is none) and the turns. Turns of one role in a row become one.

    Raises RowError for what a turn can not say here.
    """
    count = 0
    while count < len(messages) and messages[count].get("role") in _SYSTEM:
        count += 1
    system: Content = ""
    for number in range(count):
        _check_members(messages[number], f"messages[{number}]")
        system = _added(system, _text_content(messages[number], f"messages[{number}]"))
    turns: list[dict[str, Any]] = []
    for number in range(count, len(messages)):
        role, content = _turn(messages[number], f"messages[{number}]")
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = _added(turns[-1]["content"], content)
        else:
            turns.append({"role": role, "content": content})
    if not turns:
        raise RowError("Anthropic needs a user's message besides the system's")
    _check_system_turns(turns)
    return system, turns


def _turn(message: Mapping[str, Any], where: str) -> tuple[str, Content]:
    said = message.get("role")
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise RowError(f"{where}: Anthropic has no role {excerpt(repr(said), 40)}")
    _check_members(message, where)
    if said == "tool":
        return role, [_tool_result(message, where)]
    if role == "system":
        return role, _filled(_text_content(message, where), where)
    content = _content(message.get("content"), where)
    if said == "assistant":
        more = [*_refusal(message, where), *_tool_uses(message, where)]
        content = _added(content, more) if more else content
    return role, _filled(content, where)


def _check_members(message: Mapping[str, Any], where: str) -> None:
    for name in message.keys() - {"role", "content"}:
        if message[name] and name not in _MEMBERS.get(str(message.get("role")), ()):
            raise RowError(f"{where}: Anthropic has no word for '{excerpt(str(name), 40)}': leave it out")


def _filled(content: Content, where: str) -> Content:
    if not content:
        raise RowError(f"{where} is empty, which Anthropic refuses: leave the message out")
    return content


def _added(content: Content, more: Content) -> Content:
    if not content or not more:
        return content or more
    return [*_blocks(content), *_blocks(more)]


def _blocks(content: Content) -> list[Block]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _check_system_turns(turns: Sequence[Mapping[str, Any]]) -> None:
    """A system message may follow a user's turn and come before the assistant's, or last."""
    for number, turn in enumerate(turns):
        if turn["role"] != "system":
            continue
        after = turns[number + 1]["role"] if number + 1 < len(turns) else "assistant"
        if turns[number - 1]["role"] != "user" or after != "assistant":
            raise RowError(
                "for Anthropic a system message in the middle may only stand between a user's turn and the "
                "assistant's, or at the end: put it first"
            )


def _text_content(message: Mapping[str, Any], where: str) -> Content:
    content = _content(message.get("content"), where)
    if any(block["type"] != "text" for block in content if isinstance(block, dict)):
        raise RowError(f"{where}: Anthropic takes only text in a system message")
    return content


def _content(content: Any, where: str) -> Content:
    """Text, or blocks without the empty texts, which the API refuses and which say nothing."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RowError(f"{where}: the content must be a string or a list of parts, not {kind_of(content)}")
    found = (_block(part, f"{where}.content[{number}]") for number, part in enumerate(content))
    return [block for block in found if block.get("text") != ""]


def _block(part: Any, where: str) -> Block:
    if not isinstance(part, dict):
        raise RowError(f"{where} must be an object, not {kind_of(part)}")
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return part
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if kind == "image_url":
        more = {name: value for name, value in part.items() if name not in ("type", "image_url")}
        return {"type": "image", "source": _source(part.get("image_url"), where), **more}
    if kind == "image" and isinstance(part.get("source"), dict):
        return part  # Anthropic's own form
    raise RowError(f"{where}: Anthropic takes text and images here, not {excerpt(repr(kind), 40)}")


def _source(image: Any, where: str) -> Block:
    said = image if isinstance(image, dict) else {"url": image}
    url = said.get("url")
    if not isinstance(url, str):
        raise RowError(f'{where} must say {{"type": "image_url", "image_url": {{"url": "…"}}}}')
    if said.get("detail") not in (None, "auto"):
        raise RowError(f"{where}: Anthropic has no 'detail' of an image: leave it out, or send a smaller image")
    if url[:5].lower() != "data:":
        if url[:8].lower() != "https://":
            raise RowError(f"{where}: Anthropic fetches images only by https: give a path, or an https or data URL")
        return {"type": "url", "url": url}
    found = _DATA_URL.match(url)
    media_type = found[1].lower() if found else ""
    if found is None or media_type not in _MEDIA_TYPES:
        raise RowError(f"{where}: a data URL must be base64 of one of {', '.join(_MEDIA_TYPES)}")
    return {"type": "base64", "media_type": media_type, "data": url[found.end() :]}


def _refusal(message: Mapping[str, Any], where: str) -> Iterator[Block]:
    refusal = message.get("refusal")
    if refusal:
        yield _block({"type": "refusal", "refusal": refusal}, f"{where}.refusal")


def _tool_uses(message: Mapping[str, Any], where: str) -> Iterator[Block]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RowError(f"{where}: 'tool_calls' must be a list, not {kind_of(calls)}")
    for number, call in enumerate(calls):
        yield _tool_use(call, f"{where}.tool_calls[{number}]")


def _tool_use(call: Any, where: str) -> Block:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f'{where} must be {{"id": …, "type": "function", "function": {{"name": …, "arguments": …}}}}')
    if not isinstance(call.get("id"), str) or not call["id"]:
        raise RowError(f"{where} has no 'id', by which its result is known")
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": _arguments(function, where)}


def _arguments(function: Mapping[str, Any], where: str) -> Any:
    """The object in the JSON text; models write nothing at all for a function without parameters."""
    arguments = function.get("arguments") or "{}"
    try:
        found = loads(arguments.encode()) if isinstance(arguments, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RowError(f"{where}: 'arguments' must be the text of a JSON object, not {excerpt(repr(arguments), 60)}")
    return found


def _tool_result(message: Mapping[str, Any], where: str) -> Block:
    """Its ``name``, if there is one, stands in the call already."""
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or not call_id:
        raise RowError(f"{where} has no 'tool_call_id': it must name the call whose result it is")
    block: Block = {"type": "tool_result", "tool_use_id": call_id}
    if content := _content(message.get("content"), where):
        block["content"] = content
    if cache_control := message.get("cache_control"):
        block["cache_control"] = cache_control
    return block
