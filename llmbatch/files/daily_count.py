"""--rpd N: the requests to one endpoint and key in any 24 hours, counted over all runs in a small locked file.

A request is counted before it is sent, so a kill loses none. Many a day are counted in blocks of a thousandth of
the limit: a file that is written for every one of 10,000 requests a minute would cost more than the count is worth.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from llmbatch.files.limit_group import account_name
from llmbatch.files.shared_file import OptionalFile
from llmbatch.rules.daily import counted, hour_of, returns_at

_BLOCKS_PER_DAY = 1000
# Nothing is free: another run may give some back, so look again, but not for every row.
_LOOK_AGAIN_S = 1.0
# Others have the lock: meanwhile go by what was last seen.
_LOCKED_S = 0.05
_ALONE = "only what this run sends is counted"


class DailyCount:
    """What is left of ``per_day`` requests. Times are Unix seconds. Used by the loop of one run.

    When the file can not be used, that is said once, and this run counts what it sends itself.
    """

    def __init__(self, file: OptionalFile, per_day: int) -> None:
        self._file = file
        self._per_day = per_day
        self._hours: dict[int, int] = {}  # as seen last, this run's blocks included
        self._hour = 0
        self._block = 0  # counted in ``_hour``, and not sent yet
        self._uncounted = 0  # sent while others had the lock
        self._look_at_s = 0.0  # the file is not looked into sooner

    @classmethod
    def open(
        cls, account: str, per_day: int, directory: Path | None, warn: Callable[[str], None], group: str | None = None
    ) -> DailyCount:
        """The count of the endpoint and key that ``account`` names, kept in the state directory (None: there is none).

        Runs of a ``group`` (--limit-group) have a count of their own.
        """
        file = OptionalFile(f"--rpd {per_day}", "the count", _ALONE, warn)
        file.open(directory, f"{group or ''}@{account_name(account)}.day")  # no name of a group has an @
        return cls(file, per_day)

    def left(self, now_unix_s: float) -> int:
        """How many may still be sent now; if it is not 0, the next ``take`` is within the limit."""
        self._have_one(now_unix_s)
        return self._block + max(0, self._per_day - sum(self._hours.values()) - self._uncounted)

    def take(self, now_unix_s: float) -> None:
        """Count one request, which is sent next."""
        self._have_one(now_unix_s)
        if self._block:
            self._block -= 1
        else:
            self._uncounted += 1

    def returns_at(self, now_unix_s: float) -> float:
        """The Unix time from which at least one is free."""
        return now_unix_s if self.left(now_unix_s) else returns_at(self._hours, self._per_day, now_unix_s)

    def close(self) -> None:
        """Give back what was counted and not sent. A second call does nothing."""
        if self._block or self._uncounted:
            self._give_back()
        self._file.close()

    def _have_one(self, now_unix_s: float) -> None:
        """Count a block of this hour beforehand, unless there is one, or none was free a moment ago."""
        hour = hour_of(now_unix_s)
        if hour != self._hour:
            if self._block:
                self._give_back()
            self._hour, self._look_at_s = hour, now_unix_s
        # A clock that was set back is no reason to wait for it.
        if self._block or 0 < self._look_at_s - now_unix_s <= _LOOK_AGAIN_S:
            return

        def edit(hours: dict[int, int]) -> None:
            free = max(0, self._per_day - sum(hours.values()))
            self._block = min(free, max(1, self._per_day // _BLOCKS_PER_DAY))
            hours[hour] = hours.get(hour, 0) + self._block

        if not self._edit(edit):
            self._look_at_s = now_unix_s + _LOCKED_S
        elif not self._block:
            self._look_at_s = now_unix_s + _LOOK_AGAIN_S

    def _give_back(self) -> None:
        """Of the hour for which it was counted. If others have the lock it stays counted: too many, never too few."""

        def edit(hours: dict[int, int]) -> None:
            hours[self._hour] = hours.get(self._hour, 0) - self._block

        self._edit(edit)
        self._block = 0

    def _edit(self, edit: Callable[[dict[int, int]], None]) -> bool:
        """Change the counts of all runs; False if others have the lock."""

        def changed(hours: dict[int, int]) -> None:
            self._hours = counted(hours, self._hour)
            self._hours[self._hour] = self._hours.get(self._hour, 0) + self._uncounted
            self._uncounted = 0
            edit(self._hours)

        def edited(content: bytes) -> bytes:
            hours = _load(content)
            if hours is None:
                self._file.say("its file held something else: the count begins anew")
            changed(hours or {})
            named = {str(hour): count for hour, count in sorted(self._hours.items())}
            return orjson.dumps({"llmbatch": 1, "hours": named}, option=orjson.OPT_APPEND_NEWLINE)

        if self._file.usable:
            done = self._file.change(edited)
            if done or self._file.usable:
                return done
        changed(self._hours)
        return True


def _load(content: bytes) -> dict[int, int] | None:
    """Requests by hour; None if that is no file of ours."""
    if not content:
        return {}
    try:
        data: Any = orjson.loads(content)
        if data["llmbatch"] != 1:
            return None
        return {int(hour): max(0, operator.index(count)) for hour, count in data["hours"].items()}
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
