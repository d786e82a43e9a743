"""What the model answers, in no dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from llmbatch.sim.answers import CHARS_PER_TOKEN, count_tokens, expected_answer, prompt_hash
from llmbatch.sim.ask import Ask
from llmbatch.sim.schemas import example


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says to one request, the ``number``-th the server received.

    ``text`` is what it says, or the arguments of the tool it calls, as JSON; ``tokens`` counts it. Every one of the
    ``ask.n`` choices is the same. ``cut`` when the request's maximum ended it.
    """

    ask: Ask
    number: int
    created: int
    text: str
    tokens: int
    cut: bool
    reasoning_tokens: int
    cached_tokens: int
    cache_written_tokens: int

    @property
    def output_tokens(self) -> int:
        """Of all choices, reasoning included."""
        return (self.tokens + self.reasoning_tokens) * self.ask.n

    @property
    def total_tokens(self) -> int:
        return self.ask.prompt_tokens + self.output_tokens

    def piece(self, start: int, stop: int) -> str:
        """The tokens from ``start`` to before ``stop``."""
        return self.text[start * CHARS_PER_TOKEN : stop * CHARS_PER_TOKEN]

    def arguments(self) -> Any:
        """The arguments of the tool called; an empty object when they were cut."""
        return {} if self.cut else orjson.loads(self.text)


def answer_to(ask: Ask, number: int, created: int, output_tokens: int | None, cached_tokens: int = 0) -> Answer:
    """The answer of ``output_tokens`` (its natural length when None), cut at the request's maximum.

    JSON keeps its natural length. ``cached_tokens`` of the prompt are read from the cache.
    """
    text = _text(ask, output_tokens)
    tokens, reasoning_tokens, cut = count_tokens(text), ask.reasoning_tokens, False
    if ask.max_tokens is not None and reasoning_tokens + tokens > ask.max_tokens:
        reasoning_tokens = min(reasoning_tokens, ask.max_tokens)
        tokens, cut = ask.max_tokens - reasoning_tokens, True
        text = text[: tokens * CHARS_PER_TOKEN]
    cacheable_tokens = max((one.tokens for one in ask.prefixes if one.written), default=0)
    return Answer(
        ask=ask,
        number=number,
        created=created,
        text=text,
        tokens=tokens,
        cut=cut,
        reasoning_tokens=reasoning_tokens,
        cached_tokens=cached_tokens,
        cache_written_tokens=max(0, cacheable_tokens - cached_tokens) if ask.writes_cache else 0,
    )


def _text(ask: Ask, output_tokens: int | None) -> str:
    if ask.texts:
        return ""
    schema = ask.tool.parameters if ask.tool else ask.schema
    if schema is not None:
        return orjson.dumps(example(schema, prompt_hash(ask.prompt))).decode()
    return expected_answer(ask.prompt, output_tokens, ask.images)
