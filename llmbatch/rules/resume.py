"""What is left to do, what must be refused, and why: this input against the lines of an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple

OnChange = Literal["refuse", "rerun", "keep"]


class Verdict(Enum):
    """What happens to one row. Only DO, RERUN_FAILED and CHANGED_RERUN send anything."""

    DO = "do"
    SKIP_OK = "skip_ok"
    RERUN_FAILED = "rerun_failed"
    CHANGED_REFUSE = "changed_refuse"
    CHANGED_RERUN = "changed_rerun"
    CHANGED_KEEP = "changed_keep"
    MOVED = "moved"


_ON_CHANGE = {
    "refuse": Verdict.CHANGED_REFUSE,
    "rerun": Verdict.CHANGED_RERUN,
    "keep": Verdict.CHANGED_KEEP,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with its reason. ``reappend``: append the old line again with this row's number, so seal finds it."""

    verdict: Verdict
    reason: str
    reappend: bool = False


def decide(
    recorded: Mapping[str, Any] | None, *, row: int, key: str | None, on_change: OnChange, holds_number: bool = True
) -> Decision:
    """One row against its line of an earlier run (None if it has none).

    ``key`` is the fingerprint of what the row asks now, None if it does not render. ``holds_number`` is False when a
    later line of another row took the recorded row number (rows were reordered more than once).
    """
    if recorded is None:
        return Decision(Verdict.DO, "new")
    if recorded["status"] == "error":
        return Decision(Verdict.RERUN_FAILED, "failed before")
    moved = recorded["row"] != row or not holds_number
    if recorded["key"] != key:
        verdict = _ON_CHANGE[on_change]
        return Decision(verdict, "asks something else than before", moved and verdict is Verdict.CHANGED_KEEP)
    if moved:
        return Decision(Verdict.MOVED, f"was row {recorded['row']}, is row {row}", True)
    return Decision(Verdict.SKIP_OK, "done before")


class Settled(NamedTuple):
    """Which of two lines of one row stands, and whether the same request was paid for twice."""

    later_wins: bool
    paid_twice: bool = False


_OF_THE_COPY = {"row": 0, "crc": ""}  # what differs between a line and its copy for another row number


def settle(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Settled:
    """Another request: the later line. The same request: the first ok line, except for its copy with a new number."""
    if earlier["key"] != later["key"] or earlier["status"] == "error":
        return Settled(later_wins=True)
    if later["status"] == "error":
        return Settled(later_wins=False)
    if {**earlier, **_OF_THE_COPY} == {**later, **_OF_THE_COPY}:
        return Settled(later_wins=True)
    return Settled(later_wins=False, paid_twice=True)


@dataclass(slots=True)
class ResumePlan:
    """The sums over all rows' decisions. Changed by one loop, through ``count``."""

    verdicts: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))
    first_changed_row: int | None = None
    changed_have_ids: bool = False

    def count(self, decision: Decision, *, row: int, has_id: bool) -> None:
        self.verdicts[decision.verdict] += 1
        if decision.verdict is Verdict.CHANGED_REFUSE or decision.verdict is Verdict.CHANGED_RERUN:
            self.first_changed_row = min(row, self.first_changed_row or row)
            self.changed_have_ids |= has_id

    @property
    def done(self) -> int:
        """Rows that keep the answer they have."""
        return self._sum(Verdict.SKIP_OK, Verdict.MOVED, Verdict.CHANGED_KEEP)

    @property
    def failed_again(self) -> int:
        return self.verdicts[Verdict.RERUN_FAILED]

    @property
    def new(self) -> int:
        return self.verdicts[Verdict.DO]

    @property
    def changed(self) -> int:
        return self._sum(Verdict.CHANGED_REFUSE, Verdict.CHANGED_RERUN, Verdict.CHANGED_KEEP)

    @property
    def refused(self) -> int:
        """Finished rows that now ask something else, and nobody said what is meant."""
        return self.verdicts[Verdict.CHANGED_REFUSE]

    @property
    def to_send(self) -> int:
        return self._sum(Verdict.DO, Verdict.RERUN_FAILED, Verdict.CHANGED_RERUN)

    def no_longer_in_input(self, recorded: int) -> int:
        """How many of the ``recorded`` rows of earlier runs the input does not have any more."""
        return max(0, recorded - sum(self.verdicts.values()) + self.new)

    def _sum(self, *verdicts: Verdict) -> int:
        return sum(self.verdicts[verdict] for verdict in verdicts)

    def sentences(self, recorded: int) -> list[str]:
        """What the user should know before anything is sent; ``recorded`` is the number of rows with a line."""
        gone = self.no_longer_in_input(recorded)
        facts = (
            (self.done, "done before, not sent again"),
            (self.failed_again, "failed before, sent again"),
            (self.verdicts[Verdict.MOVED], "moved to another row number, not sent again"),
            (self.verdicts[Verdict.CHANGED_RERUN], "changed, sent again"),
            (self.verdicts[Verdict.CHANGED_KEEP], "changed, old answers kept"),
            (gone, "no longer in the input, results kept"),
        )
        return [f"{rows(number)} {text}" for number, text in facts if number]

    def refusal(self, differences: Iterable[str] = (), cost_usd: float | None = None) -> str:
        """Why nothing is sent when finished rows changed, and the two ways on."""
        price = "" if cost_usd is None else f" (about ${cost_usd:,.2f} to run again)"
        why = [f"{rows(self.verdicts[Verdict.CHANGED_REFUSE]).replace('row', 'finished row', 1)} changed{price}"]
        if not self.changed_have_ids:
            why.append(f"input has no ids and changed; rows {self.first_changed_row}.. differ")
        return "; ".join(
            [*why, *differences, "--on-change rerun sends them again, --on-change keep keeps the old answers"]
        )


def rows(number: int) -> str:
    return f"{number:,} row" if number == 1 else f"{number:,} rows"


_NAMED = ("provider", "model", "api", "endpoint", "before")
_HASHED = {
    "template_hash": "template changed",
    "system_hash": "system prompt changed",
    "schema_hash": "schema changed",
}


def manifest_differences(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> list[str]:
    """What the user changed between two starts, one phrase each; nothing if the old manifest is not known."""
    if old is None:
        return []
    named = [f"{name}: {old.get(name)} -> {new.get(name)}" for name in _NAMED if old.get(name) != new.get(name)]
    hashed = [text for name, text in _HASHED.items() if old.get(name) != new.get(name)]
    tasks = ["tasks changed"] if old.get("tasks") != new.get("tasks") else []
    params = _params(old.get("params") or {}, new.get("params") or {})
    return [*named, *_generation(old, new), *hashed, *tasks, *params, *_input(old, new)]


def _generation(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, now = old.get("generation", 0), new.get("generation", 0)
    return [] if before == now else [f"generation: {before} -> {now}"]


def _params(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = sorted({*old, *new})
    return [
        f"{name}: {old.get(name, 'not set')} -> {new.get(name, 'not set')}"
        for name in names
        if (name in old, old.get(name)) != (name in new, new.get(name))
    ]


def _input(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, now = old.get("input") or {}, new.get("input") or {}
    if before.get("path") != now.get("path"):
        return [f"input: {before.get('path')} -> {now.get('path')}"]
    same = all(before.get(name) == now.get(name) for name in ("size", "mtime"))
    return [] if same else ["input file changed"]
