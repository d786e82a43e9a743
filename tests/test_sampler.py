"""The looks of a run, in virtual time, and what a loop and a thread really do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from llmbatch.machine import ThreadTime
from llmbatch.rules.bottleneck import Moment
from llmbatch.sampler import SHOWN_S, TICK_S, Sampler

Virtually = Callable[[Awaitable[Any]], Any]
FULL = Moment(in_flight=4, allowed=4)
PACED = Moment("requests", in_flight=1, allowed=4)
INPUT = Moment(in_flight=1, allowed=4, waits_for_input=True)


class Bench:
    """A sampler of a moment that the test sets. Make it inside the loop."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
        self.moment = FULL
        self.busy_s = 0.0
        self.looks = 0
        self.sampler = Sampler(self._look, self.now, lambda: self.busy_s)

    def _look(self) -> Moment:
        self.looks += 1
        return self.moment


def test_time_is_counted_for_what_held_in_it(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.sampler as sampler:
            await asyncio.sleep(6.0)
            bench.moment = PACED
            await asyncio.sleep(2.0)
            bench.moment = INPUT
            await asyncio.sleep(1.95)
            sampler.look()
        assert sampler.shares.total_s == pytest.approx(9.95)
        for name, seconds in (("concurrency", 6.0), ("requests", 2.0), ("input", 1.95)):
            assert sampler.shares.seconds(name) == pytest.approx(seconds, abs=TICK_S * 1.01)

    virtually(main())


def test_the_looks_are_as_many_as_the_ticks_and_end_with_it(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.sampler:
            await asyncio.sleep(10.05)
        assert bench.looks == pytest.approx(100, abs=1)
        looks = bench.looks
        await asyncio.sleep(10.0)
        assert bench.looks == looks

    virtually(main())


def test_a_look_that_follows_at_once_counts_nothing_twice(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.sampler as sampler:
            await asyncio.sleep(0.55)
            for _ in range(3):
                sampler.look()
        assert sampler.shares.total_s == pytest.approx(0.55)

    virtually(main())


def test_what_is_shown_does_not_flicker(virtually: Virtually) -> None:
    """Two of three looks find the window full, one the pace: one word, not two in turn."""

    async def main() -> None:
        bench = Bench()
        shown = set()
        async with bench.sampler as sampler:
            assert sampler.binding == "idle"
            await asyncio.sleep(0.35)
            for number in range(60):
                bench.moment = PACED if number % 3 == 0 else FULL
                await asyncio.sleep(TICK_S)
                shown.add(sampler.binding)
        assert shown == {"concurrency"}

    virtually(main())


def test_what_is_new_is_shown_after_half_of_the_two_seconds(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.sampler as sampler:
            await asyncio.sleep(60.0)
            bench.moment = INPUT
            changed_s = bench.now()
            while sampler.binding != "input":
                await asyncio.sleep(TICK_S / 2)
            assert bench.now() - changed_s == pytest.approx(SHOWN_S / 2, abs=2.1 * TICK_S)

    virtually(main())


@pytest.mark.parametrize(("share", "name"), [(1.0, "cpu"), (0.92, "cpu"), (0.8, "concurrency"), (0.0, "concurrency")])
def test_a_thread_that_computes_all_the_time_binds(virtually: Virtually, share: float, name: str) -> None:
    async def main() -> None:
        bench = Bench()
        async with bench.sampler as sampler:
            for _ in range(1000):
                await asyncio.sleep(0.01)
                bench.busy_s += 0.01 * share
        assert sampler.binding == name
        assert sampler.shares.seconds(name) > 9.7

    virtually(main())


def test_a_loop_that_comes_late_binds_and_its_lateness_is_counted(virtually: Virtually) -> None:
    """Something sleeps 0.2 s in the loop, again and again: no computing, but nothing else happens."""

    async def main() -> None:
        bench = Bench()
        slept_s = 0.0
        bench.sampler = Sampler(lambda: FULL, lambda: bench.now() + slept_s, lambda: 0.0)
        async with bench.sampler as sampler:
            for _ in range(20):
                await asyncio.sleep(TICK_S)
                slept_s += 0.2
            await asyncio.sleep(1.0)
        assert sampler.shares.seconds("cpu") == pytest.approx(6.0, abs=0.31)
        assert sampler.shares.total_s == pytest.approx(7.0, abs=0.31)

    virtually(main())


def test_a_stopped_process_was_paused(virtually: Virtually) -> None:
    async def main() -> None:
        bench = Bench()
        stopped_s = 0.0
        bench.sampler = Sampler(lambda: FULL, lambda: bench.now() + stopped_s, lambda: 0.0)
        async with bench.sampler as sampler:
            await asyncio.sleep(5.0)
            stopped_s = 3600.0
            await asyncio.sleep(5.0)
        assert sampler.shares.seconds("paused") == pytest.approx(3600.0, abs=0.2)
        assert sampler.shares.seconds("concurrency") == pytest.approx(10.0, abs=0.3)
        assert sampler.binding == "concurrency", "what is shown soon forgets it"

    virtually(main())


def test_a_mistake_in_the_moment_is_told(virtually: Virtually) -> None:
    async def main() -> None:
        sampler = Sampler(lambda: 1 / 0, asyncio.get_running_loop().time, lambda: 0.0)  # type: ignore[arg-type,return-value]
        with pytest.raises(ZeroDivisionError):
            async with sampler:
                await asyncio.sleep(1.0)

    virtually(main())


# Real time


def compute(seconds: float) -> None:
    """Of this thread's own time, however busy the machine is."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        sum(range(500))


def test_thread_time_is_computing_and_not_sleeping() -> None:
    busy_s = ThreadTime()
    before_s = busy_s()
    time.sleep(0.2)
    slept_s = busy_s() - before_s
    compute(0.1)
    assert 0.0 <= slept_s < 0.1
    assert busy_s() - before_s - slept_s >= 0.09


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_real_loop_that_computes_and_one_that_waits(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> dict[str, float]:
        moment = FULL
        began_s = time.monotonic()
        async with Sampler(lambda: moment) as sampler:
            for _ in range(120):
                compute(0.004)
                await asyncio.sleep(0)
            moment = replace(FULL, waits_for="requests")
            await asyncio.sleep(0.6)
            sampler.look()
            took_s = time.monotonic() - began_s
        assert sampler.shares.total_s == pytest.approx(took_s, abs=TICK_S)
        return {name: sampler.shares.seconds(name) for name in ("cpu", "requests")}  # type: ignore[arg-type]

    with asyncio.Runner(loop_factory=factory) as runner:
        held_s = runner.run(main())
    assert held_s["cpu"] > 0.3 and held_s["requests"] > 0.3


def test_without_schedstat_the_time_on_a_core_alone_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> int:
        raise FileNotFoundError

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        patch.setattr("llmbatch.machine.os.open", missing)
        busy_s = ThreadTime()
    assert busy_s() == pytest.approx(time.thread_time(), abs=0.05)
