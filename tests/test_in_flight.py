"""What is noted for the run after a kill is never below the truth, and seldom written."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from llmbatch.desk import SETTLE_S, InFlight

Virtually = Callable[[Coroutine[Any, Any, Any]], Any]


class Numbers:
    """The true number, and what was noted of it."""

    def __init__(self) -> None:
        self.true = 0
        self.noted: list[int] = []
        self.in_flight = InFlight(lambda: self.true, self.noted.append)

    def set(self, number: int) -> None:
        self.true = number
        self.in_flight.changed()


def test_rise_is_noted_at_once_and_a_fall_a_little_later(virtually: Virtually) -> None:
    async def main() -> None:
        numbers = Numbers()
        for number in (1, 2, 3, 2, 1):
            numbers.set(number)
        assert numbers.noted == [1, 2, 3]
        await asyncio.sleep(1.1 * SETTLE_S)
        assert numbers.noted == [1, 2, 3, 1]

    virtually(main())


def test_busy_run_notes_next_to_nothing(virtually: Virtually) -> None:
    async def main() -> None:
        numbers = Numbers()
        numbers.set(64)
        for _ in range(1_000):
            numbers.set(63)
            numbers.set(64)
            await asyncio.sleep(0.001)
        assert len(numbers.noted) <= 1 + 2 * 1.0 / SETTLE_S

    virtually(main())


def test_noted_number_is_never_below_the_truth_and_comes_down_to_it(virtually: Virtually) -> None:
    async def main() -> None:
        numbers, chance = Numbers(), random.Random(5)
        numbers.set(1)
        for _ in range(2_000):
            numbers.set(max(0, numbers.true + chance.choice((-2, -1, 1, 2))))
            assert numbers.noted[-1] >= numbers.true
            await asyncio.sleep(chance.uniform(0, SETTLE_S / 2))
            assert numbers.noted[-1] >= numbers.true
        numbers.set(0)
        await asyncio.sleep(1.1 * SETTLE_S)
        assert numbers.noted[-1] == 0

    virtually(main())
