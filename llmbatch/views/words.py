"""How numbers and states are said, the same in the bar, in the log and in the summary."""

from __future__ import annotations

from collections.abc import Mapping

BINDING: Mapping[str, str] = {
    "requests": "the request rate",
    "day": "the requests per day",
    "tokens": "the token rate",
    "input_tokens": "the rate of input tokens",
    "output_tokens": "the rate of output tokens",
    "concurrency": "the concurrency",
    "server": "the server's speed",
    "retries": "the retries",
    "provider": "the provider",
    "input": "the input",
    "disk": "the output",
    "hooks": "the hooks",
    "cpu": "this machine's CPU",
    "tenant": "the limits of tenants",
    "paused": "a pause",
    "tail": "the last answers",
    "idle": "nothing",
}
"""What an ``events.Binding`` is called, after the words "limited by"."""

_STATES: Mapping[str, str] = {"paused": "paused", "tail": "waiting for the last answers", "idle": ""}


def limited_by(binding: str) -> str:
    """What holds up the run now; empty if nothing does."""
    return _STATES.get(binding, f"limited by {BINDING[binding]}")


PAUSED = "paused by llmbatch ctl"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """``1 row``, ``1,000 rows``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def stopwatch(seconds: float) -> str:
    """``0:07``, ``1:22``, ``3:07:09``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def duration(seconds: float) -> str:
    """``84 ms``, ``2.10 s``, ``14.2 s``, ``2 min 03 s``, ``3 h 07 min``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours:,} h {m:02} min" if hours else f"{m} min {s:02} s"


def rate(per_s: float) -> str:
    """``0.25``, ``8.1``, ``1,234``: three digits are enough."""
    return f"{per_s:.2f}" if per_s < 0.995 else f"{per_s:.1f}" if per_s < 99.95 else f"{per_s:,.0f}"


def short(n: int) -> str:
    """``999``, ``1.2k``, ``45k``, ``1.2M``."""
    value, unit = float(n), ""
    for bigger in "kMGT":
        if value < 999.5:
            break
        value, unit = value / 1000, bigger
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"


def money(usd: float) -> str:
    """``$0.0042``, ``$0.43``, ``$1,204.50``."""
    return f"${usd:.4f}" if 0 < usd < 0.0995 else f"${usd:,.2f}"


def percent(fraction: float) -> str:
    """Rounded down: 100% is said when nothing is left."""
    return f"{int(fraction * 100)}%"
