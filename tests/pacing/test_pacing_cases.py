"""The figures of pacing in short: the real call stack before a virtual provider, as `make bench-pacing` has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pacing_figures as figures
import pytest
from pacing_cases import Experiment, changed, known, outages, tokens, unknown
from pacing_virtual import Case, run


def cases() -> Iterator[Experiment]:
    yield known(60.0, 310.0, 60.0)
    yield known(600.0, 130.0, 1.0)
    yield known(6000.0, 75.0, 1.0)
    yield replace(known(60_000.0, 16.0, 1.0), name="60,000 RPM")
    yield from outages(600.0, told=True)
    yield tokens(200_000.0, 300.0, told=True)
    for burst_s in (60.0, 1.0):
        yield unknown(600.0, 240.0, headers=True, burst_s=burst_s)
        yield unknown(600.0, 480.0, headers=False, burst_s=burst_s)
    yield unknown(3000.0, 150.0, headers=True, burst_s=1.0)
    for headers in (True, False):
        yield changed(600.0, headers=headers, burst_s=1.0, each_s=180.0)


@pytest.mark.parametrize("experiment", [pytest.param(one, id=f"{one.group}: {one.name}") for one in cases()])
def test_the_figures_are_what_was_asked(experiment: Experiment) -> None:
    found = experiment.measure(experiment.case)
    missed = {name: found[name] for name, asked in experiment.asked.items() if not asked.met(found[name])}
    assert not missed, f"asked: {experiment.asked}"


@pytest.mark.parametrize(("slots", "slowdown"), [(32, 0.0), (32, 1.0)])
def test_a_server_that_queues_is_filled_and_not_more(slots: int, slowdown: float) -> None:
    """All its slots in work is the most it does, and it takes no more in flight than slots to reach that.

    Of one run and from its beginning; the figures that are asked for are medians (benchmarks/PACING.md).
    """
    case = Case(300.0, slots=slots, slowdown=slowdown)
    diary = run(case)
    assert figures.work_per_s(case, diary, 120.0) >= 0.93 * slots / (1 + slowdown)
    assert figures.mean_in_flight(case, diary, 120.0) <= 1.7 * slots


def test_a_fixed_window_of_all_slots_reaches_the_peak() -> None:
    """The measure itself: where nothing is to be learnt."""
    case = Case(180.0, slots=16, concurrency=18)
    diary = run(case)
    assert figures.work_per_s(case, diary, 60.0) == pytest.approx(16, rel=0.03)
    assert figures.mean_in_flight(case, diary, 60.0) == pytest.approx(18, abs=0.2)
    half = replace(case, concurrency=8)
    assert figures.work_per_s(half, run(half), 60.0) == pytest.approx(8, rel=0.05)


def test_a_run_is_the_same_again_with_the_same_seed() -> None:
    case = Case(30.0, rpm=600.0, told=True)
    assert run(case).sent == run(case).sent
    assert run(case).accepted != run(replace(case, seed=2)).accepted
