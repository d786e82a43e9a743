"""What the provider remembers: what came in, what was billed, what was refused. The other side of a client's books."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Bill:
    """One answer that was produced, and is paid for even if it never arrives."""

    request_id: str
    dialect: str
    prompt_hash: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    fault: str | None


# Times are told for a day after the first request, so that they do not grow without end.
MOST_SECONDS = 86_400


class Times:
    """What happened in each second since the first request: requests let in and refused (429), answers, and tokens.

    ``tokens`` are those of the requests that were let in, prompt and answer together.
    """

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.counts: dict[str, list[int]] = {name: [] for name in ("accepted", "refused", "answered", "tokens")}

    def add(self, name: str, time_s: float, count: int = 1) -> None:
        """Count at the Unix time ``time_s``; if the clock was set back since, as of the first second."""
        if self.first_s is None:
            self.first_s = time_s
        second = max(0, int(time_s - self.first_s))
        counts = self.counts[name]
        if second < MOST_SECONDS:
            if second >= len(counts):
                counts.extend([0] * (second + 1 - len(counts)))
            counts[second] += count

    def snapshot(self) -> dict[str, Any]:
        """A list of each, all of one length; ``first_time_s`` is the Unix time at which they begin."""
        seconds = max(len(counts) for counts in self.counts.values())
        lists = {name: counts + [0] * (seconds - len(counts)) for name, counts in self.counts.items()}
        return {"first_time_s": self.first_s, **lists}


class Ledger:
    """Counters of one server. Owned by its event loop, or changed under a lock; nothing else may change it.

    ``received`` counts requests to models. ``rejected`` counts the error answers by status, ``faults`` the injected
    faults by kind. ``billed_by_prompt`` says how often each prompt (its `prompt_hash`) was paid for,
    ``unread_by_prompt`` how often of these the client left before it had read the answer to its end. ``in_flight``
    includes the ``queued``, which wait for a slot.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.received = 0
        self.billed = 0
        self.billed_prompt_tokens = 0
        self.billed_completion_tokens = 0
        self.rejected: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.in_flight = 0
        self.peak_in_flight = 0
        self.queued = 0
        self.peak_queued = 0
        self.times = Times()
        self.connections = 0
        self.peak_connections = 0
        self.billed_by_prompt: Counter[str] = Counter()
        self.unread_by_prompt: Counter[str] = Counter()
        self._fd = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def bill(self, bill: Bill, time_s: float) -> None:
        """Count an answer, and append its line with one unbuffered write: it survives whatever comes next."""
        self.billed += 1
        self.times.add("answered", time_s)
        self.billed_prompt_tokens += bill.prompt_tokens
        self.billed_completion_tokens += bill.completion_tokens
        self.billed_by_prompt[bill.prompt_hash] += 1
        if self._fd is not None:
            os.write(self._fd, orjson.dumps({"n": self.billed, "time_s": time_s, **asdict(bill)}) + b"\n")

    def unread(self, bill: Bill) -> None:
        """Count a billed answer that the client surely has not read to its end, through no fault of the server."""
        self.unread_by_prompt[bill.prompt_hash] += 1

    def work_began(self) -> None:
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def work_ended(self) -> None:
        self.in_flight -= 1

    def queue_joined(self) -> None:
        self.queued += 1
        self.peak_queued = max(self.peak_queued, self.queued)

    def queue_left(self) -> None:
        self.queued -= 1

    def connected(self) -> None:
        self.connections += 1
        self.peak_connections = max(self.peak_connections, self.connections)

    def disconnected(self) -> None:
        self.connections -= 1

    def snapshot(self, full: bool = False, times: bool = False) -> dict[str, Any]:
        """The counters as JSON; ``full`` adds every prompt that was billed or left unread, and how often.

        ``times`` adds what happened in each second since the first request.
        """
        counters: dict[str, Any] = {
            "received": self.received,
            "billed": self.billed,
            "billed_prompt_tokens": self.billed_prompt_tokens,
            "billed_completion_tokens": self.billed_completion_tokens,
            "billed_twice": self.billed - len(self.billed_by_prompt),
            "rejected": {str(status): count for status, count in sorted(self.rejected.items())},
            "faults": dict(self.faults),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "queued": self.queued,
            "peak_queued": self.peak_queued,
            "connections": self.connections,
            "peak_connections": self.peak_connections,
        }
        if full:
            counters["billed_by_prompt"] = dict(self.billed_by_prompt)
            counters["unread_by_prompt"] = dict(self.unread_by_prompt)
        if times:
            counters["times"] = self.times.snapshot()
        return counters

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
