"""Error answers in no dialect, and the faults that can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


class ApiError(Exception):
    """A request that gets an error answer: its HTTP status, and the JSON document that says why.

    ``wait_s`` is the time after which it would be let in, where that is known. A document with a ``request_id`` gets
    the one of the request it answers.
    """

    def __init__(self, status: int, document: dict[str, Any], wait_s: float | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.document = document
        self.wait_s = wait_s

    def body(self, request_id: str) -> bytes:
        if "request_id" in self.document:
            return orjson.dumps({**self.document, "request_id": request_id})
        return orjson.dumps(self.document)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, when, and what it costs.

    ``error``: the vendor's error answer of that name. ``late``: only after the time the answer would have taken.
    ``billed``: the answer was produced, but is lost or spoilt on its way.
    """

    late: bool = False
    billed: bool = False
    error: bool = False


FAULTS: dict[str, Fault] = {
    "429": Fault(error=True),
    "500": Fault(error=True, late=True),
    "502": Fault(late=True),
    "503": Fault(error=True),
    "529": Fault(error=True),
    "400": Fault(error=True),
    "401": Fault(error=True),
    "404": Fault(error=True),
    "quota": Fault(error=True),
    "context": Fault(error=True),
    "reset-before": Fault(),
    "reset-after": Fault(late=True, billed=True),
    "stall": Fault(),
    "truncate": Fault(late=True, billed=True),
    "html": Fault(late=True),
    "empty": Fault(late=True, billed=True),
    "error200": Fault(late=True),
    "garbage-json": Fault(late=True, billed=True),
}
"""Every kind of fault. What each vendor's error says stands in its ``errors``; 502 and html are what a gateway says."""
