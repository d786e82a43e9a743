import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest

from llmbatch.events import RunStarted
from llmbatch.summary import Snapshot
from llmbatch.views.live import LiveBar, can_draw, frame

Make = Callable[..., Snapshot]
RUN = RunStarted("sim/fast", "http://127.0.0.1:1", "out.jsonl", rows=10_000, done_before=400)
BUSY = {
    37: [
        " 4,120/10,000  41%  ━━────  1:58 left",
        "50.1/s · 38/40 in flight",
        "2 failed · 1 billed twice? · $0.43",
    ],
    57: [
        " 4,120/10,000  41%  ━━━━━━━━────────────  1:22, 1:58 left",
        "50.1/s · 38/40 in flight · limit: request rate",
        "4,118 ok · 2 failed · 1 billed twice? · $0.43",
    ],
    117: [
        " 4,120/10,000  41%  ━━━━━━━━━━━━━━━━━━━━━━━━────────────────────────────────────"
        "  1:22 elapsed, about 1:58 left",
        "50.1 requests/s · 38/40 in flight · 3 waiting to retry · limited by the request rate",
        "4,118 ok · 2 failed · 12 retries · 1 maybe billed twice · 1.2M tokens in, 80k out · $0.43 of about $1.05",
    ],
}


def lines(shown: Snapshot, width: int, ascii_only: bool = False) -> list[str]:
    return [line.plain for line in frame(shown, width, ascii_only)]


@pytest.mark.parametrize("width", BUSY)
def test_the_three_lines_at_each_width(snapshot: Make, width: int) -> None:
    assert lines(snapshot(), width) == BUSY[width]


@pytest.mark.parametrize("width", range(1, 210))
def test_no_line_is_ever_wider_than_the_terminal_nor_a_fourth_one(snapshot: Make, width: int) -> None:
    for shown in (
        snapshot(),
        snapshot(drain_why="x", drain_left_s=9.0),
        snapshot(gate_closed_s=12.0),
        snapshot(rows=None),
    ):
        drawn = frame(shown, width)
        assert len(drawn) == 3
        assert all(line.cell_len <= width for line in drawn)


def test_stopping_says_how_to_leave_at_once(snapshot: Make) -> None:
    shown = snapshot(drain_why="interrupted", drain_left_s=58.0, in_flight=87)
    assert lines(shown, 77)[1] == "stopping: 87 in flight, Ctrl-C abandons them · 0:58 at most"
    assert lines(shown, 37)[1] == "stopping: 87 in flight, ^C abandons"
    assert "left" not in lines(shown, 77)[0]


@pytest.mark.parametrize("width", [37, 57, 77, 117])
def test_a_closed_gate_is_said_at_every_width(snapshot: Make, width: int) -> None:
    line = lines(snapshot(gate_closed_s=12.3, binding="provider"), width)[1]
    assert line.startswith("paused by the provider, 12 s")
    assert "limit" not in line


@pytest.mark.parametrize(
    ("binding", "wide", "narrow"),
    [
        ("concurrency", " · limited by the concurrency", " · limit: concurrency"),
        ("output_tokens", " · limited by the rate of output tokens", " · limit: rate of output tokens"),
        ("server", " · limited by the server's speed", " · limit: server's speed"),
        ("provider", " · limited by the provider", " · limit: provider"),
        ("disk", " · limited by the output", " · limit: output"),
        ("cpu", " · limited by this machine's CPU", " · limit: this machine's CPU"),
        ("tail", " · waiting for the last answers", " · waiting for last answers"),
        ("paused", " · paused", " · paused"),
        ("idle", "", ""),
    ],
)
def test_the_bar_says_what_binds(snapshot: Make, binding: str, wide: str, narrow: str) -> None:
    shown = snapshot(binding=binding, waiting_retry=0)
    assert lines(shown, 117)[1] == "50.1 requests/s · 38/40 in flight" + wide
    if narrow != wide:
        one_too_few = len(lines(shown, 117)[1]) - 1
        assert lines(shown, one_too_few)[1] == "50.1 requests/s · 38/40 in flight" + narrow


def test_the_rate_stands_beside_its_limit(snapshot: Make) -> None:
    assert lines(snapshot(rpm=3200.0), 117)[1].startswith("3,006/3,200 requests/min · ")
    assert lines(snapshot(rpm=3200.0), 50)[1].startswith("3,006/3,200 RPM · ")


def test_an_unknown_total_shows_the_share_read_and_no_share_shows_no_bar(snapshot: Make) -> None:
    assert lines(snapshot(rows=None), 57)[0].startswith("4,120 rows  41%  ━")
    assert lines(snapshot(rows=None, fraction=None, eta_s=None), 57)[0] == "4,120 rows  1:22 elapsed"


