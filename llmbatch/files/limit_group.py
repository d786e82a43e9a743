"""--limit-group NAME: the runs of one user on one machine share their limits per minute through a small locked file.

The file holds for each limit how far it is leased (rules/lease.py), on the monotonic clock, which all processes of a
machine share until it is started again. A run looks into it some twenty times a second, not for every request. When
it can not be used, the run says so once and keeps to the whole limit by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from llmbatch.files.shared_file import OptionalFile
from llmbatch.options import check_limit_group
from llmbatch.rules.lease import Lease
from llmbatch.rules.pace import Kind, unit_s

_SUFFIX = ".group"
# A limit that has been idle for so long is forgotten; one that is leased so far ahead makes no sense.
_FORGET_S = 60.0
_MOST_AHEAD_S = 3600.0
# While another process has the lock: soon again, but not for ever, as it may have been stopped with it.
_SOON_S = 0.005
_PATIENCE_S = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def account_name(account: str) -> str:
    """What stands in files for an endpoint and its key: nothing can be read from it."""
    return sha256(account.encode()).hexdigest()[:32]


class LimitGroup:
    """The shared limits of one group. Used by the loop of one run; ``close`` gives back what is leased and not used."""

    def __init__(self, file: OptionalFile, clock: Callable[[], float]) -> None:
        self._file = file
        self.clock = clock
        self._boot = _boot_id()
        self._meters: dict[str, GroupMeter] = {}
        self._own_tails_s: dict[str, float] = {}  # of the limits that are kept to alone
        self._busy_since_s: float | None = None
        self._not_before_s = 0.0  # the lock is not tried sooner
        self._alone_until_s = 0.0

    @classmethod
    def open(
        cls,
        name: str,
        directory: Path | None,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> LimitGroup:
        """The group of that name in the state directory; None is the one of a user without a home.

        Raises OptionsError for a name that is none. A file that can not be used is only warned of.
        """
        check_limit_group(name)
        file = OptionalFile(f"--limit-group {name}", "its file", _ALONE, warn)
        file.open(directory, name + _SUFFIX)
        return cls(file, clock)

    def meter(self, account: str, kind: Kind, per_minute: float) -> GroupMeter:
        """The limit of one endpoint and key, which ``account`` names. Asked again, it is the same meter."""
        key = f"{account_name(account)}.{kind}"
        if key in self._meters:
            self._meters[key].change(per_minute)
        else:
            self._meters[key] = GroupMeter(self, key, kind, per_minute)
        return self._meters[key]

    def renew(self, key: str, lease: Lease, cost_s: float) -> float:
        """Lease more; 0 when that is done, else the seconds after which it may be tried again."""
        now_s = self.clock()
        if not self._file.usable or now_s < self._alone_until_s:
            self._renew_alone(key, lease, now_s, cost_s)
            return 0.0
        if now_s < self._not_before_s:
            return self._not_before_s - now_s

        def edit(tails_s: dict[str, float]) -> None:
            tail_s = max(tails_s.get(key, now_s - _FORGET_S), self._own_tails_s.pop(key, 0.0))
            tails_s[key] = lease.renew(tail_s, now_s, cost_s)

        if self._edit(edit, now_s):
            self._busy_since_s = None
            return 0.0
        if self._file.usable and self._is_worth_waiting(now_s):
            self._not_before_s = now_s + _SOON_S
            return _SOON_S
        self._renew_alone(key, lease, now_s, cost_s)
        return 0.0

    def close(self) -> None:
        """Give back what is left. A second call does nothing."""
        if not self._file.usable:
            return
        now_s = self.clock()

        def edit(tails_s: dict[str, float]) -> None:
            for key in self._meters.keys() & tails_s.keys():
                tails_s[key] = self._meters[key].leave(tails_s[key], now_s)

        self._edit(edit, now_s)
        self._file.close()

    def _is_worth_waiting(self, now_s: float) -> bool:
        """Whether others hold the lock only for a moment; else they are left alone with it for a while."""
        if self._busy_since_s is None:
            self._busy_since_s = now_s
        if now_s - self._busy_since_s < _PATIENCE_S:
            return True
        self._alone_until_s = now_s + _PATIENCE_S
        self._file.say(f"another process does not let go of its file; until it does, {_ALONE}")
        return False

    def _renew_alone(self, key: str, lease: Lease, now_s: float, cost_s: float) -> None:
        self._own_tails_s[key] = lease.renew(self._own_tails_s.get(key, lease.end_s), now_s, cost_s)

    def _edit(self, edit: Callable[[dict[str, float]], None], now_s: float) -> bool:
        """False if the lock was not had, or the file can not be used; ``edit`` was not called then."""

        def edited(content: bytes) -> bytes:
            tails_s = _load(content, self._boot, now_s)
            if tails_s is None:
                self._file.say("its file held something else, and was written anew")
            fresh = {} if tails_s is None else tails_s
            edit(fresh)
            return orjson.dumps({"llmbatch": 1, "boot": self._boot, "tails_s": fresh}, option=orjson.OPT_APPEND_NEWLINE)

        return self._file.change(edited)


_ALONE = "this run keeps to the whole limit by itself, and other runs do not see what it uses"


class GroupMeter:
    """One limit per minute that several processes share: the Meter of rules/pace.py.

    ``wait_s`` may lease, and what was leased and is not taken within 50 ms of its time is lost for all: ask only when
    nothing else holds the request up. The times that are handed in are of the run's own clock; what is shared is on
    the group's, which is read at each call: seconds to wait are the same on both.
    """

    def __init__(self, group: LimitGroup, key: str, kind: Kind, per_minute: float) -> None:
        self._group = group
        self._key = key
        self._kind: Kind = kind
        self._lease = Lease(exact=kind == "requests")
        self.change(per_minute)

    def change(self, per_minute: float) -> None:
        """Another limit from here on."""
        self.per_minute = per_minute
        self._unit_s = unit_s(self._kind, per_minute)

    def wait_s(self, now_s: float, amount: float = 1.0) -> float:
        """Seconds until so much may go; 0 if it may go now."""
        cost_s = amount * self._unit_s
        if cost_s <= 0:
            return 0.0
        wait_s = self._lease.wait_s(self._group.clock(), cost_s)
        if wait_s is not None:
            return wait_s
        return (
            self._group.renew(self._key, self._lease, cost_s) or self._lease.wait_s(self._group.clock(), cost_s) or 0.0
        )

    def take(self, now_s: float, amount: float = 1.0) -> None:
        """Count what goes at ``now_s``. Call it only when ``wait_s`` was 0."""
        self._lease.take(self._group.clock(), amount * self._unit_s)

    def settle(self, now_s: float, difference: float) -> None:
        """So much more than was taken was really used, or less if it is negative: the next lease evens it out."""
        self._lease.settle(difference * self._unit_s)

    def leave(self, tail_s: float, now_s: float) -> float:
        """For the group: the shared tail without this process."""
        return self._lease.leave(tail_s, now_s)


def _boot_id() -> str:
    """Of this start of the machine (random(4)); empty where the system has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _load(content: bytes, boot: str, now_s: float) -> dict[str, float] | None:
    """What is leased of each limit; nothing of it after a new start of the machine. None if that is no file of ours."""
    if not content:
        return {}
    try:
        data: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, dict) or data.get("llmbatch") != 1 or not isinstance(data.get("tails_s"), dict):
        return None
    tails_s = data["tails_s"]
    if not all(isinstance(tail_s, float | int) for tail_s in tails_s.values()):
        return None
    if data.get("boot") != boot:
        return {}
    return {key: tail_s for key, tail_s in tails_s.items() if -_FORGET_S < tail_s - now_s < _MOST_AHEAD_S}
