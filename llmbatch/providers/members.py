"""Does a conversation hold members that a translation has no place for? Nothing of it is dropped silently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmbatch.rules.reasons import RowError, excerpt

# Of Chat Completions (OpenAI API reference, "Create chat completion"), and what other dialects add to it here.
_PART = {"type", "text", "refusal", "image_url", "source", "cache_control", "annotations"}
_NONE: frozenset[str] = frozenset()
_IMAGE = {"url", "detail"}
_CALL = {"id", "type", "function", "index", "cache_control", "extra_content"}
_FUNCTION = {"name", "arguments"}


def refuse_unknown_members(messages: Sequence[Mapping[str, Any]], api: str, also: frozenset[str] = _NONE) -> None:
    """Raises RowError, naming the place, for a member inside a message's parts or tool calls that is not known.

    ``also`` are members of parts that this dialect has.
    """
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            continue  # the dialect itself says so
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            for place, part in enumerate(content):
                where = f"messages[{number}].content[{place}]"
                _check(part, _PART | also if _is_known(part) else None, where, api)
                if isinstance(part, Mapping):
                    _check(part.get("image_url"), _IMAGE, f"{where}.image_url", api)
        if isinstance(calls, list):
            for place, call in enumerate(calls):
                where = f"messages[{number}].tool_calls[{place}]"
                _check(call, _CALL, where, api)
                if isinstance(call, Mapping):
                    _check(call.get("function"), _FUNCTION, f"{where}.function", api)


def _is_known(part: Any) -> bool:
    """Other kinds of parts the dialect refuses itself, or passes on whole."""
    return isinstance(part, Mapping) and part.get("type") in ("text", "image_url", "refusal")


def _check(value: Any, known: Iterable[str] | None, where: str, api: str) -> None:
    if not isinstance(value, Mapping) or known is None:
        return
    for name, member in value.items():
        if name not in known and member not in (None, [], {}, ""):
            raise RowError(f"{where}: the API {api!r} has no word for '{excerpt(str(name), 40)}': leave it out")
