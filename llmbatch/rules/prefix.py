"""Does a request begin as others do? Providers cache the beginnings of prompts; who shares one is charged less for it.

Nothing below some 1,024 tokens is cached by OpenAI, Gemini and most Claude models (OpenAI guide "Prompt caching";
Anthropic guide "Prompt caching", minimum cacheable length), so shorter requests have no prefix here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from llmbatch.records import Request

# About 1,024 tokens of English text.
PREFIX_CHARS = 4_096
# What a whole body says, in the order in which providers read it.
_SAID = ("tools", "system", "instructions", "messages", "input")


def prefix_of(request: Request) -> int | None:
    """Stands for the model and the first PREFIX_CHARS characters of what ``request`` says; None if it says less.

    What the run says of all rows alike (a schema) is left out. Two requests with one prefix differ once in 2^60 pairs,
    and then only their order is worse.
    """
    if request.body is None:
        tools = request.params.get("tools") or request.extra.get("tools")
        if not tools and _is_short(request.messages):
            return None
        said: Mapping[str, Any] = {"tools": tools, "messages": request.messages}
    elif request.api == "openai-embeddings":
        return None
    else:
        said = request.body
    return _hashed(request.model, _texts(said))


def _is_short(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Most rows are; asked of every row, so it looks at the lengths of texts alone. Of one to embed there are none."""
    chars = 0
    for message in messages:
        content = message.get("content")
        if type(content) is not str or len(message) > 2:
            return False
        chars += len(content)
    return chars < PREFIX_CHARS


def _hashed(model: str, texts: Iterator[str]) -> int | None:
    pieces, chars = [], 0
    for text in texts:
        pieces.append(text)
        chars += len(text)
        if chars >= PREFIX_CHARS:
            return hash((model, "\0".join(pieces)[:PREFIX_CHARS]))
    return None


def _texts(said: Mapping[str, Any]) -> Iterator[str]:
    for name in _SAID:
        value = said.get(name)
        for item in value if isinstance(value, list | tuple) else [value]:
            if item:
                yield _text(item)


def _text(item: Any) -> str:
    if type(item) is str:
        return item[:PREFIX_CHARS]
    if type(item) is dict and len(item) == 2 and type(item.get("content")) is str:
        return f"{item.get('role')}\0{item['content'][:PREFIX_CHARS]}"
    try:
        return orjson.dumps(item).decode()
    except TypeError:  # what can not be sent is told elsewhere
        return repr(item)