def test_nothing_is_said_of_a_cost_that_is_unknown(snapshot: Make) -> None:
    assert "$" not in lines(snapshot(cost_usd=None, projected_cost_usd=None), 200)[2]


def test_the_bar_is_full_only_when_all_is_done(snapshot: Make) -> None:
    assert "─" in lines(snapshot(fraction=0.99999), 117)[0]
    assert "─" not in lines(snapshot(fraction=1.0), 117)[0]


def test_a_terminal_without_unicode_gets_none(snapshot: Make) -> None:
    assert all(line.isascii() for line in lines(snapshot(gate_closed_s=1.0), 117, ascii_only=True))


class Terminal:
    """A pseudo-terminal and what was written to it."""

    def __init__(self) -> None:
        self.screen, end = os.openpty()
        self.stream: TextIO = os.fdopen(end, "w", encoding="utf-8")
        self.written = b""

    def read(self) -> str:
        """Everything so far; ends the terminal."""
        reader = threading.Thread(target=self._drain)
        reader.start()
        self.stream.close()
        reader.join()
        return self.written.decode()

    def _drain(self) -> None:
        try:
            while chunk := os.read(self.screen, 65536):
                self.written += chunk
        except OSError:  # how Linux says that the other end is closed
            pass


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    yield terminal
    terminal.stream.close()
    os.close(terminal.screen)


def draw(terminal: Terminal, shown: Snapshot) -> str:
    with LiveBar(terminal.stream) as bar:
        bar.start(RUN)
        bar.refresh(shown)
    return terminal.read()


def test_the_cursor_is_never_hidden_so_no_death_can_lose_it(terminal: Terminal, snapshot: Make) -> None:
    assert "\x1b[?25l" not in draw(terminal, snapshot())


def test_stop_takes_the_bar_away_and_may_be_called_twice(terminal: Terminal, snapshot: Make) -> None:
    bar = LiveBar(terminal.stream)
    bar.start(RUN)
    bar.refresh(snapshot())
    bar.stop()
    bar.stop()
    assert terminal.read().endswith("\x1b[1A\x1b[2K" * 3)


def test_colours_are_the_terminals_own_and_never_black_or_white(terminal: Terminal, snapshot: Make) -> None:
    written = draw(terminal, snapshot())
    assert "\x1b[36m" in written
    for forbidden in ("\x1b[30", "\x1b[37", "\x1b[40", "\x1b[47", "38;2;", "38;5;", "48;"):
        assert forbidden not in written


def test_no_color_is_respected(terminal: Terminal, snapshot: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    written = draw(terminal, snapshot())
    assert "━" in written
    assert not any(f"\x1b[{code}m" in written for code in (31, 32, 33, 36))


def test_a_dumb_terminal_gets_no_bar_and_no_escape(
    terminal: Terminal, snapshot: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert can_draw(terminal.stream)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(terminal.stream)
    assert "\x1b" not in draw(terminal, snapshot())


def test_a_file_is_no_terminal() -> None:
    assert not can_draw(io.StringIO())


def test_notes_stay_and_can_not_steer_the_terminal(terminal: Terminal) -> None:
    with LiveBar(terminal.stream) as bar:
        bar.note("a [bold]file[/bold] named \x1b]0;owned\x07", "warning")
    assert "warning: a [bold]file[/bold] named \\e]0;owned\\x07" in terminal.read()


def test_a_stray_warning_does_not_break_the_bar(
    terminal: Terminal, snapshot: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    with LiveBar(terminal.stream) as bar:
        bar.start(RUN)
        bar.refresh(snapshot())
        print("stray", file=sys.stderr)
    assert sys.stderr is terminal.stream
    assert "\x1b[2Kstray\r\n" in terminal.read()


def test_a_terminal_that_nobody_reads_does_not_hold_up_the_run(terminal: Terminal, snapshot: Make) -> None:
    bar = LiveBar(terminal.stream)
    bar.start(RUN)
    for i in range(500):
        bar.refresh(snapshot(ok=i))
    bar.stop()


def test_a_terminal_that_went_away_does_not_end_the_run(snapshot: Make) -> None:
    script = (
        "import os, sys\n"
        "from llmbatch.events import RunStarted\n"
        "from llmbatch.views.live import LiveBar\n"
        "screen, end = os.openpty()\n"
        "bar = LiveBar(open(end, 'w', encoding='utf-8'))\n"
        "bar.start(RunStarted('m', 'e', 'o'))\n"
        "os.close(screen)\n"
        "for _ in range(3): bar.note('x')\n"
        "bar.stop()\n"
        "print('the run went on', flush=True)\n"
        "os._exit(0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TERM": "xterm"}, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("the run went on\n", "")
