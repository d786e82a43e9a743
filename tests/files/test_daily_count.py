"""--rpd: counted over runs, before anything is sent, and not one write for each request."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from llmbatch.files.daily_count import DailyCount
from llmbatch.files.limit_group import account_name
from llmbatch.rules.daily import HOUR_S, hour_of

SPENDER = Path(__file__).parent / "daily_spender.py"
NOON = 1_795_348_800.0  # 2026-11-22 12:00 UTC


@dataclass
class World:
    """Runs that share a state directory, and what they complained of."""

    directory: Path
    warnings: list[str] = field(default_factory=list)

    def daily(self, per_day: int = 5, account: str = "account", group: str | None = None) -> DailyCount:
        return DailyCount.open(account, per_day, self.directory, self.warnings.append, group)

    @property
    def file(self) -> Path:
        return self.directory / "limits" / f"@{account_name('account')}.day"

    @property
    def counted(self) -> int:
        return sum(json.loads(self.file.read_bytes())["hours"].values())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state")


def spend(daily: DailyCount, now_unix_s: float, most: int = 1_000_000) -> int:
    """How many of ``most`` were sent."""
    sent = 0
    while sent < most and daily.left(now_unix_s):
        daily.take(now_unix_s)
        sent += 1
    return sent


def test_counts_down_to_nothing_and_says_when_one_returns(world: World) -> None:
    daily = world.daily()
    lefts = []
    for _ in range(5):
        lefts.append(daily.left(NOON))
        daily.take(NOON)
    assert lefts == [5, 4, 3, 2, 1]
    assert daily.left(NOON) == 0
    assert daily.returns_at(NOON) == NOON + 25 * HOUR_S
    assert daily.left(NOON + 25 * HOUR_S - 1) == 0
    assert daily.left(NOON + 25 * HOUR_S) == 5


def test_while_there_are_some_they_are_here_now(world: World) -> None:
    assert world.daily().returns_at(NOON) == NOON


def test_the_next_run_goes_on_counting(world: World) -> None:
    first = world.daily()
    spend(first, NOON, 3)
    first.close()
    first.close()
    assert world.daily().left(NOON + 60) == 2
    assert world.daily(per_day=3).left(NOON + 60) == 0
    assert world.daily(per_day=2).left(NOON + 60) == 0


def test_runs_at_the_same_time_count_together(world: World) -> None:
    runs = [world.daily(10_000), world.daily(10_000)]
    chance, sent = Random(1), 0
    while any(run.left(NOON) for run in runs):
        sent += spend(chance.choice(runs), NOON, chance.randrange(40))
    assert sent == 10_000 == world.counted


def test_what_was_counted_and_not_sent_is_given_back(world: World) -> None:
    daily = world.daily(10_000)
    spend(daily, NOON, 3)
    assert world.counted == 10
    daily.close()
    assert world.counted == 3


def test_a_kill_loses_no_more_than_a_block_and_never_counts_too_few(world: World) -> None:
    daily = world.daily(10_000)
    spend(daily, NOON, 33)
    assert world.counted == 40  # and this run is never heard of again
    assert world.daily(10_000).left(NOON) == 9960


def test_high_rates_do_not_write_for_every_request(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (writes.append(1), write(fd, data))[1])
    assert spend(world.daily(100_000), NOON, 20_000) == 20_000
    assert len(writes) == 200


def test_a_spent_day_is_not_asked_again_for_every_row(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    daily = world.daily()
    spend(daily, NOON)
    locks = []
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: (locks.append(how), flock(fd, how)))
    for call in range(1000):
        assert daily.left(NOON + call / 500) == 0
    assert len(locks) <= 2 * 2


def test_what_another_run_gives_back_is_found_within_a_second(world: World) -> None:
    first, second = world.daily(5000), world.daily(5000)
    spend(first, NOON, 4998)
    assert second.left(NOON) == 0
    first.close()
    assert second.left(NOON + 1.0) == 2


def test_a_block_belongs_to_its_hour(world: World) -> None:
    daily = world.daily(10_000)
    spend(daily, NOON + HOUR_S - 1, 3)
    spend(daily, NOON + HOUR_S + 1, 4)
    hour = hour_of(NOON)
    assert json.loads(world.file.read_bytes())["hours"] == {str(hour): 3, str(hour + 1): 10}


def test_a_clock_that_is_set_back_forgets_nothing_and_stops_nobody(world: World) -> None:
    daily = world.daily()
    spend(daily, NOON, 3)
    assert daily.left(NOON - 2 * HOUR_S) == 2
    assert spend(daily, NOON - 2 * HOUR_S) == 2
    assert daily.left(NOON - 3 * HOUR_S) == 0


def test_never_more_than_the_limit_in_any_24_hours_over_many_runs(world: World) -> None:
    chance, now_s, sent = Random(2), NOON, list[float]()
    for _ in range(60):
        runs = [world.daily(3000) for _ in range(chance.randint(1, 3))]
        for _ in range(20):
            now_s += chance.uniform(0, 1500)
            sent += [now_s] * spend(chance.choice(runs), now_s, chance.randrange(300))
        for run in runs:
            if chance.random() < 0.7:
                run.close()
    most = max(sum(1 for other in sent if at - 24 * HOUR_S < other <= at) for at in set(sent))
    assert 2950 <= most <= 3000


def test_accounts_and_groups_count_apart(world: World) -> None:
    spend(world.daily(), NOON)
    assert world.daily(account="another").left(NOON) == 5
    assert spend(world.daily(group="team"), NOON, 2) == 2
    assert world.daily(group="team").left(NOON) == 3
    assert world.daily(group="team2").left(NOON) == 5


def test_the_file_is_private_and_names_no_key(world: World) -> None:
    world.daily(account="https://api.example\0sk-canary").left(NOON)
    [file] = (world.directory / "limits").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "canary" not in file.name and b"canary" not in file.read_bytes()


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"\0" * 600,
        b"[]",
        b"{}",
        b'{"llmbatch":1}',
        b'{"llmbatch":2,"hours":{}}',
        b'{"llmbatch":1,"hours":[]}',
        b'{"llmbatch":1,"hours":{"x":1}}',
        b'{"llmbatch":1,"hours":{"498708":"many"}}',
        b'{"llmbatch":1,"hours":{"498708":1.5}}',
    ],
)
def test_garbage_is_replaced_and_said_once(world: World, garbage: bytes) -> None:
    world.file.parent.mkdir(parents=True, mode=0o700)
    world.file.write_bytes(garbage)
    world.file.chmod(0o600)
    assert spend(world.daily(), NOON) == 5
    assert world.warnings == ["--rpd 5: its file held something else: the count begins anew"]
    assert world.daily().left(NOON) == 0


def test_a_file_that_can_not_be_used_is_said_once_and_the_run_counts_by_itself(world: World) -> None:
    world.file.mkdir(parents=True, mode=0o700)
    daily = world.daily()
    assert spend(daily, NOON) == 5
    assert daily.returns_at(NOON) == NOON + 25 * HOUR_S
    daily.close()
    [warning] = world.warnings
    assert warning.startswith("--rpd 5: cannot use ") and "Is a directory; only what this run sends" in warning


def test_a_user_without_a_home(world: World) -> None:
    daily = DailyCount.open("account", 5, None, world.warnings.append)
    assert spend(daily, NOON) == 5
    assert len(world.warnings) == 1 and "set XDG_STATE_HOME" in world.warnings[0]


def test_a_disk_that_fails_in_mid_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    daily = world.daily()
    spend(daily, NOON, 2)

    def fail(*args: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    assert spend(daily, NOON) == 3
    assert len(world.warnings) == 1 and "Input/output error" in world.warnings[0]


def test_what_is_sent_while_others_have_the_lock_is_counted_afterwards(world: World) -> None:
    daily = world.daily()
    spend(daily, NOON, 1)
    fd = os.open(world.file, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert spend(daily, NOON, 2) == 2
    assert daily.left(NOON) == 2 and world.counted == 1
    os.close(fd)
    assert daily.left(NOON + 0.1) == 2
    assert world.counted == 4  # one of them is a block that is not sent yet
    daily.close()
    assert world.counted == 3


def test_what_is_sent_while_others_have_the_lock_is_counted_at_the_latest_at_the_end(world: World) -> None:
    daily = world.daily()
    spend(daily, NOON, 1)
    fd = os.open(world.file, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    spend(daily, NOON, 2)
    os.close(fd)
    daily.close()
    assert world.counted == 3


def test_a_real_process_that_is_killed_was_counted(world: World) -> None:
    command = [sys.executable, str(SPENDER), str(world.directory), "20000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        sent = sum(1 for _ in zip(range(500), child.stdout, strict=False))
        child.kill()
        sent += len(child.stdout.readlines())
    assert sent <= world.counted <= sent + 20
