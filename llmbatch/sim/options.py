"""All settings of the simulated provider in one frozen value, and how they are read from strings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from llmbatch.sim.changes import Change, read_changes
from llmbatch.sim.distributions import Distribution, fixed, parse_distribution
from llmbatch.sim.limit_headers import IMITATIONS
from llmbatch.sim.script import Rule, known_fault, read_script

# OpenAI's limits are per minute and refill evenly, so a full bucket holds one minute.
BURST_S = 60.0
# What nginx and most gateways keep an idle connection open for.
IDLE_S = 75.0
DRAIN_S = 5.0

Mode = Literal["async", "threads"]


@dataclass(frozen=True, slots=True)
class SimOptions:
    """How the simulated provider behaves; without any setting it answers at once and never fails.

    latency, tokens_per_s  an answer takes its latency and the time of its tokens
    first_token            when a stream begins (at the latency if None); it ends when the whole answer would come
    output_tokens          length of answers; by nature that of the echoed prompt
    rpm, tpm, burst_s      limits per minute, in buckets that hold ``burst_s`` seconds of them
    input_tpm, output_tpm  tokens per minute of prompts and of answers, as Anthropic counts them
    rpd                    requests per day; all of them may come at once
    slots                  so many are worked on at once, the others wait for their turn
    slot_slowdown          with all slots taken every token takes 1 + this times as long
    headers                False hides the rate-limit and retry headers
    limit_headers          whose they are, of the imitations of OpenAI (see `IMITATIONS`); OpenAI's own if None
    faults, script         rates by kind (see `FAULTS`), and rules that come before them
    retry_after            what the faults 429, 503 and 529 say, word for word
    max_inflight           more than these at once get 503
    api_key, models        all others are refused
    ledger                 the file that gets a line for every billed answer
    mode, threads          one event loop, or a pool of so many threads that block (None: `threads_server.THREADS`)
    idle_s, drain_s        until an idle connection is closed; to finish what is in flight when stopped
    changes                what becomes different after the first request, and when
    """

    port: int = 0
    seed: int = 0
    latency: Distribution = field(default_factory=lambda: fixed(0.0))
    first_token: Distribution | None = None
    tokens_per_s: float | None = None
    output_tokens: Distribution | None = None
    rpm: float | None = None
    tpm: float | None = None
    input_tpm: float | None = None
    output_tpm: float | None = None
    burst_s: float = BURST_S
    rpd: float | None = None
    slots: int | None = None
    slot_slowdown: float = 0.0
    headers: bool = True
    limit_headers: str | None = None
    faults: Mapping[str, float] = field(default_factory=dict)
    script: tuple[Rule, ...] = ()
    retry_after: str | None = None
    max_inflight: int | None = None
    api_key: str | None = None
    models: tuple[str, ...] = ()
    ledger: Path | None = None
    mode: Mode = "async"
    threads: int | None = None
    idle_s: float = IDLE_S
    drain_s: float = DRAIN_S
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        if not all(rate >= 0 for rate in self.faults.values()) or math.fsum(self.faults.values()) > 1 + 1e-9:
            raise ValueError("fault: the rates must be 0 or more and add up to at most 1")
        if self.threads is not None and self.mode != "threads":
            raise ValueError("threads: a pool of threads belongs to mode threads; one event loop has none")
        if self.mode == "threads" and (self.slots is not None or self.changes):
            raise ValueError("slots and at belong to mode async; in mode threads the threads are the slots")


def _number(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError("must be 0 or more, and finite")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError("must be above 0, and finite")
    return number


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError("must be a whole number from 1")
    return count


def _mode(text: str) -> str:
    if text not in get_args(Mode):
        raise ValueError(f"must be {' or '.join(get_args(Mode))}")
    return text


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError("must be between 0 and 65535")
    return port


def _flag(text: str) -> bool:
    words = {"": True, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError("must be true or false")
    return words[text.lower()]


def _faults(text: str) -> dict[str, float]:
    """``429=0.01,reset-after=0.001``."""
    faults: dict[str, float] = {}
    for item in text.split(","):
        kind, equals, rate = item.partition("=")
        if not equals:
            raise ValueError(f"{item!r} is not KIND=RATE, such as 429=0.01")
        faults[known_fault(kind.strip(), repr(item))] = _number(rate)
    return faults


def _header_value(text: str) -> str:
    if not text.isprintable() or not text.isascii():
        raise ValueError("must be printable ASCII, as it becomes a header")
    return text


def _imitation(text: str) -> str:
    if text not in IMITATIONS:
        raise ValueError(f"must be one of {', '.join(IMITATIONS)}")
    return text


# option -> the field it sets, and how its text is read.
_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "port": ("port", _port),
    "seed": ("seed", int),
    "latency": ("latency", parse_distribution),
    "first-token": ("first_token", parse_distribution),
    "tokens-per-s": ("tokens_per_s", _positive),
    "output-tokens": ("output_tokens", parse_distribution),
    "rpm": ("rpm", _positive),
    "tpm": ("tpm", _positive),
    "input-tpm": ("input_tpm", _positive),
    "output-tpm": ("output_tpm", _positive),
    "burst": ("burst_s", _positive),
    "rpd": ("rpd", _positive),
    "slots": ("slots", _count),
    "slot-slowdown": ("slot_slowdown", _number),
    "limit-headers": ("limit_headers", _imitation),
    "no-headers": ("headers", lambda text: not _flag(text)),
    "fault": ("faults", _faults),
    "script": ("script", lambda text: read_script(Path(text))),
    "retry-after": ("retry_after", _header_value),
    "max-inflight": ("max_inflight", _count),
    "api-key": ("api_key", str),
    "models": ("models", lambda text: tuple(name.strip() for name in text.split(",") if name.strip())),
    "ledger": ("ledger", Path),
    "mode": ("mode", _mode),
    "threads": ("threads", _count),
    "idle": ("idle_s", _positive),
    "drain": ("drain_s", _number),
    "at": ("changes", lambda text: read_changes(text, _READERS)),
}


def sim_options_from(mapping: Mapping[str, str]) -> SimOptions:
    """Options from strings by option name, with dashes or underscores: ``{"latency": "0.4", "fault": "429=0.01"}``.

    Several faults are joined by commas, several changes by semicolons. ValueError names the option that can not be
    used, and why.
    """
    return SimOptions(**dict(_read(name, text) for name, text in mapping.items()))


def _read(name: str, text: str) -> tuple[str, Any]:
    option = name.replace("_", "-")
    if option not in _READERS:
        raise ValueError(f"{name}: the simulator has no such option; it has {', '.join(_READERS)}")
    field_name, read = _READERS[option]
    try:
        return field_name, read(text)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
