"""What a run tells whoever listens. A Listener is a function of one event; it must be quick and not raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llmbatch.records import Failure, Result


@dataclass(frozen=True, slots=True)
class RunStarted:
    """``rows`` is the number of rows if it is known, ``input_bytes`` the input's size if it is a file."""

    model: str
    endpoint: str
    output: str
    rows: int | None = None
    input_bytes: int | None = None
    done_before: int = 0
    failed_before: int = 0


@dataclass(frozen=True, slots=True)
class RowEnded:
    """A row is terminal and its line is in the journal. ``input_offset`` says how far the input is read."""

    result: Result
    input_offset: int = 0


@dataclass(frozen=True, slots=True)
class RowKept:
    """A row that an earlier run finished; nothing was sent for it."""

    ok: bool
    input_offset: int = 0
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """One try failed. ``retry_in_s`` is the pause before the next try, None if there is none; ``reason`` says why.

    ``at_most_usd`` bounds what a try that may have been billed can have cost; None if nobody knows.
    """

    failure: Failure
    retry_in_s: float | None
    reason: str = ""
    at_most_usd: float | None = None


@dataclass(frozen=True, slots=True)
class GateClosed:
    """The shared gate of this endpoint is closed for ``for_s`` seconds: a rate limit, or nobody there.

    ``strikes`` counts how often in a row, with no good answer between. ``ill``: neither of these, but so many
    requests fail that no retry can be paid (rules/quota.py).
    """

    for_s: float
    failure: Failure
    strikes: int
    ill: bool = False


@dataclass(frozen=True, slots=True)
class Draining:
    """No new request is sent; ``in_flight`` are waited for, at most ``grace_s`` seconds."""

    in_flight: int
    grace_s: float
    why: str


@dataclass(frozen=True, slots=True)
class CutOff:
    """The last run of this output was killed with ``in_flight`` answers not yet written; told at the start.

    Their rows are sent again and may be paid for twice.
    """

    in_flight: int


@dataclass(frozen=True, slots=True)
class Notice:
    """One sentence for the user."""

    level: Literal["info", "warning"]
    text: str


@dataclass(frozen=True, slots=True)
class LimitsLearned:
    """What the first answer that speaks of limits said of them, in words."""

    text: str


@dataclass(frozen=True, slots=True)
class LimitSet:
    """A limit was changed by ``llmbatch ctl``. None is no limit, or of the concurrency auto."""

    name: str
    old: float | None
    new: float | None


@dataclass(frozen=True, slots=True)
class ControlOpened:
    """``llmbatch ctl`` finds this run at the socket ``path``; None if there could be none, and ``why``."""

    path: str | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class KeysLoaded:
    """The run has a key. ``hide`` takes every spelling of it out of a text."""

    hide: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class RunEnded:
    exit_code: int


Event = (
    RunStarted
    | RowEnded
    | RowKept
    | AttemptFailed
    | GateClosed
    | Draining
    | CutOff
    | Notice
    | LimitsLearned
    | LimitSet
    | ControlOpened
    | KeysLoaded
    | RunEnded
)
Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the limiter at one moment, for the progress display. ``paused`` by ``llmbatch ctl``, by no gate."""

    in_flight: int
    allowed: int
    waiting_retry: int
    gate_closed_s: float
    binding: Literal["requests", "concurrency", "gate", "input", "paused", "idle"]
    paused: bool = False
