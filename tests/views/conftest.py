from collections.abc import Callable
from typing import Any

import pytest

from llmbatch.events import Status
from llmbatch.summary import Snapshot, Tokens

STATUS = Status(in_flight=38, allowed=40, waiting_retry=3, gate_closed_s=0.0, binding="requests")
BUSY = {
    "status": STATUS,
    "elapsed_s": 82.0,
    "rows": 10_000,
    "ok": 4_118,
    "failed": 2,
    "kept_ok": 0,
    "kept_failed": 0,
    "fraction": 0.412,
    "eta_s": 118.0,
    "rate_per_s": 50.1,
    "rpm": None,
    "requests": 4_132,
    "retries": 12,
    "rate_limited": 9,
    "maybe_billed_twice": 1,
    "tokens": Tokens(1_234_567, 80_400),
    "cost_usd": 0.43,
    "projected_cost_usd": 1.05,
    "drain_left_s": None,
    "drain_why": None,
}


@pytest.fixture
def snapshot() -> Callable[..., Snapshot]:
    """A run in its middle, with the given changes; those of Status may be named too."""

    def make(**changes: Any) -> Snapshot:
        of_status = {name: changes.pop(name) for name in list(changes) if name in Status.__slots__}
        status = Status(**{**{name: getattr(STATUS, name) for name in Status.__slots__}, **of_status})
        return Snapshot(**{**BUSY, "status": status, **changes})

    return make
