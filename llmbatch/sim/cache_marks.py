"""Where a Messages request lets its prompt be cached (Anthropic guide "Prompt caching")."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from llmbatch.sim.answers import count_tokens
from llmbatch.sim.anthropic import invalid
from llmbatch.sim.ask import CACHEABLE_TOKENS, IMAGE_TOKENS, Prefix

MOST_MARKS = 4
# A mark finds what an earlier request has marked at most so many blocks before it.
LOOKS_BACK = 20


def marked_prefixes(fields: Mapping[str, Any], prompt_tokens: int) -> tuple[Prefix, ...]:
    """The beginnings of the prompt that can be read from the cache, and those that are written to it: up to each mark.

    Of ``prompt_tokens`` at most; tools count nothing there. ApiError 400 for too many marks.
    """
    blocks = list(_blocks(fields))
    marks = [place for place, block in enumerate(blocks) if block.get("cache_control") is not None]
    if fields.get("cache_control") is not None and blocks:
        marks.append(len(blocks) - 1)
    if len(marks) > MOST_MARKS:
        raise invalid(f"A maximum of {MOST_MARKS} blocks with cache_control may be provided. Found {len(marks)}.")
    hasher, tokens, found = hashlib.blake2b(fields["model"].encode("utf-8", "surrogatepass"), digest_size=8), 0, []
    for place, block in enumerate(blocks if marks else ()):
        said = {name: value for name, value in block.items() if name != "cache_control"}
        hasher.update(orjson.dumps(said))
        tokens = min(tokens + _tokens(block), prompt_tokens)
        if tokens >= CACHEABLE_TOKENS and any(0 <= mark - place <= LOOKS_BACK for mark in marks):
            found.append(Prefix(hasher.digest(), tokens, written=place in marks))
    return tuple(found)


def _blocks(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Of tools, system and messages, in this order; each with the role that says it."""
    for tool in fields.get("tools") or []:
        yield {"role": "tools", **tool}
    said = [("system", fields.get("system")), *((turn["role"], turn["content"]) for turn in fields["messages"])]
    for role, content in said:
        if isinstance(content, str):
            yield {"role": role, "type": "text", "text": content}
        else:
            yield from ({"role": role, **block} for block in content or [])


def _tokens(block: Mapping[str, Any]) -> int:
    if block["role"] == "tools":
        return 0
    if block.get("type") == "image":
        return IMAGE_TOKENS
    text = block.get("text") or block.get("content") or ""
    if isinstance(text, str):
        return count_tokens(text)
    parts = text if isinstance(text, list) else []
    return sum(_tokens({"role": "", **part}) for part in parts if isinstance(part, dict))
