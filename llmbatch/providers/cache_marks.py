"""Where a prompt may be cut for the provider's cache (``--cache-prompt``). Only Anthropic wants to be told.

A mark caches all that stands before its end, in the order tools, system, messages; a request reads what an earlier one
has marked at the same place. So the marks stand where rows of one kind are alike to: behind the tools, the system
prompt, and what stands before the last question. Writing costs a quarter more than reading plain input, and what is too
short to be cached is neither written nor charged for.

Source: Anthropic guide "Prompt caching": at most four marks; not on thinking, on empty text or on deferred tools; five
minutes unless it says otherwise. A mark changes no answer, so it is no part of a row's key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Body = Mapping[str, Any]

ANTHROPIC = "anthropic"
_MARK = {"type": "ephemeral"}
_MARKABLE = ("text", "image", "document", "tool_use", "tool_result")


def wants_marks(api: str) -> bool:
    """Whether the dialect's servers cache only what is marked; others do it on their own, or not at all."""
    return api == ANTHROPIC


def with_cache_marks(api: str, body: Body) -> Body:
    """``body`` with marks, if its dialect wants any and it has none of its own."""
    if not wants_marks(api) or _is_marked(body):
        return body
    marked = dict(body)
    if tools := _marked_last(body.get("tools"), _is_tool):
        marked["tools"] = tools
    if system := _marked_last(_blocks(body.get("system")), _is_block):
        marked["system"] = system
    if turns := _marked_turns(body.get("messages")):
        marked["messages"] = turns
    return marked


def _is_marked(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "cache_control" in value or any(
            _is_marked(value.get(name)) for name in ("tools", "system", "messages", "content")
        )
    return isinstance(value, list) and any(map(_is_marked, value))


def _marked_turns(turns: Any) -> list[Any] | None:
    """Marked before the last turn of the user; of a lone one, before its last block, which is the question."""
    if not isinstance(turns, list):
        return None
    asked = max((place for place, turn in enumerate(turns) if _role(turn) == "user"), default=0)
    for place in range(asked - 1, -1, -1):
        if (content := _marked_last(_content(turns[place]), _is_block)) is not None:
            return [*turns[:place], {**turns[place], "content": content}, *turns[place + 1 :]]
    content = _content(turns[asked]) if turns and not asked else []
    if (marked := _marked_last(content[:-1], _is_block)) is None:
        return None
    return [{**turns[0], "content": [*marked, content[-1]]}, *turns[1:]]


def _marked_last(items: Any, may_be: Callable[[Any], bool]) -> list[Any] | None:
    """``items`` with a mark on the last that may have one; None if none may."""
    if not isinstance(items, list):
        return None
    for place in range(len(items) - 1, -1, -1):
        if may_be(items[place]):
            return [*items[:place], {**items[place], "cache_control": _MARK}, *items[place + 1 :]]
    return None


def _is_tool(tool: Any) -> bool:
    return isinstance(tool, dict) and not tool.get("defer_loading")


def _is_block(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") in _MARKABLE and block.get("text") != ""


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, dict) else None


def _content(turn: Any) -> list[Any]:
    return _blocks(turn.get("content")) if isinstance(turn, dict) else []


def _blocks(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []
