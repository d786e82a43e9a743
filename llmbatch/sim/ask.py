"""What a client asks, in no dialect: the prompt, and what matters of the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmbatch.sim.answers import CHARS_PER_TOKEN, count_tokens, expected_answer

# An image at low detail (OpenAI guide "Images and vision"); the other vendors' numbers are of that size.
IMAGE_TOKENS = 85
# The least that is cached: OpenAI, Gemini and most Claude models.
CACHEABLE_TOKENS = 1024
# Tokens thought at each effort, from names of all vendors; the numbers are ours.
REASONING_TOKENS = {"none": 0, "minimal": 4, "low": 16, "medium": 64, "high": 256, "xhigh": 512, "max": 1024}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its text, and how many images came with it. ``role`` is user, tool, or anything else."""

    role: str
    text: str
    images: int = 0


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call, with the JSON Schema of its arguments."""

    name: str
    parameters: Any


@dataclass(frozen=True, slots=True)
class Prefix:
    """A beginning of a prompt: what stands for it, its tokens, and whether it is written into the cache."""

    digest: bytes
    tokens: int
    written: bool = True


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    prompt, images   text and images of the last user turn; of an embeddings request its texts, joined by line ends
    prompt_tokens    all turns and instructions; cached ones are among them
    max_tokens       reasoning included
    schema           the JSON Schema the answer must fit
    tool             the function the answer must call
    prefixes         beginnings that can be cached, the shortest first
    writes_cache     what is written into the cache is reported
    texts            to embed, each into ``dimensions`` numbers
    """

    model: str
    prompt: str
    prompt_tokens: int
    max_tokens: int | None = None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    images: int = 0
    reasoning_tokens: int = 0
    shows_thoughts: bool = False
    schema: Any = None
    tool: Tool | None = None
    prefixes: tuple[Prefix, ...] = ()
    writes_cache: bool = False
    texts: tuple[str, ...] = ()
    dimensions: int = 0
    as_base64: bool = False


def prompt_turn(turns: Sequence[Turn]) -> Turn:
    """The last user turn that says or shows something; where there is none, the last turn."""
    for turn in reversed(turns):
        if turn.role == "user" and (turn.text or turn.images):
            return turn
    return turns[-1]


def tokens_of(turns: Sequence[Turn]) -> int:
    return sum([count_tokens(turn.text) + IMAGE_TOKENS * turn.images for turn in turns])


def prefixes_of(turns: Sequence[Turn], tokens: int) -> tuple[Prefix, ...]:
    """The first `CACHEABLE_TOKENS` of the ``tokens`` of ``turns``; none when they are fewer."""
    if tokens < CACHEABLE_TOKENS:
        return ()
    text = "\0".join([turn.text for turn in turns])[: CACHEABLE_TOKENS * CHARS_PER_TOKEN]
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (Prefix(digest, CACHEABLE_TOKENS),)


def tool_called(tools: Sequence[Tool], must: bool, turns: Sequence[Turn]) -> Tool | None:
    """The tool that is called: the first of ``tools`` if one must be, else that which the prompt asks for.

    "use the tool NAME" asks for it, as long as its result is not the last turn.
    """
    if must and tools:
        return tools[0]
    if not tools or turns[-1].role == "tool":
        return None
    prompt = prompt_turn(turns).text
    return next((tool for tool in tools if f"use the tool {tool.name}" in prompt), None)


def any_json(prompt: str) -> dict[str, Any]:
    """The schema of an answer that may be any JSON object: it says what a text would have said."""
    return {"type": "object", "properties": {"answer": {"const": expected_answer(prompt)}}}
