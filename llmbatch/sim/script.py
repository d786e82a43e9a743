"""The fate of a request: a pure function of the seed, the prompt and how often that prompt was seen before.

So it depends neither on the clock nor on the order of arrival, and a run that is repeated meets the same answers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llmbatch.sim.distributions import Distribution
from llmbatch.sim.problems import FAULTS


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a script: the fault of the ``n``-th request, or of those whose prompt contains ``prompt``.

    ``times`` limits it to the first sightings of each prompt; None means every time.
    """

    fault: str
    n: int | None = None
    prompt: str | None = None
    times: int | None = None

    def matches(self, n: int, prompt_text: str, seen: int) -> bool:
        if self.times is not None and seen >= self.times:
            return False
        return self.n == n if self.prompt is None else self.prompt in prompt_text


@dataclass(frozen=True, slots=True)
class Fate:
    """What will happen to one request. ``output_tokens`` None means as many as the answer has."""

    latency_s: float
    first_token_s: float | None
    output_tokens: int | None
    fault: str | None


def fate_of(
    key: str,
    *,
    latency: Distribution,
    first_token: Distribution | None,
    output_tokens: Distribution | None,
    faults: Mapping[str, float],
) -> Fate:
    """The fate that ``key`` (see `fate_key`) draws from the distributions and the rates of the faults."""
    chance = _chances(key)
    return Fate(
        latency_s=latency.at(chance[0], chance[1]),
        first_token_s=first_token.at(chance[2], chance[3]) if first_token else None,
        output_tokens=max(1, round(output_tokens.at(chance[4], chance[5]))) if output_tokens else None,
        fault=_fault_at(chance[6], faults),
    )


def fate_key(seed: int, prompt_hash: str, seen: int) -> str:
    """What a fate hangs on: the seed, the prompt, and how often the prompt was seen before."""
    return f"{seed}:{prompt_hash}:{seen}"


def _chances(key: str) -> tuple[float, ...]:
    """Eight even random numbers, above 0 and below 1."""
    words = struct.unpack("<8I", hashlib.blake2b(key.encode(), digest_size=32).digest())
    return tuple((word + 0.5) / 2**32 for word in words)


def _fault_at(chance: float, faults: Mapping[str, float]) -> str | None:
    for fault, rate in faults.items():
        if chance < rate:
            return fault
        chance -= rate
    return None


def scripted_fault(rules: Sequence[Rule], n: int, prompt_text: str, seen: int) -> str | None:
    """The fault of the first rule that matches the ``n``-th request (from 1), which asks ``prompt_text``."""
    return next((rule.fault for rule in rules if rule.matches(n, prompt_text, seen)), None)


def read_script(path: Path) -> tuple[Rule, ...]:
    """Rules from JSON Lines: {"n": 3, "fault": "429"} or {"prompt": "parcel", "fault": "reset-after", "times": 1}.

    ValueError names the file and line that can not be used.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return tuple(_rule(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())


def _rule(line: bytes, where: str) -> Rule:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(fields, dict) or not fields.keys() <= {"n", "prompt", "fault", "times"}:
        raise ValueError(f"{where}: a rule is an object of fault, n or prompt, and times")
    if ("n" in fields) == ("prompt" in fields):
        raise ValueError(f"{where}: a rule has either n or prompt")
    return Rule(
        fault=known_fault(fields.get("fault"), where),
        n=_count(fields, "n", where),
        prompt=_text(fields.get("prompt"), where),
        times=_count(fields, "times", where),
    )


def known_fault(kind: Any, where: str) -> str:
    """``kind`` itself when there is such a fault; ValueError lists the kinds when not."""
    if not isinstance(kind, str) or kind not in FAULTS:
        raise ValueError(f"{where}: no fault is called {kind!r}; the kinds are {', '.join(FAULTS)}")
    return kind


def _count(fields: Mapping[str, Any], name: str, where: str) -> int | None:
    value = fields.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{where}: {name} must be a whole number from 1")
    return value


def _text(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: prompt must be a string")
    return value
