"""Tenants take turns, and each keeps to its limits without holding up the others."""

from __future__ import annotations

import math
from collections import Counter
from random import Random
from typing import Any

import pytest

from llmbatch.rules.fair import MOST_IDLE, Turns, tenant_of
from llmbatch.rules.warmth import LEAD_S


@pytest.mark.parametrize(
    ("fields", "name", "tenant"),
    [
        ({"tenant": "a"}, "tenant", "a"),
        ({"tenant": 7}, "tenant", "7"),
        ({"tenant": 7.5}, "tenant", "7.5"),
        ({"team": "x", "tenant": "a"}, "team", "x"),
        ({}, "tenant", None),
        ({"tenant": ""}, "tenant", None),
        ({"tenant": None}, "tenant", None),
        ({"tenant": ["a"]}, "tenant", None),
        ({"tenant": True}, "tenant", None),
        ({"tenant": "a"}, None, None),
    ],
)
def test_whose_row_it_is(fields: dict[str, Any], name: str | None, tenant: str | None) -> None:
    assert tenant_of(fields, name) == tenant


class Bench:
    """Rows are told apart by tenant and number."""

    def __init__(self, rpm: float | None = None, concurrency: int | None = None) -> None:
        self.turns: Turns[str] = Turns(rpm, concurrency)
        self.numbers: Counter[str | None] = Counter()

    def add(self, *tenants: str | None, times: int = 1, prefix: int | None = None) -> None:
        for tenant in tenants * times:
            self.numbers[tenant] += 1
            self.turns.add(f"{tenant}{self.numbers[tenant]}", tenant, prefix, 0.0)

    def all(self, now_s: float = 0.0) -> list[str]:
        gone = []
        while (found := self.turns.next(now_s)) is not None:
            gone.append(found[0])
        return gone


def test_tenants_take_turns_row_by_row() -> None:
    bench = Bench()
    bench.add("a", times=5)
    bench.add("b", None, times=2)
    assert bench.all() == ["a1", "b1", "None1", "a2", "b2", "None2", "a3", "a4", "a5"]
    assert len(bench.turns) == 0 and bench.turns.wait_s(0.0) == math.inf


def test_who_comes_late_is_next_but_for_the_others() -> None:
    bench = Bench()
    bench.add("a", times=100)
    for _ in range(50):
        bench.turns.next(0.0)
    bench.add("b", times=2)
    assert bench.all()[:4] == ["a51", "b1", "a52", "b2"]


def test_a_tenant_at_its_concurrency_is_passed_over_until_a_row_of_it_ends() -> None:
    bench = Bench(concurrency=2)
    bench.add("a", times=4)
    bench.add("b", times=1)
    assert not bench.turns.limited
    assert bench.all() == ["a1", "b1", "a2"]
    assert bench.turns.limited
    assert bench.turns.wait_s(0.0) == math.inf  # time alone helps nobody
    bench.turns.ended("b", 1, 0.0)
    assert bench.all() == []
    bench.turns.ended("a", 1, 0.0)
    assert not bench.turns.limited
    assert bench.all() == ["a3"]
    bench.turns.ended("a", 1, 0.0)
    assert bench.all() == ["a4"] and not bench.turns.limited


def test_a_tenant_at_its_pace_is_passed_over_until_its_time_comes() -> None:
    bench = Bench(rpm=60)
    bench.add("a", times=3)
    assert bench.all(0.0) == ["a1"] and bench.turns.limited
    bench.add("b", times=2)
    assert bench.all(0.5) == ["b1"]
    assert bench.turns.wait_s(0.5) == pytest.approx(0.45, abs=0.01)
    assert bench.all(1.0) == ["a2"]
    assert bench.all(1.5) == ["b2"]
    assert bench.all(2.01) == ["a3"] and not bench.turns.limited


def test_no_tenant_ever_exceeds_its_pace() -> None:
    chance, bench = Random(1), Bench(rpm=120)
    bench.add("a", "b", "c", times=1_000)
    times: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    now_s = 0.0
    while now_s < 200:
        for row in bench.all(now_s):
            times[row[0]].append(now_s)
            bench.turns.ended(row[0], 1, now_s)
        now_s += chance.choice([0.001, 0.3, bench.turns.wait_s(now_s)])
    for sent in times.values():
        assert len(sent) > 380
        assert max(sum(1 for at_s in sent if start <= at_s < start + 60) for start in sent) <= 120


def test_further_tries_push_the_tenants_next_row_back() -> None:
    bench = Bench(rpm=60)
    bench.add("a", times=2)
    assert bench.all(0.0) == ["a1"]
    bench.turns.ended("a", 3, 0.5)
    assert bench.all(2.5) == []
    assert bench.all(3.1) == ["a2"]


def test_a_tenant_without_rows_keeps_its_pace() -> None:
    bench = Bench(rpm=60)
    bench.add("a")
    assert bench.all(0.0) == ["a1"]
    bench.turns.ended("a", 1, 0.1)
    bench.add("a")
    assert bench.all(0.5) == []
    assert bench.all(1.01) == ["a2"]


def test_a_tenant_that_waits_for_its_leader_holds_up_nobody() -> None:
    bench = Bench()
    bench.add("a", times=3, prefix=1)
    bench.add("b", times=1, prefix=1)
    bench.add("b", times=1)
    assert bench.all() == ["a1", "b2"]
    assert bench.turns.wait_s(0.0) == LEAD_S
    bench.turns.began(1, 1.0)
    assert sorted(bench.all(1.0)) == ["a2", "a3", "b1"]


def test_tenants_without_end_do_not_fill_the_memory() -> None:
    bench = Bench(rpm=6_000)
    for number in range(5 * MOST_IDLE):
        bench.turns.add("row", f"t{number}", None, number * 0.1)
        assert bench.turns.next(number * 0.1) is not None
        bench.turns.ended(f"t{number}", 1, number * 0.1)
    assert len(bench.turns._tenants) <= MOST_IDLE


def test_rows_that_went_before_there_was_an_order_are_not_missed() -> None:
    bench = Bench(concurrency=1)
    bench.turns.ended("a", 1, 0.0)
    bench.add("a", times=2)
    bench.turns.ended("a", 1, 0.0)
    assert bench.all() == ["a1"]
