"""A lane: one endpoint, key and model, with all that is known of its limits and all that is under way there."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

from llmbatch.events import Binding, Status
from llmbatch.records import Attempt, Call, Failure, Usage
from llmbatch.rules.finder import RateFinder
from llmbatch.rules.gate import Gate
from llmbatch.rules.learnt import learn
from llmbatch.rules.limits import Limits
from llmbatch.rules.pace import KINDS, MINUTE_S, NO_TOKENS, Cost, Kind, Meters, Pace
from llmbatch.rules.token_estimate import TokenEstimate, used
from llmbatch.rules.window import FixedWindow, Window

Cause = Literal["window", "gate", "day"] | Kind
"""What a request waits for."""

_BINDINGS: Mapping[Cause, Binding] = {"window": "concurrency", "gate": "provider"}
# Overloaded, as opposed to asked too often: fewer at once help.
OVERLOADED = (503, 529)
# Of the last requests so many refused, or more: the server refuses everybody, and one probe at a time asks it.
LAST, STORM_LEAST, STORM_SHARE = 8, 4, 0.75
# After a pause of so long any limit of a minute lets something in. Who asked for it and refuses the first request after
# it refuses everybody, too.
LONG_PAUSE_S = 5.0
# Fewer of them than so many in so many good answers are noise.
TOGETHER, AMONG = 3, 40
# Failures in a row of one endpoint, while there are others: it is set aside.
SET_ASIDE = 5
# The average latency is over about this many of the last answers.
MEMORY = 32
# The rate that the window goes by is looked at so often.
LOOK_S = 0.25


class Daily(Protocol):
    """Requests of a day, counted over runs."""

    def left(self, now_unix_s: float) -> int:
        """How many may still go."""
        ...

    def take(self, now_unix_s: float) -> None:
        """Count one, before it goes."""
        ...

    def returns_at(self, now_unix_s: float) -> float:
        """The Unix time at which one may go again."""
        ...


@dataclass(slots=True)
class Account:
    """One endpoint and key. ``meters`` are the limits that the user names for it, ``daily`` those of a day.

    ``name`` is for people, ``id`` names it between runs. ``dead`` is the failure for which it is not asked any more;
    there are others then.
    """

    name: str
    call: Call
    meters: Meters = field(default_factory=Meters)
    daily: Daily | None = None
    id: str = ""
    dead: Failure | None = None


class Admission:
    """One request that was let in. ``closings`` is how often the gate had closed by then.

    ``first_again``: it is the first after a long pause that the server asked for.
    """

    __slots__ = ("closings", "cost", "first_again", "lane", "refused")

    def __init__(self, lane: Lane, closings: int, cost: Cost, *, first_again: bool) -> None:
        self.lane = lane
        self.closings = closings
        self.cost = cost
        self.first_again = first_again
        self.refused = False


class Lane:
    """Says whether a request may go, and hears how each one ended. Owned by the limiter; times are of the run's clock.

    The account's meters are shared with its lanes for other models; the window, the gate and what is learnt are not.
    """

    def __init__(self, account: Account, model: str, window: Window, now_s: float) -> None:
        self.account = account
        self.model = model
        self.window = window
        self.gate = Gate()
        self.learnt = Meters()
        self.finder = RateFinder(now_s)
        self.in_flight = 0
        self.latency_s: float | None = None
        self._found = Pace(1.0)
        self._learnt_as_of_s = -math.inf
        self._answers = 0
        self._without_model: Failure | None = None
        self._overloads: deque[int] = deque(maxlen=TOGETHER)  # at which of the good answers
        self._old = 0  # in flight since before the gate last closed
        self._last: deque[Admission] = deque(maxlen=LAST)
        self._bad_in_a_row = 0
        self._pausing = False
        self._looked_s = -math.inf

    @property
    def dead(self) -> Failure | None:
        """Why it is not asked any more."""
        return self.account.dead or self._without_model

    def lose(self, failure: Failure) -> str:
        """Ask it no more for this model, if that is not there, else for none. Gives the name of what is lost."""
        if failure.of_model:
            self._without_model = failure
            return f"{self.account.name} for {self.model}" if self.model else self.account.name
        self.account.dead = failure
        return self.account.name

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters how large a request is."""
        return self.account.meters.counts_tokens or self.learnt.counts_tokens

    def allowed(self, now_s: float) -> int:
        """How many may be in flight now."""
        return self.gate.allowed(self.window.size, self._old, now_s)

    def limit(self, kind: Kind, now_s: float) -> tuple[float, bool] | None:
        """The lowest limit per minute of this kind that is known, and whether it is the user's own."""
        known = [(meter.per_minute, True) for name, meter in self.account.meters if name == kind]
        known += [(meter.per_minute, False) for name, meter in self.learnt if name == kind]
        if kind == "requests" and (found := self.finder.per_s(now_s)) is not None:
            known.append((found * MINUTE_S, False))
        return min(known, key=lambda limit: limit[0], default=None)

    def status(self, now_s: float) -> Status:
        """What the display shows of it."""
        cause = self.blocked(now_s, NO_TOKENS)[1]
        binding: Binding = "idle" if cause is None else _BINDINGS.get(cause) or cast(Binding, cause)
        return Status(self.in_flight, self.allowed(now_s), 0, self.gate.wait_s(now_s), binding)

    def load(self, usual_s: float) -> float:
        """How long a request that goes there now may take, by what is under way and how long answers took."""
        return (self.in_flight + 1) * (usual_s if self.latency_s is None else self.latency_s)

    def blocked(self, now_s: float, cost: Cost) -> tuple[float, Cause | None]:
        """How long nothing may be sent, and why; infinite while only an answer can free a place."""
        gate = self.gate
        if gate.ramp is not None:
            if self.in_flight >= self.allowed(now_s):
                return gate.widens_s(self.window.size, self._old, self.in_flight, now_s), "gate"
        elif self.in_flight >= self.window.size:
            return math.inf, "window"
        longest: tuple[float, Cause | None] = _NOT_BLOCKED
        if self.account.meters.kinds:
            longest = self.account.meters.wait(now_s, cost)
        if self.learnt.kinds:
            longest = max(longest, self.learnt.wait(now_s, cost), key=_seconds)
        if self.finder.found:
            self._repace(now_s)
            longest = max(longest, (self._found.wait_s(now_s), "requests"), key=_seconds)
        if gate.closed_until_s - now_s > longest[0]:
            longest = (gate.wait_s(now_s), "gate")
        return longest

    def has_slack(self, now_s: float, share: float) -> bool:
        """Whether nothing is near: no gate, no pace, and no more than a ``share`` of a learnt window in flight."""
        wait_s, cause = self.blocked(now_s, NO_TOKENS)
        if self.gate.ramp is not None or self.finder.found or (wait_s > 0 and cause != "window"):
            return False
        return isinstance(self.window, FixedWindow) or self.in_flight < share * self.window.size

    def admit(self, now_s: float, cost: Cost) -> Admission:
        """Take a place and what it costs. Call it only when nothing was in the way."""
        admission = Admission(self, self.gate.closings, cost, first_again=self._pausing)
        self._pausing = False
        self.in_flight += 1
        if self.account.meters.kinds:
            self.account.meters.take(now_s, cost)
        if self.learnt.kinds:
            self.learnt.take(now_s, cost)
        if self.finder.found:
            self._found.take(now_s)
        self.finder.sent(now_s)
        self._last.append(admission)
        return admission

    def leave(self, admission: Admission) -> None:
        """Give back the place."""
        self.in_flight -= 1
        if admission.closings != self.gate.closings:
            self._old -= 1

    def answered(
        self, now_s: float, admission: Admission, attempt: Attempt, usage: Usage, estimate: TokenEstimate
    ) -> None:
        """A good answer came."""
        self._answers += 1
        self._bad_in_a_row = 0
        weight = max(1.0 / self._answers, 1.0 / MEMORY)
        before_s = attempt.latency_s if self.latency_s is None else self.latency_s
        self.latency_s = before_s + weight * (attempt.latency_s - before_s)
        if admission.cost is not NO_TOKENS:
            self._settle(now_s, admission, used(usage, admission.cost))
        if attempt.limits is not None:
            self._told(now_s, attempt.sent_s, attempt.limits)
        if self.finder.found:
            self.finder.answered(attempt.sent_s)
        if now_s >= self._looked_s + LOOK_S:
            self._looked_s = now_s
            self.window.paced(self._rate_per_s(now_s, estimate))
        self.window.answered(now_s, attempt.sent_s, usage.output_tokens, self.in_flight)
        if self.gate.ramp is not None:
            self.gate.answered(now_s, attempt.sent_s, self.window.size)

    def failed(
        self,
        now_s: float,
        admission: Admission,
        attempt: Attempt,
        failure: Failure,
        chance: float,
        estimate: TokenEstimate,
    ) -> None:
        """A try failed; ``chance`` is uniform in [0, 1)."""
        self._bad_in_a_row += 1
        if not failure.maybe_billed and admission.cost is not NO_TOKENS:
            self._settle(now_s, admission, NO_TOKENS)
        if attempt.limits is not None:
            self._told(now_s, attempt.sent_s, attempt.limits)
        if failure.http_status in OVERLOADED and self._is_overload():
            self.window.refused(now_s, attempt.sent_s, self.in_flight)
        if failure.rate_limited:
            admission.refused = True
            self._pausing = (failure.retry_after_s or 0.0) >= LONG_PAUSE_S
            before_pause = admission.closings != self.gate.closings
            storm = admission.first_again or before_pause or self._storm()
            pause_s = None if storm else self.finder.refused(now_s, self._rate_per_s(now_s, estimate))
            if pause_s is not None:
                self.gate.hold(now_s + (failure.retry_after_s or pause_s))
                return
            if storm:
                self.finder.storm()
        if failure.concerns_all or failure.retry_after_s is not None:
            self._close(now_s, attempt.sent_s, failure.retry_after_s, chance)

    def spent(self, now_s: float, sent_s: float, pause_s: float) -> bool:
        """No retry can be paid any more. True if that closed the gate anew."""
        if not self.gate.spent(now_s, sent_s, pause_s):
            return False
        self._old = self.in_flight
        return True

    def set_aside(self, now_s: float, sent_s: float, chance: float) -> bool:
        """Whether it has failed so often in a row that others are asked instead; its gate closes, and it is probed."""
        if self._bad_in_a_row < SET_ASIDE:
            return False
        self._close(now_s, sent_s, None, chance)
        return True

    def _close(self, now_s: float, sent_s: float, retry_after_s: float | None, chance: float) -> None:
        closings = self.gate.closings
        self.gate.limited(now_s, sent_s, retry_after_s, chance)
        if self.gate.closings != closings:
            self._old = self.in_flight

    def _is_overload(self) -> bool:
        """Whether one more that says so is to be believed: some servers do now and then, whatever they have to do."""
        self._overloads.append(self._answers)
        return len(self._overloads) == TOGETHER and self._answers - self._overloads[0] < AMONG

    def _storm(self) -> bool:
        """Whether nearly all of the last requests were refused: no matter of the rate then."""
        refused = sum(one.refused for one in self._last)
        return len(self._last) >= STORM_LEAST and refused >= STORM_SHARE * len(self._last)

    def _settle(self, now_s: float, admission: Admission, truth: Cost) -> None:
        self.account.meters.settle(now_s, admission.cost, truth)
        self.learnt.settle(now_s, admission.cost, truth)

    def _told(self, now_s: float, sent_s: float, limits: Limits) -> None:
        """Only the latest word counts: answers overtake each other."""
        if sent_s >= self._learnt_as_of_s:
            self._learnt_as_of_s = sent_s
            learn(self.learnt, limits, now_s)

    def _repace(self, now_s: float) -> None:
        per_s = self.finder.per_s(now_s)
        if per_s is not None and per_s * MINUTE_S != self._found.per_minute:
            self._found.change(per_s * MINUTE_S)

    def _rate_per_s(self, now_s: float, estimate: TokenEstimate) -> float | None:
        """Requests per second that all limits together allow; None if none is known."""
        known = ((kind, self.limit(kind, now_s)) for kind in KINDS)
        rates = (limit[0] / MINUTE_S / max(estimate.mean.of(kind), 1.0) for kind, limit in known if limit is not None)
        return min(rates, default=None)


_NOT_BLOCKED = (0.0, None)


def _seconds(wait: tuple[float, object]) -> float:
    return wait[0]
