"""The provider's prompt cache: which beginnings of prompts were seen before."""

from __future__ import annotations

from collections import OrderedDict

# Enough for any test; a real cache forgets after minutes.
MAX_PREFIXES = 10_000


class PromptCache:
    """A set of prefixes that forgets the one longest unused."""

    def __init__(self) -> None:
        self._prefixes: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, prefix: bytes | None) -> bool:
        return prefix in self._prefixes

    def add(self, prefix: bytes | None) -> None:
        if prefix is None:
            return
        self._prefixes[prefix] = None
        self._prefixes.move_to_end(prefix)
        if len(self._prefixes) > MAX_PREFIXES:
            self._prefixes.popitem(last=False)
