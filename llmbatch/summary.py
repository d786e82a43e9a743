"""The numbers of a run: Snapshot at one moment, for the printers; Summary at its end, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llmbatch.events import Status
from llmbatch.records import FLAGS, TokenBound


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of durations, in seconds."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Tokens:
    """As the provider reported them. Input includes cached, output includes reasoning."""

    input: int = 0
    output: int = 0
    cached_input: int = 0
    reasoning: int = 0
    answers_without_usage: int = 0

    @property
    def cached_share(self) -> float | None:
        """The share of input that came from the provider's cache, 0 to 1; None without input."""
        return self.cached_input / self.input if self.input else None


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """Failed rows of one type, with the first message as an example (untrusted text, bounded)."""

    type: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class HookTime:
    """What the calls of one hook took; ``longest_s`` is one call's."""

    calls: int
    seconds: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class Exposure:
    """What ``requests`` that may have been billed can have cost at most, all together; None is unknown."""

    requests: int = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    usd: float | None = 0.0

    def with_one(self, bound: TokenBound | None, usd: float | None) -> Exposure:
        """One request more, with its bounds."""
        tokens_in, tokens_out = (None, None) if bound is None else (bound.input_tokens, bound.output_tokens)
        return Exposure(
            self.requests + 1,
            _sum(self.input_tokens, tokens_in),
            _sum(self.output_tokens, tokens_out),
            None if self.usd is None or usd is None else self.usd + usd,
        )

    def without(self, part: Exposure) -> Exposure:
        """The rest, if ``part`` of them is taken out."""
        return Exposure(
            self.requests - part.requests,
            _sum(self.input_tokens, None if part.input_tokens is None else -part.input_tokens),
            _sum(self.output_tokens, None if part.output_tokens is None else -part.output_tokens),
            None if self.usd is None or part.usd is None else self.usd - part.usd,
        )


