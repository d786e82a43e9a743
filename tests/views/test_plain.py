import io
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from llmbatch.events import Draining, RunStarted
from llmbatch.summary import Snapshot
from llmbatch.views.json_lines import JsonLines
from llmbatch.views.plain import PlainLines
from llmbatch.views.printer import Printer, Sink

Make = Callable[..., Snapshot]
RUN = RunStarted("sim/fast", "http://127.0.0.1:1", "out.jsonl", rows=10_000, done_before=400, failed_before=3)
STAMP = "2025-01-02 03:04:05+00:00 llmbatch: "


def plain(stream: io.StringIO) -> PlainLines:
    return PlainLines(stream, now=lambda: datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC))


def said(stream: io.StringIO) -> list[str]:
    return [line.removeprefix(STAMP) for line in stream.getvalue().splitlines()]


def test_the_lines_of_a_run(snapshot: Make) -> None:
    out = io.StringIO()
    lines = plain(out)
    lines.start(RUN)
    lines.refresh(snapshot())
    lines.note("the server names another model", "warning")
    lines.refresh(snapshot(gate_closed_s=12.0, cost_usd=None, waiting_retry=0, fraction=1.0, rows=None, retries=1))
    lines.stop()
    lines.stop()
    assert said(out) == [
        "start: sim/fast at http://127.0.0.1:1, 10,000 rows, 400 finished by earlier runs, 3 failed in earlier runs,"
        " results to out.jsonl",
        "4,120/10,000 rows (41%) in 1:22, 2 failed, 12 retries, 50.1 requests/s, 1.2M tokens in, 80k out, $0.43,"
        " 38/40 in flight, 3 waiting to retry, limited by the request rate, about 1:58 left",
        "warning: the server names another model",
        "end: 4,120 rows (100%) in 1:22, 2 failed, 1 retry, 50.1 requests/s, 1.2M tokens in, 80k out",
    ]


def test_a_night_is_one_line_every_half_minute(snapshot: Make) -> None:
    out = io.StringIO()
    lines = plain(out)
    hours = 8
    for tick in range(hours * 3600):
        lines.refresh(snapshot(elapsed_s=float(tick)))
    assert 120 * hours - 1 <= len(said(out)) <= 120 * hours + 1
    assert "in 0:30," in said(out)[0]


def test_draining_is_said_at_once_and_once(snapshot: Make) -> None:
    out = io.StringIO()
    lines = plain(out)
    lines.draining(Draining(87, 60.0, "interrupted"))
    for _ in range(3):
        lines.refresh(snapshot(elapsed_s=1.0, drain_why="interrupted", drain_left_s=60.0, in_flight=86))
    assert said(out) == [
        "warning: interrupted: no new requests; waiting up to 60 s for 87 in flight. "
        "Ctrl-C now abandons them (they may be billed)"
    ]


def test_a_pause_is_in_the_line(snapshot: Make) -> None:
    out = io.StringIO()
    plain(out).refresh(snapshot(gate_closed_s=11.6))
    assert "paused by the provider for 12 s" in said(out)[0]


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", "back\rwards"])
def test_a_log_line_can_not_be_forged(text: str) -> None:
    out = io.StringIO()
    lines = plain(out)
    lines.start(RunStarted(text, text, text))
    lines.note(text, "warning")
    assert len(out.getvalue().split("\n")) == 3
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", out.getvalue())


def test_json_lines_are_objects_with_units_in_their_names(snapshot: Make) -> None:
    out = io.StringIO()
    lines = JsonLines(out)
    lines.start(RUN)
    lines.refresh(snapshot(elapsed_s=0.0))
    lines.refresh(snapshot(elapsed_s=0.4))
    lines.refresh(snapshot(elapsed_s=1.0, cost_usd=None, fraction=None))
    lines.stop()
    lines.stop()
    start, first, second, end = map(json.loads, out.getvalue().splitlines())
    assert (start["event"], start["rows"], start["ok_before"]) == ("start", 10_000, 400)
    assert (first["event"], first["done"], first["requests_per_s"], first["cost_usd"]) == ("progress", 4120, 50.1, 0.43)
    assert (second["elapsed_s"], second["cost_usd"], second["fraction"]) == (1.0, None, None)
    assert end["event"] == "end"
    assert first["input_tokens"] == 1_234_567


def test_a_json_line_can_not_steer_a_terminal_and_says_the_same() -> None:
    out = io.StringIO()
    text = "\x1b[31m\x7f\x9b\u202e\u200b\n\udcff é"
    JsonLines(out).note(text, "warning")
    line = out.getvalue()
    assert all(" " <= char <= "~" for char in line.removesuffix("\n"))
    assert json.loads(line) == {"event": "notice", "level": "warning", "text": text}


@pytest.mark.parametrize("printer", [PlainLines, JsonLines])
def test_a_pipe_that_nobody_reads_does_not_hold_up_the_run(printer: Callable[[io.TextIOWrapper], Printer]) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader), open(writer, "w", encoding="utf-8") as stream:
        lines = printer(stream)
        for i in range(5000):
            lines.note(f"note {i} " + "x" * 200)
        os.set_blocking(reader, False)
        assert os.read(reader, 100)


@pytest.mark.parametrize("printer", [PlainLines, JsonLines])
def test_a_reader_that_went_away_does_not_end_the_run(printer: Callable[[io.TextIOWrapper], Printer]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    lines = printer(stream)
    lines.note("one")
    lines.note("two")
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk_does_not_end_the_run() -> None:
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 - closing it is the test
    Sink(stream).line("lost")
    with pytest.raises(OSError, match="No space"):
        stream.close()


def test_a_closed_stream_is_left_alone() -> None:
    stream = io.StringIO()
    stream.close()
    Sink(stream).line("nobody")
