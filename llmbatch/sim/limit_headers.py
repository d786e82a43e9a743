"""What imitations of the OpenAI dialect say of their limits, by name: `IMITATIONS`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llmbatch.sim.azure import AZURE
from llmbatch.sim.dialect import LimitHeaders
from llmbatch.sim.http11 import Headers
from llmbatch.sim.limits import MINUTE_S, Reading
from llmbatch.sim.openai import OPENAI, go_limit_headers


class _Groq:
    """Groq documentation, "Rate limits": requests are those of a day, tokens of a minute; resets are Go durations."""

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        return [
            header
            for reading in readings
            if reading.daily == (reading.unit == "requests")
            for header in go_limit_headers(reading)
        ]

    def wait_headers(self, wait_s: float) -> Headers:
        return _retry_after(wait_s)


class _Mistral:
    """As seen in its answers (mistralai/client-ts#169): limits of a minute, and no word of when they are whole."""

    _names: Mapping[str, str] = {"requests": "req-minute", "tokens": "tokens-minute"}

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        return [
            header
            for reading in readings
            if reading.unit in self._names and not reading.daily
            for header in (
                (f"x-ratelimit-limit-{self._names[reading.unit]}", f"{reading.limit:.0f}"),
                (f"x-ratelimit-remaining-{self._names[reading.unit]}", str(reading.remaining)),
            )
        ]

    def wait_headers(self, wait_s: float) -> Headers:
        return _retry_after(wait_s)


class _Together:
    """Together documentation, "Rate limits": what is allowed in a second; resets are seconds."""

    _names: Mapping[str, str] = {"requests": "x-ratelimit", "tokens": "x-tokenlimit"}

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        return [
            header
            for reading in readings
            if reading.unit in self._names and not reading.daily
            for header in self._of(self._names[reading.unit], reading)
        ]

    def _of(self, name: str, reading: Reading) -> Headers:
        limit = max(1, round(reading.limit / MINUTE_S))
        return [
            (f"{name}-limit", str(limit)),
            (f"{name}-remaining", str(min(limit, reading.remaining))),
            (f"{name}-reset", f"{reading.reset_s:.3f}"),
        ]

    def wait_headers(self, wait_s: float) -> Headers:
        return _retry_after(wait_s)


class _OpenRouter:
    """OpenRouter documentation, "Limits": only that a limit is used up, and until when, in Unix milliseconds."""

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        used_up = [reading for reading in readings if reading.unit == "requests" and reading.remaining == 0]
        return [
            header
            for reading in used_up[-1:]
            for header in (
                ("x-ratelimit-limit", f"{reading.limit:.0f}"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", f"{(time_s + reading.reset_s) * 1000:.0f}"),
            )
        ]

    def wait_headers(self, wait_s: float) -> Headers:
        return _retry_after(wait_s)


class _Silent:
    """vLLM, SGLang, Ollama, llama.cpp and DeepSeek: a 429 is all there is."""

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        return []

    def wait_headers(self, wait_s: float) -> Headers:
        return []


IMITATIONS: Mapping[str, LimitHeaders] = {
    "openai": OPENAI,
    "groq": _Groq(),
    "azure": AZURE,
    "mistral": _Mistral(),
    "together": _Together(),
    "openrouter": _OpenRouter(),
    "none": _Silent(),
}


def _retry_after(wait_s: float) -> Headers:
    return [("retry-after", f"{max(1, math.ceil(wait_s))}")]
