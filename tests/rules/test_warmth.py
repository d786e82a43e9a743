"""The order of rows that begin alike: one leads, the others follow, and nobody waits without end."""

from __future__ import annotations

import math
from random import Random

import pytest

from llmbatch.rules.warmth import LEAD_S, MOST_WARM, WARM_S, PrefixOrder, Warmth

Row = tuple[int | None, int]


class Bench:
    """Rows are told apart by prefix and number."""

    def __init__(self, warmth: Warmth | None = None) -> None:
        self.warmth = warmth or Warmth()
        self.released = 0
        self.order: PrefixOrder[Row] = PrefixOrder(self.warmth, self.note)
        self.numbers: dict[int | None, int] = {}

    def note(self) -> None:
        self.released += 1

    def add(self, *prefixes: int | None) -> None:
        for prefix in prefixes:
            self.numbers[prefix] = self.numbers.get(prefix, 0) + 1
            self.order.add((prefix, self.numbers[prefix]), prefix)

    def go(self, now_s: float = 0.0, under_way: int = 0) -> Row | None:
        self.warmth.lapse(now_s)
        found = self.order.next(now_s, under_way)
        return None if found is None else found[0]

    def all(self, now_s: float = 0.0, under_way: int = 0) -> list[Row]:
        gone = []
        while (row := self.go(now_s, under_way)) is not None:
            gone.append(row)
        return gone


def test_rows_without_a_prefix_go_as_they_came() -> None:
    bench = Bench()
    bench.add(None, None)
    assert bench.go() == (None, 1)
    bench.add(None, None)
    assert bench.all() == [(None, 2), (None, 3), (None, 4)]
    assert len(bench.order) == 0


def test_rows_that_all_begin_differently_go_as_they_came() -> None:
    bench = Bench()
    bench.add(*range(100))
    assert bench.all() == [(prefix, 1) for prefix in range(100)]


def test_the_first_goes_alone_until_its_answer_begins() -> None:
    bench = Bench()
    bench.add(1, 1, 1, None, 1)
    assert bench.order.next(0.0, 0) == ((1, 1), 1)
    assert bench.all() == [(None, 1)]
    assert len(bench.order) == 3 and bench.released == 0
    bench.warmth.began(1, 2.0)
    assert bench.released == 1
    assert bench.order.next(2.0, 0) == ((1, 2), None)
    assert bench.all(2.0) == [(1, 3), (1, 4)]


def test_rows_that_come_while_the_first_is_on_its_way_wait_as_well() -> None:
    bench = Bench()
    bench.add(1)
    assert bench.all() == [(1, 1)]
    bench.add(1, 1)
    assert bench.all(1.0) == []
    bench.warmth.began(1, 2.0)
    assert bench.all(2.0) == [(1, 2), (1, 3)]


def test_leaders_of_others_go_meanwhile_and_what_has_begun_is_next() -> None:
    bench = Bench()
    bench.add(1, 2, 3, 1, 2, 3)
    assert [bench.go(), bench.go()] == [(1, 1), (2, 1)]
    bench.warmth.began(2, 1.0)
    assert bench.go(1.0, under_way=1) == (2, 2)
    assert bench.all(1.0) == [(3, 1)]


@pytest.mark.parametrize(("under_way", "next_row"), [(0, (1, 2)), (2, (1, 2)), (3, (2, 1))])
def test_a_leader_goes_early_when_few_rows_are_left_to_follow(under_way: int, next_row: Row) -> None:
    """Two can follow: if three are under way, these will not last until the next leader's answer begins."""
    bench = Bench()
    bench.add(1, 1, 1, 2, 2)
    bench.go()
    bench.warmth.began(1, 1.0)
    assert bench.go(1.0, under_way) == next_row


def test_rows_of_one_prefix_are_sent_near_each_other() -> None:
    """Two documents, asked in turn: the rows of one go together, each group's as it stands."""
    bench = Bench()
    bench.add(1, 2, 1, 2, 1, 2)
    gone = bench.all()
    for prefix in (1, 2):
        bench.warmth.began(prefix, 1.0)
    gone += bench.all(1.0)
    assert gone == [(1, 1), (2, 1), (2, 2), (2, 3), (1, 2), (1, 3)]


