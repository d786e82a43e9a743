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

    ``at_most_usd`` bounds what a try that may have been billed can have cost; None if nobody knows. ``hedged``: it was
    one of two that asked the same, and the other one counts.
    """

    failure: Failure
    retry_in_s: float | None
    reason: str = ""
    at_most_usd: float | None = None
    hedged: bool = False


@dataclass(frozen=True, slots=True)
class Hedged:
    """A slow request was sent a second time, and that one has come to its end; ``won`` if its answer was the first."""

    won: bool


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
class DayUsedUp:
    """All requests of the day are used, of every endpoint and key; one may go again at this Unix time."""

    returns_unix_s: float


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
    | Hedged
    | GateClosed
    | DayUsedUp
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


Binding = Literal[
    "requests",
    "day",
    "tokens",
    "input_tokens",
    "output_tokens",
    "concurrency",
    "server",
    "retries",
    "provider",
    "input",
    "disk",
    "hooks",
    "cpu",
    "tenant",
    "paused",
    "tail",
    "idle",
]
"""What holds up a run (rules/bottleneck.py).

The limits of requests and tokens per minute (``day``: of requests per day), the window, or the server that answers no
faster with a larger one; rows that rest before another try; a pause that the provider asks for; rows that are not read
yet, or not written; the user's functions; this machine's CPU; the limits of tenants; a pause of the user's. ``tail``:
nothing is left to send, and the last answers are waited for. ``idle``: nothing is under way.
"""


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a run at one moment, for the progress display; ``binding`` is what held it up lately.

    ``at_hand`` rows were read and not yet sent. ``paused`` by ``llmbatch ctl``, by no gate.
    """

    in_flight: int
    allowed: int
    waiting_retry: int
    gate_closed_s: float
    binding: Binding
    at_hand: int = 0
    paused: bool = False
