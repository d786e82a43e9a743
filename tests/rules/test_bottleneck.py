from dataclasses import replace
from typing import get_args

import pytest

from llmbatch.events import Binding
from llmbatch.rules.bottleneck import Moment, Shares, WaitsFor, WindowKind, binding, window_kind

# Ten places, all of them on the way to the server, and more rows to come.
FULL = Moment(in_flight=10, allowed=10)
HALF = Moment(in_flight=5, allowed=10)
LAST = Moment(in_flight=3, allowed=10, exhausted=True)
QUEUE = Moment("requests", in_flight=4, allowed=10)


@pytest.mark.parametrize(
    ("moment", "binds"),
    [
        # before the wire
        (QUEUE, "requests"),
        (replace(QUEUE, waits_for="day"), "day"),
        (replace(QUEUE, waits_for="tokens"), "tokens"),
        (replace(QUEUE, waits_for="input_tokens"), "input_tokens"),
        (replace(QUEUE, waits_for="output_tokens"), "output_tokens"),
        (replace(QUEUE, waits_for="tenant"), "tenant"),
        (replace(QUEUE, waits_for="gate"), "provider"),
        (replace(QUEUE, waits_for="paused"), "paused"),
        (replace(QUEUE, in_flight=10), "requests"),
        (replace(QUEUE, in_flight=0, exhausted=True), "requests"),  # the last rows wait for their pace
        (replace(QUEUE, resting=50, waits_for_input=True, writing=3), "requests"),
        # the window
        (FULL, "concurrency"),
        (replace(FULL, in_flight=12), "concurrency"),  # it shrank
        (replace(FULL, window="auto"), "concurrency"),
        (replace(FULL, window="max_concurrency"), "concurrency"),
        (replace(FULL, window="descriptors"), "concurrency"),
        (replace(FULL, window="server"), "server"),
        (replace(FULL, waits_for="window"), "concurrency"),
        (replace(FULL, waits_for="window", exhausted=True), "concurrency"),  # all are read, and some not sent
        (replace(FULL, waits_for="window", window="server"), "server"),
        (replace(FULL, resting=5000), "concurrency"),
        (replace(HALF, window="auto"), "concurrency"),  # it has just grown
        # what else holds places
        (replace(FULL, in_flight=4, writing=6), "disk"),
        (replace(FULL, in_flight=5, writing=5), "concurrency"),
        (replace(FULL, in_flight=1, writing=9, window="server"), "disk"),
        (replace(FULL, in_flight=2, in_hooks=8), "hooks"),
        (replace(FULL, in_flight=2, in_hooks=4, writing=4), "disk"),  # what is written was in a hook before
        (replace(FULL, in_flight=2, loading=8), "input"),
        (replace(FULL, in_flight=0, writing=10), "disk"),
        (replace(HALF, waits_for_output=True, waits_for_input=True), "disk"),
        # free places
        (replace(HALF, waits_for_input=True), "input"),
        (replace(HALF, waits_for_input=True, in_flight=0), "input"),
        (replace(HALF, waits_for_input=True, resting=2), "input"),
        (replace(HALF, waits_for_input=True, in_flight=0, in_hooks=3), "input"),
        (replace(HALF, resting=5000), "retries"),  # so many rest that none more is taken
        (replace(LAST, resting=1), "retries"),
        (replace(LAST, in_flight=0, resting=1), "retries"),
        (replace(LAST, resting=1, gate_closed=True), "provider"),
        (replace(LAST, gate_closed=True), "tail"),  # nobody is left whom the pause holds up
        # the end
        (LAST, "tail"),
        (replace(LAST, in_flight=10), "tail"),  # as many rows as places, and none more
        (replace(LAST, writing=4), "disk"),
        (replace(LAST, in_hooks=4), "hooks"),
        (replace(LAST, in_flight=0, writing=1), "disk"),
        (replace(LAST, in_flight=0, waits_for_output=True), "disk"),  # it is put in order
        # nothing
        (Moment(), "idle"),
        (Moment(allowed=10), "idle"),
        (Moment(exhausted=True), "idle"),
        (Moment(allowed=10, exhausted=True), "idle"),
        # this machine
        (replace(FULL, cpu_share=0.9), "cpu"),
        (replace(FULL, cpu_share=0.89), "concurrency"),
        (replace(QUEUE, cpu_share=0.95), "cpu"),  # a higher limit would not help
        (replace(QUEUE, waits_for="paused", cpu_share=1.0), "paused"),
        (replace(LAST, cpu_share=1.0), "cpu"),
        (replace(HALF, waits_for_input=True, cpu_share=1.0), "cpu"),
        (replace(FULL, late_s=0.05), "cpu"),  # something sleeps or reads in the loop
        (replace(FULL, late_s=0.049), "concurrency"),
        (replace(QUEUE, late_s=0.3), "requests"),  # a pace does not suffer from that
        (replace(FULL, late_s=4.9), "cpu"),
        # stopped by Ctrl-Z, or a lid was closed
        (replace(FULL, late_s=5.0), "paused"),
        (replace(FULL, late_s=3600.0, cpu_share=0.0001), "paused"),
        (replace(FULL, late_s=20.0, cpu_share=0.5), "cpu"),  # a very long computation
        (replace(FULL, late_s=20.0, cpu_share=1.0), "cpu"),
    ],
)
def test_binding(moment: Moment, binds: Binding) -> None:
    assert binding(moment) == binds


@pytest.mark.parametrize("waits_for", [None, *get_args(WaitsFor)])
def test_every_wait_binds_something(waits_for: WaitsFor | None) -> None:
    assert binding(replace(FULL, waits_for=waits_for)) in set(get_args(Binding)) - {"idle"}


@pytest.mark.parametrize(
    ("concurrency", "max_concurrency", "size", "grows", "kind"),
    [
        (10, None, 10, False, "fixed"),
        (10, 5, 10, False, "fixed"),
        (5000, None, 960, False, "descriptors"),
        (960, None, 960, False, "descriptors"),
        (None, None, 960, False, "descriptors"),
        (None, 2000, 960, False, "descriptors"),
        (None, 100, 100, False, "max_concurrency"),
        (None, 100, 101, True, "max_concurrency"),  # in flight since before it shrank
        (None, 100, 99, True, "auto"),
        (None, 100, 64, False, "server"),
        (None, None, 16, True, "auto"),
        (None, None, 16, False, "server"),
    ],
)
def test_window_kind(
    concurrency: int | None, max_concurrency: int | None, size: int, grows: bool, kind: WindowKind
) -> None:
    found = window_kind(
        concurrency=concurrency, max_concurrency=max_concurrency, descriptors=960, size=size, grows=grows
    )
    assert found == kind


def test_shares_are_of_the_whole_time_the_largest_first() -> None:
    shares = Shares()
    for name, seconds in (("tail", 1.0), ("requests", 2.0), ("tail", 0.5), ("requests", 6.5), ("idle", 0.0)):
        shares.add(name, seconds)
    assert shares.total_s == 10.0 and shares.seconds("tail") == 1.5 and shares.seconds("cpu") == 0.0
    assert list(shares.by_share().items()) == [("requests", 0.85), ("tail", 0.15)]
    assert shares.by_share(leave_out="requests") == {"tail": 1.0}


def test_no_time_has_no_shares() -> None:
    shares = Shares()
    assert shares.by_share() == {} and shares.total_s == 0.0
    shares.add("paused", 3.0)
    assert shares.by_share(leave_out="paused") == {}
