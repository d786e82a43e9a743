"""The rate that a server allows is found from its refusals alone: buckets of a second and of a minute, and noise."""

from __future__ import annotations

import math
from random import Random

import pytest

from llmbatch.rules.finder import ENOUGH, FIRST_SHARE, RateFinder
from llmbatch.rules.pace import MINUTE_S, Pace

# What a gate does of its own where the finder knows nothing yet.
OWN_PAUSE_S = 0.75


class Bucket:
    """A token bucket that holds ``burst_s`` seconds of its rate; of what it grants, ``noise`` is refused by chance."""

    def __init__(self, per_s: float, burst_s: float = 1.0, noise: float = 0.0, seed: int = 1) -> None:
        self.per_s = per_s
        self.level = self.size = max(1.0, per_s * burst_s)
        self._at_s = 0.0
        self._noise, self._chance = noise, Random(seed)

    def grants(self, now_s: float) -> bool:
        self.level = min(self.size, self.level + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        if self.level < 1.0 or self._chance.random() < self._noise:
            return False
        self.level -= 1.0
        return True


class Client:
    """Sends as quickly as the finder lets it, never more than ``most_per_s``; answers come at once."""

    def __init__(self, bucket: Bucket, most_per_s: float = 1000.0) -> None:
        self.bucket, self.most_per_s = bucket, most_per_s
        self.finder = RateFinder(0.0)
        self.pace = Pace(1.0)
        self.now_s = self.held_until_s = 0.0

    def run(self, seconds: float) -> tuple[float, float]:
        """What was granted per second, and the share that was refused."""
        end_s, granted, refused = self.now_s + seconds, 0, 0
        while self.now_s < end_s:
            per_s = self.finder.per_s(self.now_s)
            if per_s is not None:
                self.pace.change(per_s * MINUTE_S)
            wait_s = max(self.held_until_s - self.now_s, 0.0 if per_s is None else self.pace.wait_s(self.now_s))
            if wait_s > 0:
                self.now_s += min(wait_s, 0.25)
                continue
            if per_s is not None:
                self.pace.take(self.now_s)
            self.finder.sent(self.now_s)
            if self.bucket.grants(self.now_s):
                granted += 1
                self.finder.answered(self.now_s)
            else:
                refused += 1
                pause_s = self.finder.refused(self.now_s)
                self.held_until_s = max(self.held_until_s, self.now_s + (OWN_PAUSE_S if pause_s is None else pause_s))
            self.now_s += 1.0 / self.most_per_s
        return granted / seconds, refused / (granted + refused)

    def wait(self, seconds: float) -> None:
        """Nothing is sent, while somebody asks ten times a second when it may be."""
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            self.finder.per_s(self.now_s)


def test_nobody_says_no_then_there_is_no_rate() -> None:
    finder = RateFinder(0.0)
    for number in range(1000):
        finder.sent(number / 100)
    assert not finder.found and finder.per_s(10.0) is None


@pytest.mark.parametrize("burst_s", [1.0, 60.0])
@pytest.mark.parametrize("per_s", [2.0, 10.0, 100.0])
def test_finds_the_rate_and_is_refused_little(per_s: float, burst_s: float) -> None:
    client = Client(Bucket(per_s, burst_s), most_per_s=10 * per_s)
    client.run(90.0)
    granted_per_s, refused = client.run(120.0)
    assert granted_per_s >= 0.92 * per_s
    assert refused <= 0.03


@pytest.mark.parametrize("burst_s", [1.0, 60.0])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_limit_that_changes_is_followed(factor: float, burst_s: float) -> None:
    client = Client(Bucket(20.0, burst_s))
    client.run(120.0)
    client.bucket.per_s *= factor
    client.bucket.size *= factor
    client.run(30.0 if burst_s == 1.0 else 90.0)
    granted_per_s, refused = client.run(60.0)
    assert granted_per_s >= 0.9 * 20.0 * factor
    assert refused <= 0.05


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_does_not_throttle_a_quick_server(seed: int) -> None:
    """One answer in a hundred is a refusal that has nothing to do with the rate."""
    client = Client(Bucket(1e9, noise=0.01, seed=seed), most_per_s=200.0)
    granted_per_s, refused = client.run(600.0)
    assert granted_per_s >= 0.85 * 200.0 and 0.005 < refused < 0.015


def test_a_refusal_before_twenty_requests_were_let_in_says_nothing() -> None:
    finder = RateFinder(0.0)
    for _ in range(ENOUGH):
        finder.sent(0.0)
    assert finder.refused(0.1) is None and not finder.found
    for _ in range(2):
        finder.sent(0.2)
    assert finder.refused(0.3) is not None and finder.found


def test_the_first_refusal_halves_what_was_sent_lately() -> None:
    finder = RateFinder(0.0)
    for number in range(100):
        finder.sent(number / 10)
    finder.refused(10.0)
    found = finder.per_s(10.0)
    assert found is not None and FIRST_SHARE * 9 <= found <= FIRST_SHARE * 11


def test_a_first_refusal_that_comes_late_is_of_what_was_sent_a_minute_ago() -> None:
    """Fifty requests at once, each takes most of a minute, and one of them is refused then."""
    finder = RateFinder(0.0)
    for _ in range(50):
        finder.sent(1.0)
    finder.refused(50.0)
    found = finder.per_s(50.0)
    assert found is not None and found >= 0.4


def test_refusals_of_what_was_sent_together_are_one() -> None:
    finder = RateFinder(0.0)
    for _ in range(100):
        finder.sent(0.0)
    for number in range(60):
        finder.refused(1.0 + number / 100)
    found = finder.per_s(1.6)
    assert found is not None and found > 40.0


def test_a_long_pause_neither_raises_the_rate_nor_lowers_it() -> None:
    """The bucket is full after it: what was let in since the refusal before it says nothing."""
    client = Client(Bucket(1.0), most_per_s=20.0)
    client.run(120.0)
    usual_per_s, _ = client.run(300.0)
    before = client.finder.per_s(client.now_s)
    client.wait(3600.0)
    after = client.finder.per_s(client.now_s)
    assert before is not None and after is not None and after <= 1.5 * before
    client.run(30.0)
    granted_per_s, refused = client.run(120.0)
    assert granted_per_s >= 0.9 * usual_per_s and refused <= 0.1


def test_a_refusal_just_after_a_long_pause_leaves_the_rate() -> None:
    client = Client(Bucket(10.0))
    client.run(120.0)
    before = client.finder.per_s(client.now_s)
    client.now_s += 3600.0
    for _ in range(5):
        client.finder.sent(client.now_s)
        client.now_s += 0.01
    pauses = [client.finder.refused(client.now_s + number / 10) or 0.0 for number in range(5)]
    after = client.finder.per_s(client.now_s)
    assert before is not None and after is not None and after >= 0.5 * before
    assert max(pauses) < 2.0


def test_a_storm_forgets_what_its_refusals_said() -> None:
    client = Client(Bucket(10.0))
    client.run(120.0)
    before = client.finder.per_s(client.now_s)
    for number in range(20):
        client.finder.sent(client.now_s)
        client.finder.refused(client.now_s + number)
        client.finder.storm()
    after = client.finder.per_s(client.now_s + 20)
    assert before is not None and after is not None and after >= 0.8 * before


def test_a_storm_from_the_first_request_on_leaves_no_rate() -> None:
    finder = RateFinder(0.0)
    for number in range(8):
        finder.sent(float(number))
        finder.refused(number + 0.5)
    finder.storm()
    assert not finder.found and finder.per_s(9.0) is None


@pytest.mark.parametrize("step_s", [-100.0, 0.0, 1e-9, 1e6])
def test_a_clock_that_stands_or_jumps_gives_a_rate_still(step_s: float) -> None:
    finder, now_s = RateFinder(0.0), 1000.0
    for _ in range(ENOUGH):
        finder.sent(now_s)
    for _ in range(50):
        finder.sent(now_s)
        pause_s = finder.refused(now_s)
        per_s = finder.per_s(now_s)
        assert per_s is not None and 0.0 < per_s < math.inf
        assert pause_s is not None and 0.0 <= pause_s <= MINUTE_S
        now_s += step_s
