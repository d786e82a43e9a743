"""What `llmbatch ctl` prints, and how the progress displays say that a run is paused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from llmbatch.summary import Snapshot
from llmbatch.views.ctl import ctl_json, render_answer
from llmbatch.views.json_lines import JsonLines
from llmbatch.views.live import frame
from llmbatch.views.plain import progress_line

Make = Callable[..., Snapshot]

LANE = {"name": "https://a.example/v1", "in_flight": 8, "allowed": 8, "waiting_retry": 0, "gate_closed_s": 0.0}
LIMITS = {"rpm": 3600.0, "tpm": None, "concurrency": None, "max-concurrency": 64}


def answer(snapshot: Snapshot | None, changed: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """As a run gives it."""
    about = {
        "output": "/data/out.jsonl",
        "socket": "/data/out.jsonl.ctl",
        "model": "m",
        "endpoint": "https://a.example",
    }
    numbers = {} if snapshot is None else snapshot.to_json()
    state = {
        "pid": 7,
        "state": "running",
        "stopping": None,
        "limits": LIMITS,
        "lanes": [{**LANE, "binding": "requests"}],
    }
    return json.loads(
        json.dumps({"ok": True, "changed": changed or {}, "status": {**about, **numbers, **state, **status}})
    )


def test_the_status_of_a_run(snapshot: Make) -> None:
    assert render_answer("status", answer(snapshot(rpm=3600.0))) == (
        "output      /data/out.jsonl\n"
        "socket      /data/out.jsonl.ctl\n"
        "run         pid 7, m at https://a.example\n"
        "state       running\n"
        "rows        4,120/10,000 (41%), 4,118 ok, 2 failed, 12 retries\n"
        "time        1:22 elapsed, about 1:58 left\n"
        "rate        50.1 requests/s, 3,006 of 3,600 requests/min\n"
        "in flight   38 of 40 allowed, 3 waiting to retry\n"
        "gate        open\n"
        "limited by  the request rate\n"
        "tokens      1.2M in, 80k out\n"
        "cost        $0.43 of about $1.05\n"
        "limits      rpm 3,600, tpm none, concurrency auto, max-concurrency 64\n"
    )


def test_a_run_that_is_held_up_and_knows_little(snapshot: Make) -> None:
    held = snapshot(
        rows=None, fraction=None, eta_s=None, cost_usd=None, gate_closed_s=12.0, binding="provider", retries=0
    )
    text = render_answer("status", answer(held, model=None))
    assert "models as each row says" in text
    assert "rows        4,120, 4,118 ok, 2 failed\n" in text
    assert "time        1:22 elapsed, time left unknown\n" in text
    assert "gate        closed by the provider for 12 s\nlimited by  the provider\n" in text
    assert "cost        unknown\n" in text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "starting"}, "starting: nothing was sent yet"),
        ({"state": "paused"}, "paused by llmbatch ctl"),
        ({"state": "stopping", "stopping": "stopped by SIGINT"}, "stopped by SIGINT"),
    ],
)
def test_each_state_has_its_words(status: dict[str, Any], words: str) -> None:
    text = render_answer("status", answer(None, **status))
    assert f"state       {words}\nlimits " in text


def test_several_lanes_are_a_table(snapshot: Make) -> None:
    lanes = [
        {**LANE, "binding": "concurrency"},
        {**LANE, "name": "https://b.example/v1", "in_flight": 0, "gate_closed_s": 7.5, "binding": "provider"},
    ]
    assert render_answer("status", answer(snapshot(), lanes=lanes)).endswith(
        "\n\n"
        "IN FLIGHT  GATE         LIMITED BY       ENDPOINT\n"
        "8/8        open         the concurrency  https://a.example/v1\n"
        "0/8        closed, 8 s  the provider     https://b.example/v1\n"
    )


def test_nothing_in_a_status_steers_the_terminal(snapshot: Make) -> None:
    evil = "\x1b[2J"
    lanes = [{**LANE, "binding": evil, "name": evil}] * 2
    text = render_answer("status", answer(snapshot(), output=evil, socket=evil, model=evil, endpoint=evil, lanes=lanes))
    assert "\x1b" not in text
    assert text.count("\\e[2J") == 8


def test_what_came_of_an_action(snapshot: Make) -> None:
    busy = snapshot()
    changed = {"rpm": {"old": 500, "new": 1200.5}, "concurrency": {"old": 8, "new": None}, "tpm": {"old": 9, "new": 9}}
    assert render_answer("set", answer(busy, changed)) == (
        "rpm 1,200.5 instead of 500\nconcurrency auto instead of 8\ntpm 9, as before\n"
    )
    assert render_answer("pause", answer(busy)) == "paused: no new requests; 38 in flight go on\n"
    assert render_answer("pause", answer(None)) == "paused: no new requests; 0 in flight go on\n"
    assert render_answer("resume", answer(busy)) == "resumed\n"
    stopping = answer(busy, state="stopping", stopping="stopped by llmbatch ctl")
    assert render_answer("resume", stopping) == "stopped by llmbatch ctl: nothing is resumed\n"
    assert render_answer("drain", stopping) == (
        "stopped by llmbatch ctl: no new requests; 38 in flight are waited for; the same command continues\n"
    )


def test_json_is_the_status_and_what_changed(snapshot: Make) -> None:
    changed = {"rpm": {"old": 500, "new": 300}}
    found = ctl_json(answer(snapshot(), changed))
    assert found["changed"] == changed
    assert (found["done"], found["limits"]["rpm"], found["paused"]) == (4120, 3600, False)


# The displays of a paused run


def test_the_plain_line_says_that_it_is_paused(snapshot: Make) -> None:
    line = progress_line(snapshot(paused=True, binding="paused", gate_closed_s=9.0, eta_s=None))
    assert line.endswith("38/40 in flight, 3 waiting to retry, paused by llmbatch ctl")


@pytest.mark.parametrize("width", [24, 60, 140])
def test_the_bar_says_that_it_is_paused_however_narrow(snapshot: Make, width: int) -> None:
    drawn = frame(snapshot(paused=True, binding="paused", eta_s=None), width)
    assert len(drawn) == 3
    assert drawn[1].plain.startswith("paused by llmbatch ctl")
    assert "limit" not in drawn[1].plain and drawn[1].plain.count("paused") == 1
    assert all(line.cell_len <= width for line in drawn)


def test_the_json_line_says_that_it_is_paused(snapshot: Make) -> None:
    out = io.StringIO()
    JsonLines(out).refresh(snapshot(paused=True, binding="paused"))
    line = json.loads(out.getvalue())
    assert (line["event"], line["paused"], line["binding"]) == ("progress", True, "paused")
