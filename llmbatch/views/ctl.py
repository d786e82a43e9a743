"""What ``llmbatch ctl`` prints of the answer of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmbatch.rules.control import Action, no_limit
from llmbatch.views.safe import safe
from llmbatch.views.words import BINDING, PAUSED, count, money, percent, rate, short, stopwatch

_LABEL_CELLS = 10
_STATES = {"starting": "starting: nothing was sent yet", "paused": PAUSED}


def render_answer(action: Action, answer: Mapping[str, Any]) -> str:
    """What came of the request, ending in a newline."""
    status = answer["status"]
    if action == "status":
        lines = list(_status(status))
    elif action == "set":
        lines = [_changed(name, values["old"], values["new"]) for name, values in answer["changed"].items()]
    elif action == "pause":
        lines = [f"paused: no new requests; {_in_flight(status)} go on"]
    elif action == "resume":
        lines = ["resumed" if status["stopping"] is None else f"{_state(status)}: nothing is resumed"]
    else:
        lines = [f"{_state(status)}: no new requests; {_in_flight(status)} are waited for; the same command continues"]
    return "".join(f"{line}\n" for line in lines)


def ctl_json(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The status of the run, and what the request changed."""
    return {**answer["status"], "changed": answer["changed"]}


def _status(status: Mapping[str, Any]) -> Iterator[str]:
    yield _figure("output", safe(str(status["output"])))
    yield _figure("socket", safe(str(status["socket"])))
    yield _figure(
        "run",
        f"pid {status['pid']}, {safe(str(status['model'] or 'models as each row says'))} at "
        f"{safe(str(status['endpoint']))}",
    )
    yield _figure("state", _state(status))
    if "done" in status:
        yield from _numbers(status)
    yield _figure("limits", ", ".join(f"{name} {_limit(name, limit)}" for name, limit in status["limits"].items()))
    if len(status["lanes"]) > 1:
        yield ""
        yield from _lanes(status["lanes"])


def _numbers(status: Mapping[str, Any]) -> Iterator[str]:
    yield _figure("rows", ", ".join(_rows(status)))
    yield _figure("time", _time(status))
    yield _figure("rate", _rate(status))
    waiting = f", {status['waiting_retry']:,} waiting to retry" if status["waiting_retry"] else ""
    yield _figure("in flight", f"{status['in_flight']:,} of {status['allowed']:,} allowed{waiting}")
    closed_s = status["gate_closed_s"]
    yield _figure("gate", f"closed by the provider for {closed_s:.0f} s" if closed_s else "open")
    binding = status["binding"]
    yield _figure("limited by", BINDING.get(binding, safe(str(binding))))
    cached = f" ({short(status['cached_input_tokens'])} cached)" if status["cached_input_tokens"] else ""
    yield _figure("tokens", f"{short(status['input_tokens'])} in{cached}, {short(status['output_tokens'])} out")
    yield _figure("cost", _cost(status))


def _figure(label: str, text: str) -> str:
    return f"{label:<{_LABEL_CELLS}}  {text}"


def _state(status: Mapping[str, Any]) -> str:
    state, why = str(status["state"]), status["stopping"]
    return safe(str(why)) if why is not None else _STATES.get(state, safe(state))


def _rows(status: Mapping[str, Any]) -> Iterator[str]:
    total = "" if status["rows"] is None else f"/{status['rows']:,}"
    share = "" if status["fraction"] is None else f" ({percent(status['fraction'])})"
    yield f"{status['done']:,}{total}{share}"
    yield f"{status['ok'] + status['ok_before']:,} ok"
    yield f"{status['failed'] + status['failed_before']:,} failed"
    if status["retries"]:
        yield count(status["retries"], "retry", "retries")


def _time(status: Mapping[str, Any]) -> str:
    left = status["eta_s"]
    return f"{stopwatch(status['elapsed_s'])} elapsed, " + (
        "time left unknown" if left is None else f"about {stopwatch(left)} left"
    )


def _rate(status: Mapping[str, Any]) -> str:
    per_s, rpm = status["requests_per_s"], status["limit_rpm"]
    limit = "" if rpm is None else f", {per_s * 60:,.0f} of {rpm:,.0f} requests/min"
    return f"{rate(per_s)} requests/s{limit}"


def _cost(status: Mapping[str, Any]) -> str:
    cost, projected = status["cost_usd"], status["projected_cost_usd"]
    if cost is None:
        return "unknown"
    return money(cost) + ("" if projected is None else f" of about {money(projected)}")


def _in_flight(status: Mapping[str, Any]) -> str:
    return f"{status.get('in_flight', 0):,} in flight"


def _lanes(lanes: list[Mapping[str, Any]]) -> Iterator[str]:
    rows = [("IN FLIGHT", "GATE", "LIMITED BY", "ENDPOINT")]
    for lane in lanes:
        closed_s, binding = lane["gate_closed_s"], lane["binding"]
        rows.append(
            (
                f"{lane['in_flight']:,}/{lane['allowed']:,}",
                f"closed, {closed_s:.0f} s" if closed_s else "open",
                BINDING.get(binding, safe(str(binding))),
                safe(str(lane["name"])),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3]])


def _changed(name: str, old: float | None, new: float | None) -> str:
    if old == new:
        return f"{name} {_limit(name, new)}, as before"
    return f"{name} {_limit(name, new)} instead of {_limit(name, old)}"


def _limit(name: str, value: float | None) -> str:
    return no_limit(name) if value is None else f"{value:,.10g}"
