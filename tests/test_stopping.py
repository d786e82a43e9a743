"""How a run ends early: the first request drains, the second abandons; signals come in as requests."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from llmbatch.stopping import Stop, StopReason, signal_shows, signals_stop

WHY = StopReason("the disk failed", 5)


def test_only_the_first_reason_counts() -> None:
    stop, acts = Stop(), []
    stop.when_requested(lambda: acts.append("drain"))
    assert not stop.requested
    stop.request(WHY)
    stop.request(StopReason("stopped by SIGINT", 130))
    assert stop.requested and stop.reason == WHY and acts == ["drain"] and not stop.abandoned


def test_abandoning_happens_once() -> None:
    stop, acts = Stop(), []
    stop.when_abandoned(lambda: acts.append("cancel"))
    stop.abandon()
    stop.abandon()
    assert stop.abandoned and acts == ["cancel"]


def test_who_comes_late_is_told_at_once() -> None:
    """A signal may come before the run has begun."""
    stop, acts = Stop(), []
    stop.request(WHY)
    stop.abandon()
    stop.when_requested(lambda: acts.append("drain"))
    stop.when_abandoned(lambda: acts.append("cancel"))
    assert acts == ["drain", "cancel"]


def test_all_listeners_are_told_in_order() -> None:
    stop, acts = Stop(), []
    for number in range(3):
        stop.when_requested(lambda number=number: acts.append(number))  # type: ignore[misc]
    stop.request(WHY)
    assert acts == [0, 1, 2]


@pytest.fixture
def handlers() -> Iterator[None]:
    """Whatever a test does to signals is undone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)  # fmt: skip
async def test_first_signal_drains_second_abandons(handlers: None, number: signal.Signals, exit_code: int) -> None:
    stop, drained, abandoned = Stop(), asyncio.Event(), asyncio.Event()
    stop.when_requested(drained.set)
    stop.when_abandoned(abandoned.set)
    with signals_stop(stop, asyncio.get_running_loop()):
        os.kill(os.getpid(), number)
        await drained.wait()
        assert stop.reason == StopReason(f"stopped by {number.name}", exit_code) and not stop.abandoned
        os.kill(os.getpid(), number)
        await abandoned.wait()


async def test_another_signal_is_a_second_one_too(handlers: None) -> None:
    stop, abandoned = Stop(), asyncio.Event()
    stop.when_abandoned(abandoned.set)
    with signals_stop(stop, asyncio.get_running_loop()):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            await asyncio.sleep(0)
        await abandoned.wait()
    assert stop.reason is not None and stop.reason.exit_code == 143


async def test_a_signal_during_a_drain_for_another_reason_abandons(handlers: None) -> None:
    stop, abandoned = Stop(), asyncio.Event()
    stop.request(WHY)
    stop.when_abandoned(abandoned.set)
    with signals_stop(stop, asyncio.get_running_loop()):
        os.kill(os.getpid(), signal.SIGINT)
        await abandoned.wait()
    assert stop.reason == WHY


async def test_a_signal_that_was_ignored_stays_ignored(handlers: None) -> None:
    """``nohup llmbatch run …``"""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = Stop()
    with signals_stop(stop, asyncio.get_running_loop()):
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.01)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize(("of_the_run", "left_with"), [(0, 0), (1, 1), (None, 143)])
async def test_afterwards_a_signal_ends_the_process_with_the_code_of_its_run(
    handlers: None, monkeypatch: pytest.MonkeyPatch, of_the_run: int | None, left_with: int
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    stop = Stop()
    with signals_stop(stop, asyncio.get_running_loop()):
        stop.exit_code = of_the_run
    signal.raise_signal(signal.SIGTERM)
    assert left == [left_with]


@pytest.mark.parametrize(("before", "shown"), [(signal.SIG_DFL, 2), (signal.SIG_IGN, 0)])
async def test_usr1_shows_and_ends_nothing(before: signal.Handlers, shown: int) -> None:
    told: list[str] = []
    old = signal.signal(signal.SIGUSR1, before)
    try:
        with signal_shows(lambda: told.append("status"), asyncio.get_running_loop()):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.sleep(0.01)
        assert len(told) == shown
        assert signal.getsignal(signal.SIGUSR1) == before
    finally:
        signal.signal(signal.SIGUSR1, old)
