"""The provider's prompt cache: which beginnings of prompts were seen before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from llmbatch.sim.ask import Prefix

# Enough for any test; a real cache forgets after minutes.
MAX_PREFIXES = 10_000


class PromptCache:
    """A set of prefixes that forgets the one longest unused.

    One can be read from when the first answer to it has begun: requests that come together all pay the whole price
    (Anthropic guide "Prompt caching", concurrent requests).
    """

    def __init__(self) -> None:
        self._usable_s: OrderedDict[bytes, float] = OrderedDict()

    def tokens_of(self, prefixes: Iterable[Prefix], now_s: float) -> int:
        """Tokens of the longest of ``prefixes`` that can be read."""
        return max((one.tokens for one in prefixes if self._usable_s.get(one.digest, now_s + 1) <= now_s), default=0)

    def add(self, prefixes: Iterable[Prefix], usable_s: float) -> None:
        """Write those that are to be written."""
        for one in prefixes:
            if not one.written:
                continue
            self._usable_s[one.digest] = min(usable_s, self._usable_s.get(one.digest, usable_s))
            self._usable_s.move_to_end(one.digest)
            if len(self._usable_s) > MAX_PREFIXES:
                self._usable_s.popitem(last=False)