def test_a_group_that_never_ends_does_not_starve_the_others() -> None:
    bench = Bench()
    bench.add(1, None, 2, 2)
    seen: list[Row] = []
    for step in range(60):
        bench.add(1)
        row = bench.go(float(step))
        if row is not None:
            seen.append(row)
        for prefix in (1, 2):
            bench.warmth.began(prefix, float(step))
    assert {(None, 1), (2, 1), (2, 2)} <= set(seen[:12])


def test_a_leader_that_does_not_answer_is_not_waited_for_without_end() -> None:
    bench = Bench()
    bench.add(1, 1)
    bench.go()
    assert bench.warmth.wait_s(5.0) == LEAD_S - 5.0
    assert bench.go(LEAD_S - 0.1) is None
    assert bench.go(LEAD_S) == (1, 2)
    assert bench.warmth.wait_s(LEAD_S) == math.inf
    bench.warmth.began(1, LEAD_S + 1.0)  # too late, and nothing happens


def test_what_was_not_used_for_minutes_wants_a_leader_again() -> None:
    bench = Bench()
    bench.add(1)
    bench.go()
    bench.warmth.began(1, 0.0)
    bench.add(1, 1, 1, 1)
    assert bench.go(WARM_S - 1.0) == (1, 2)
    assert bench.go(2 * WARM_S - 2.0) == (1, 3)  # each use keeps it
    assert bench.order.next(4 * WARM_S, 0) == ((1, 4), 1)
    assert bench.go(4 * WARM_S) is None


def test_two_that_share_a_prefix_have_one_leader() -> None:
    warmth = Warmth()
    one, other = Bench(warmth), Bench(warmth)
    one.add(1)
    other.add(1, 1)
    assert one.go() == (1, 1)
    assert other.go() is None
    warmth.began(1, 1.0)
    assert (one.released, other.released) == (0, 1)
    assert other.order.next(1.0, 0) == ((1, 1), None)
    third = Bench(warmth)
    third.add(1)
    assert third.order.next(1.0, 0) == ((1, 1), None)


def test_only_the_last_prefixes_are_remembered() -> None:
    warmth = Warmth()
    for prefix in range(MOST_WARM + 10):
        warmth.used(prefix, 0.0)
    assert not warmth.is_warm(9, 0.0) and warmth.is_warm(10, 0.0)


@pytest.mark.parametrize("seed", range(30))
def test_every_row_goes_once_and_none_before_its_leader(seed: int) -> None:
    """Rows that come, answers that begin or never do, and time: in any order."""
    chance, bench = Random(seed), Bench()
    now_s, gone, begun = 0.0, list[Row](), set[int]()
    leading: dict[int, float] = {}
    for _ in range(3_000):
        step = chance.random()
        if step < 0.35:
            bench.add(chance.choice([None, None, 1, 2, 3, 4, 5]))
        elif step < 0.9:
            found = bench.order.next(now_s, chance.randrange(12))
            if found is not None:
                (prefix, number), led = found
                gone.append((prefix, number))
                if led is not None:
                    assert led not in leading, "one leader at a time"
                    leading[led] = now_s
                elif prefix is not None:
                    assert prefix in begun
        elif step < 0.95 and leading:
            prefix = chance.choice(list(leading))
            del leading[prefix]
            begun.add(prefix)
            bench.warmth.began(prefix, now_s)
        else:
            now_s += chance.expovariate(0.2)
            bench.warmth.lapse(now_s)
            begun |= {prefix for prefix, since_s in leading.items() if since_s + LEAD_S <= now_s}
            leading = {prefix: since_s for prefix, since_s in leading.items() if since_s + LEAD_S > now_s}
    while len(bench.order):
        now_s += LEAD_S
        gone += bench.all(now_s)
    assert len(set(gone)) == len(gone) == sum(bench.numbers.values())
    for prefix in bench.numbers:
        numbers = [number for one, number in gone if one == prefix]
        assert numbers == sorted(numbers)
