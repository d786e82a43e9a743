"""Which cases a comparison has, and the arithmetic on what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmbatch.rules.comparison import (
    PARTS,
    Case,
    Compared,
    Comparison,
    Driver,
    Measured,
    Server,
    Sizes,
    Spread,
    Variant,
    again_for_longer,
    cases,
    comparison_from,
    percentile,
    real_cases,
    spread,
)

ONE = Measured(
    wall_s=4.0,
    user_s=0.3,
    system_s=0.1,
    ok=100,
    failures={},
    latency_p50_s=0.4,
    latency_p95_s=0.41,
    latency_max_s=0.42,
    start_mb=30.0,
    peak_mb=32.0,
    peak_threads=11,
    peak_files=14,
    peak_processes=1,
    in_flight=10,
    answers="0a1b2c3d",
)


def case(
    kind: str = "loop", size: int = 10, rows: int = 100, latency_s: float | None = 0.4, variant: Variant = ""
) -> Case:
    return Case("drivers", Driver(kind, size), Server(latency_s), rows, variant)  # type: ignore[arg-type]


def comparison(*compared: Compared) -> Comparison:
    return Comparison("the simulated provider", "llmbatch compare x", "2026-11-21", {"cores": 2}, compared)


@pytest.mark.parametrize(
    ("asked", "ideal_s"),
    [
        (case("sequential", 1), 40.0),
        (case("threads", 10), 4.0),
        (case("loop", 100), 0.4),
        (case("loop", 1000), 0.4),  # never more at once than there are rows
        (case(rows=25), 1.0),
        (case(latency_s=0.0), 0.0),
        (case(latency_s=None), None),  # nobody knows how long a real provider takes
        (case(variant="hook"), None),
        (case(rows=10, variant="tasks together"), 0.4),
        (case(rows=10, variant="tasks in turn"), 1.6),
        (replace(case(size=1, rows=10), server=Server(0.4, rtt_s=0.1)), 5.0),
    ],
)
def test_ideal_is_the_waiting_alone(asked: Case, ideal_s: float | None) -> None:
    assert asked.ideal_s == (None if ideal_s is None else pytest.approx(ideal_s))


def test_faster_is_told_by_row_as_the_sequential_driver_gets_fewer() -> None:
    alone = Compared(case("sequential", 1, rows=25), (replace(ONE, wall_s=10.0, ok=25),))
    assert Compared(case(), (ONE,)).times_faster(alone) == pytest.approx(10.0)
    assert alone.times_faster(alone) == 1.0
    assert Compared(case(), (ONE,)).times_faster(None) == pytest.approx(10.0)  # of the latency
    assert Compared(case(latency_s=None), (ONE,)).times_faster(None) is None


def test_figures_of_several_runs_are_medians_with_their_range() -> None:
    compared = Compared(case(), (ONE, replace(ONE, wall_s=5.0, peak_mb=33.0), replace(ONE, wall_s=4.5, peak_mb=31.0)))
    assert compared.wall_s == Spread(4.5, 4.0, 5.0)
    assert compared.per_s.median == pytest.approx(100 / 4.5)
    assert compared.cpu_ms_per_request.median == pytest.approx(4.0)
    assert compared.kb_per_call == Spread(204.8, 102.4, 307.2)
    assert compared.most("peak_threads") == 11


def test_what_a_system_does_not_tell_has_no_figure() -> None:
    compared = Compared(case(), (replace(ONE, start_mb=None, peak_mb=None, peak_threads=None),))
    assert compared.peak_mb is None
    assert compared.kb_per_call is None
    assert compared.most("peak_threads") is None


def test_other_answers_are_noticed_but_not_a_real_providers() -> None:
    first, other = Compared(case(), (ONE,)), Compared(case("threads"), (replace(ONE, answers="ffffffff"),))
    assert comparison(first, other).differing == [other]
    assert comparison(first, replace(other, runs=(ONE,))).differing == []
    assert comparison(first, replace(other, case=case("threads", rows=99))).differing == []
    assert comparison(first, replace(other, runs=(replace(other.runs[0], failures={"overloaded": 1}),))).differing == []
    real = [replace(one, case=replace(one.case, server=Server(None))) for one in (first, other)]
    assert comparison(*real).differing == []


def test_a_record_reads_back_as_it_was() -> None:
    made = comparison(Compared(case(), (ONE, ONE)), Compared(case("threads", 10_000), (), "can't start new thread"))
    record = made.to_json()
    assert comparison_from(record) == made
    with pytest.raises(ValueError, match="version 7"):
        comparison_from({**record, "version": 7})


def test_percentile_and_spread() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], percent) for percent in (0, 50, 95, 100)] == [1.0, 2.0, 4.0, 4.0]
    assert percentile([], 50) == 0.0
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_every_part_has_cases_that_are_told_apart() -> None:
    sizes = Sizes(in_flight=(100, 1_000), in_flight_tls=(100,))
    made = cases(PARTS, sizes, 100, 0.4)
    assert {one.part for one in made} == set(PARTS)
    assert len(set(made)) == len(made)


def test_the_drivers_get_the_same_rows_and_the_large_loops_enough_of_them() -> None:
    made = cases(["drivers"], Sizes(loop=(10, 1_000)), 100, 0.4)
    assert [(one.driver.name, one.rows) for one in made] == [
        ("sequential", 25),
        ("threads(10)", 100),
        ("threads(100)", 100),
        ("processes(10)", 100),
        ("loop(10)", 100),
        ("loop(1,000)", 2_000),
    ]


@pytest.mark.parametrize(("latency_s", "rows"), [(4.0, 5), (0.4, 25), (0.05, 100), (30.0, 5)])
def test_one_after_the_other_ends_in_some_ten_seconds(latency_s: float, rows: int) -> None:
    assert cases(["drivers"], Sizes(), 100, latency_s)[0].rows == rows


def test_waiting_requests_are_all_under_way_at_once() -> None:
    for one in cases(["memory"], Sizes(in_flight=(100, 10_000), in_flight_tls=(10_000,)), 100, 0.4):
        assert one.in_flight == one.rows == one.driver.size
        assert one.server.latency_s is not None and one.server.latency_s >= 0.001 * one.rows


@pytest.mark.parametrize(
    ("part", "in_flight", "latency_s"),
    [("memory", 99, 3.0), ("memory", 100, None), ("drivers", 99, None), ("memory", None, None)],
)
def test_requests_that_were_answered_too_early_are_held_for_longer(
    part: str, in_flight: int | None, latency_s: float | None
) -> None:
    asked = Case(part, Driver("loop", 100), Server(1.5), 100)  # type: ignore[arg-type]
    again = again_for_longer(asked, replace(ONE, in_flight=in_flight))
    assert (again and again.server.latency_s) == latency_s


def test_memory_is_told_by_the_requests_that_were_really_there() -> None:
    assert Compared(case(size=100), (replace(ONE, in_flight=50),)).kb_per_call == Spread(40.96, 40.96, 40.96)


def test_without_certificates_nothing_goes_over_tls() -> None:
    made = cases(["session", "memory"], Sizes(in_flight_tls=(100,), tls=False), 100, 0.4)
    assert made and not any(one.server.tls for one in made)


def test_a_real_provider_gets_the_rows_once_for_each_driver() -> None:
    made = real_cases(["drivers", "session"], Sizes(), 7)
    assert sum(one.requests for one in made) == 7 * (6 + 2)
    assert {one.server for one in made} == {Server(None)}
