"""Between everything this process prints and its reader: keys are taken out, whoever printed them.

The second line of defence. What a server repeats is cleaned where it comes in (rules/redact.py), and a Secret shows
itself to nobody; this is for what nobody thought of, such as the traceback of a bug. Python's own reports (uncaught
exceptions of the main thread, of threads and of finalizers, of tasks nobody awaited, warnings, logging's last resort)
all go to ``sys.stderr``, so one screen before the streams is before all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO, cast

_hide: Callable[[str], str] | None = None


def learn(hide: Callable[[str], str]) -> None:
    """From now on nothing is printed but through ``hide``."""
    global _hide
    _hide = hide


def scrubbed(text: str) -> str:
    """``text`` without the keys that were learned."""
    return text if _hide is None else _hide(text)


def scrubbed_value(value: Any) -> Any:
    """A JSON value without the keys in any of its strings."""
    if isinstance(value, str):
        return scrubbed(value)
    if isinstance(value, dict):
        return {scrubbed_value(name): scrubbed_value(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed_value(member) for member in value]
    return value


def screen_streams() -> None:
    """Put the screen before standard output and standard error, for the rest of the process."""
    sys.stdout = cast(TextIO, _Screen(sys.stdout))
    sys.stderr = cast(TextIO, _Screen(sys.stderr))


class _Screen:
    """A text stream that is the one behind it, but for what is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(scrubbed(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
