"""The short form of the signals, and the moments at which they once went wrong."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from end_to_end.processes import Sim

from campaigns import signals
from campaigns.campaign import Report
from campaigns.kill import Moment

pytestmark = pytest.mark.skipif(signals.why_not() is not None, reason=str(signals.why_not()))


def test_signals_at_any_moment_lose_nothing_and_leave_nothing_behind() -> None:
    report = signals.campaign(12, seed=1)
    assert report.broken == []
    assert report.runs == 12


@pytest.mark.parametrize("number", list(signals.CODES), ids=lambda number: number.name)
@pytest.mark.parametrize(
    "moment",
    [Moment(after_s=0.06), Moment(ending=".jsonl", delay_s=0.005)],
    ids=["into_the_imports", "after_the_output_is_complete"],
)
def test_no_traceback_of_an_import_and_a_complete_run_was_not_interrupted(
    tmp_path: Path, moment: Moment, number: signal.Signals
) -> None:
    case = signals.Case(1, number, "pipe", moment, (), rows=3, concurrency=3, stalled=0, closes_terminal=False)
    ledger = tmp_path / "ledger.jsonl"
    with ExitStack() as stack:
        sim = Sim("--latency", "0.05", "--ledger", str(ledger))
        stack.callback(sim.stop)
        signals.Victim(case, "one", tmp_path, sim.base_url, signals.Books(ledger), stack).run(Report())