def _sum(total: int | None, more: int | None) -> int | None:
    return None if total is None or more is None else total + more


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a run, for the printers.

    ``ok`` and ``failed`` are of this run, ``kept_*`` of earlier ones. ``rows`` is None while the total is unknown;
    ``fraction`` (0 to 1) is then estimated from the bytes read, or None. ``rate_per_s`` counts requests that came
    to an end in the last 10 s. ``drain_left_s`` is set once no new request is sent.
    """

    status: Status
    elapsed_s: float
    rows: int | None
    ok: int
    failed: int
    kept_ok: int
    kept_failed: int
    fraction: float | None
    eta_s: float | None
    rate_per_s: float
    rpm: float | None
    requests: int
    retries: int
    rate_limited: int
    maybe_billed_twice: int
    tokens: Tokens
    cost_usd: float | None
    projected_cost_usd: float | None
    drain_left_s: float | None
    drain_why: str | None

    @property
    def done(self) -> int:
        return self.ok + self.failed + self.kept_ok + self.kept_failed

    def to_json(self) -> dict[str, Any]:
        """Plain values for programs that watch; names carry their units, None means unknown."""
        status = self.status
        return {
            "elapsed_s": round(self.elapsed_s, 3),
            "eta_s": _rounded(self.eta_s, 1),
            "rows": self.rows,
            "done": self.done,
            "ok": self.ok,
            "failed": self.failed,
            "ok_before": self.kept_ok,
            "failed_before": self.kept_failed,
            "fraction": _rounded(self.fraction, 4),
            "requests": self.requests,
            "requests_per_s": round(self.rate_per_s, 3),
            "limit_rpm": self.rpm,
            "in_flight": status.in_flight,
            "allowed": status.allowed,
            "waiting_retry": status.waiting_retry,
            "gate_closed_s": round(status.gate_closed_s, 1),
            "paused": status.paused,
            "binding": status.binding,
            "retries": self.retries,
            "rate_limited": self.rate_limited,
            "maybe_billed_twice": self.maybe_billed_twice,
            "input_tokens": self.tokens.input,
            "output_tokens": self.tokens.output,
            "cached_input_tokens": self.tokens.cached_input,
            "reasoning_tokens": self.tokens.reasoning,
            "cost_usd": self.cost_usd,
            "projected_cost_usd": self.projected_cost_usd,
            "draining": self.drain_why,
            "drain_left_s": _rounded(self.drain_left_s, 1),
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of a run. ``ok`` and ``failed`` include the rows that earlier runs finished (``*_before``).

    ``requests`` are those that left this machine and came to an end. ``ambiguous`` of them may have been billed
    although no usable answer arrived; ``maybe_billed_twice`` of these were sent again, or were one of two and the other
    one counted. ``hedges`` are the second requests of ``--hedge``, ``hedges_won`` those that were answered first.
    ``in_flight_at_kill`` were in flight when the last run was killed: their rows are sent again too. The ``*_bound``
    say what these may have cost at most. ``flags`` counts the good answers with something odd about them. ``cost_usd``
    is None while no price is known, and leaves out ``answers_without_price``; ``cache_saved_usd`` is how much more it
    would be without the provider's cache, less what it costs to write to it. ``input_complete`` is False if the run
    stopped before the end of the input: ``rows`` then counts what was read. ``input_truncated`` is True if the input
    itself ends too early (a cut gzip, a file that shrank): rows are missing. ``output`` is where the results now are,
    ``lines`` the JSONL of them.
    ``hooks`` is what the user's own functions took, by "before" and "after".
    ``binding_shares`` are the shares of time, 0 to 1, that each bottleneck held (``events.Binding``); ``advice`` is one
    sentence that follows from them, if one does.
    """

    rows: int
    ok: int
    failed: int
    skipped: int
    pending: int
    exit_code: int
    seconds: float
    rows_per_s: float
    ok_before: int = 0
    failed_before: int = 0
    input_complete: bool = True
    input_truncated: bool = False
    requests: int = 0
    retries: int = 0
    rate_limited: int = 0
    ambiguous: int = 0
    maybe_billed_twice: int = 0
    hedges: int = 0
    hedges_won: int = 0
    ambiguous_bound: Exposure = field(default_factory=Exposure)
    maybe_billed_twice_bound: Exposure = field(default_factory=Exposure)
    flags: Mapping[str, int] = field(default_factory=dict)
    in_flight_at_kill: int = 0
    latency_s: Percentiles | None = None
    first_token_s: Percentiles | None = None
    tokens: Tokens = field(default_factory=Tokens)
    cost_usd: float | None = None
    cache_saved_usd: float | None = None
    answers_without_price: int = 0
    errors: tuple[ErrorCount, ...] = ()
    finish_reasons: Mapping[str, int] = field(default_factory=dict)
    binding_shares: Mapping[str, float] | None = None
    advice: str | None = None
    output: str | None = None
    lines: str | None = None
    next_command: str | None = None
    notices: tuple[str, ...] = ()
    hooks: Mapping[str, HookTime] = field(default_factory=dict)

    @property
    def adds_up(self) -> bool:
        return self.rows == self.ok + self.failed + self.skipped + self.pending

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--summary-json``; the names are stable and carry their units."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {
            **counts,
            "adds_up": self.adds_up,
            "wall_s": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s, 3),
            "latency_s": _percentiles(self.latency_s),
            "first_token_s": _percentiles(self.first_token_s),
            **_tokens(self.tokens),
            "cost_usd": self.cost_usd,
            "cached_input_share": _rounded(self.tokens.cached_share, 4),
            "cache_saved_usd": self.cache_saved_usd,
            **_bounds("ambiguous", self.ambiguous_bound),
            **_bounds("maybe_billed_twice", self.maybe_billed_twice_bound),
            **{name: self.flags.get(name, 0) for name in FLAGS},
            "answers_without_price": self.answers_without_price,
            "errors": [asdict(error) for error in self.errors],
            "finish_reasons": dict(self.finish_reasons),
            "binding_shares": _shares(self.binding_shares),
            "advice": self.advice,
            "output": self.output,
            "next_command": self.next_command,
            "notices": list(self.notices),
            "hooks": {name: asdict(time) for name, time in self.hooks.items()},
        }


_COUNTS = (
    "exit_code",
    "rows",
    "ok",
    "failed",
    "skipped",
    "pending",
    "ok_before",
    "failed_before",
    "input_complete",
    "input_truncated",
    "requests",
    "retries",
    "rate_limited",
    "ambiguous",
    "maybe_billed_twice",
    "hedges",
    "hedges_won",
    "in_flight_at_kill",
)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _percentiles(values: Percentiles | None) -> dict[str, float] | None:
    return None if values is None else {name: round(value, 4) for name, value in asdict(values).items()}


def _shares(shares: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if shares is None else {name: round(share, 4) for name, share in shares.items()}


def _bounds(name: str, bound: Exposure) -> dict[str, float | None]:
    return {
        f"{name}_usd": bound.usd,
        f"{name}_input_tokens": bound.input_tokens,
        f"{name}_output_tokens": bound.output_tokens,
    }


def _tokens(tokens: Tokens) -> dict[str, int]:
    return {
        "input_tokens": tokens.input,
        "output_tokens": tokens.output,
        "cached_input_tokens": tokens.cached_input,
        "reasoning_tokens": tokens.reasoning,
        "answers_without_usage": tokens.answers_without_usage,
    }
