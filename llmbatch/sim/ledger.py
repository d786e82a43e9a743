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


class Ledger:
    """Counters of one server. Owned by its event loop, or changed under a lock; nothing else may change it.

    ``received`` counts requests to models. ``rejected`` counts the error answers by status, ``faults`` the injected
    faults by kind. ``billed_by_prompt`` says how often each prompt (its `prompt_hash`) was paid for,
    ``unread_by_prompt`` how often of these the client left before it had read the answer to its end.
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
        self.connections = 0
        self.peak_connections = 0
        self.billed_by_prompt: Counter[str] = Counter()
        self.unread_by_prompt: Counter[str] = Counter()
        self._fd = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def bill(self, bill: Bill, time_s: float) -> None:
        """Count an answer, and append its line with one unbuffered write: it survives whatever comes next."""
        self.billed += 1
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

    def connected(self) -> None:
        self.connections += 1
        self.peak_connections = max(self.peak_connections, self.connections)

    def disconnected(self) -> None:
        self.connections -= 1

    def snapshot(self, full: bool = False) -> dict[str, Any]:
        """The counters as JSON; ``full`` adds every prompt that was billed or left unread, and how often."""
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
            "connections": self.connections,
            "peak_connections": self.peak_connections,
        }
        if not full:
            return counters
        prompts = {"billed_by_prompt": dict(self.billed_by_prompt), "unread_by_prompt": dict(self.unread_by_prompt)}
        return counters | prompts

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
