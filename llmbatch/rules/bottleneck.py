"""What binds now? Told from where rows wait at one moment, and summed up by time.

A row waits in one of few places: for its turn to be sent (the window, a pace, the gate), for its answer, for a hook,
for the disk, or to be read at all. The place that most of them are in is what holds up the run, unless the event loop
itself has no time left: then everything waits for this machine, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmbatch.events import Binding

WaitsFor = Literal["window", "requests", "day", "tokens", "input_tokens", "output_tokens", "tenant", "gate", "paused"]
"""What the first of the rows in a queue before the wire waits for. ``day`` is the limit per day, ``gate`` the
provider's pause or the ramp after it, ``paused`` the user's pause."""

WindowKind = Literal["fixed", "auto", "max_concurrency", "descriptors", "server"]
"""What keeps the window from being larger: the number that the user gave; nothing but what is known so far; the user's
cap; the open files of this machine; a throughput that no longer grows with it."""

# A loop that computes this much of the time has none left for more answers.
BUSY_SHARE = 0.9
# What waits this long for the loop waits for it more than for anything near.
LATE_S = 0.05
# So late is no busy loop: the process was stopped or the machine stood still (calls/deadlines.py says the same).
STANDSTILL_S = 5.0
# A process that stood still computed for less of that time.
AWAKE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Moment:
    """Where rows wait now. The numbers of rows are those under way: together at most ``allowed`` hold a place.

    ``waits_for`` is None if no row waits in a queue before the wire. Of the rows that hold a place ``in_flight`` wait
    for the server, ``writing`` for the output to take their answer, ``in_hooks`` for the user's functions, ``loading``
    for images. ``resting`` ones hold none: they are between two tries, or make room for others while the provider
    asks for a pause (``gate_closed``). ``waits_for_input``: a place is free, and no row is at hand;
    ``waits_for_output``: the output is so far behind that none is read. ``exhausted``: no further row will be taken.
    ``cpu_share`` is the share of the time since the last look in which the loop's thread ran or waited for a core,
    ``late_s`` how late this look came.
    """

    waits_for: WaitsFor | None = None
    in_flight: int = 0
    allowed: int = 0
    window: WindowKind = "fixed"
    writing: int = 0
    in_hooks: int = 0
    loading: int = 0
    resting: int = 0
    gate_closed: bool = False
    waits_for_input: bool = False
    waits_for_output: bool = False
    exhausted: bool = False
    cpu_share: float = 0.0
    late_s: float = 0.0


_WAITS: Mapping[WaitsFor | None, Binding] = {
    "requests": "requests",
    "day": "day",
    "tokens": "tokens",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "tenant": "tenant",
    "gate": "provider",
}


def binding(moment: Moment) -> Binding:
    """What holds up the run at this moment."""
    if moment.waits_for == "paused" or (moment.late_s >= STANDSTILL_S and moment.cpu_share < AWAKE_SHARE):
        return "paused"
    if moment.cpu_share >= BUSY_SHARE:
        return "cpu"  # also where a pace holds rows up: without it there would be no time for more of them
    if moment.waits_for in _WAITS:
        return _WAITS[moment.waits_for]
    if moment.late_s >= LATE_S:
        return "cpu"
    by_window: Binding = "server" if moment.window == "server" else "concurrency"
    full = _under_way(moment) >= max(moment.allowed, 1) and not moment.exhausted
    if full or moment.waits_for == "window":
        return _where_most_are(moment, by_window)
    if moment.waits_for_output:
        return "disk"
    if moment.waits_for_input:
        return "input"
    if moment.resting:
        return "provider" if moment.gate_closed else "retries"
    if not _under_way(moment):
        return "idle"
    return _where_most_are(moment, "tail" if moment.exhausted else by_window)


def _under_way(moment: Moment) -> int:
    return moment.in_flight + moment.writing + moment.in_hooks + moment.loading


def _where_most_are(moment: Moment, in_flight: Binding) -> Binding:
    """The place that most rows under way are in; of equal ones the first here."""
    places: tuple[tuple[int, Binding], ...] = (
        (moment.in_flight, in_flight),
        (
            moment.writing,
            "disk",
        ),  # before the hooks: a row that a hook has done with counts in both until it is written
        (moment.in_hooks, "hooks"),
        (moment.loading, "input"),
    )
    return max(places, key=lambda place: place[0])[1]


def window_kind(
    *, concurrency: int | None, max_concurrency: int | None, descriptors: int, size: int, grows: bool
) -> WindowKind:
    """What keeps a window of ``size`` from being larger.

    The first two are the user's numbers, ``descriptors`` how many connections this machine allows; ``grows`` is False
    once the window has met the throughput that more in flight does not raise.
    """
    if size >= descriptors:
        return "descriptors"
    if concurrency is not None:
        return "fixed"
    if max_concurrency is not None and size >= max_concurrency:
        return "max_concurrency"
    return "auto" if grows else "server"


class Shares:
    """Seconds by what bound in them. Owned by one sampler."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: dict[Binding, float] = {}

    def add(self, binding: Binding, seconds: float) -> None:
        """``seconds`` more in which ``binding`` held."""
        self._seconds[binding] = self.seconds(binding) + seconds

    def seconds(self, binding: Binding) -> float:
        """How long ``binding`` held."""
        return self._seconds.get(binding, 0.0)

    @property
    def total_s(self) -> float:
        return sum(self._seconds.values())

    def by_share(self, leave_out: Binding | None = None) -> dict[str, float]:
        """Shares of the whole time, or of that without ``leave_out``, the largest first; together 1, or none at all."""
        total_s = self.total_s - (0.0 if leave_out is None else self.seconds(leave_out))
        largest_first = sorted(self._seconds.items(), key=lambda item: -item[1])
        return {name: s / total_s for name, s in largest_first if s > 0 and name != leave_out}
