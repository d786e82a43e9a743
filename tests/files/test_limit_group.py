"""--limit-group: two processes come out even and within the budget, and a file that can not be used stops nobody."""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from sliding import most_in_a_minute

from llmbatch.errors import OptionsError
from llmbatch.files.limit_group import GroupMeter, LimitGroup
from llmbatch.options import RunOptions
from llmbatch.rules.lease import LEASE_S
from llmbatch.rules.pace import Kind

SPENDER = Path(__file__).parent / "group_spender.py"


@dataclass
class Clock:
    now_s: float = 5000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Run:
    """One of several runs in virtual time; it has a request every ``demand_s`` seconds, always one if that is 0."""

    group: LimitGroup
    meter: GroupMeter
    demand_s: float = 0.0
    begin_s: float = 0.0
    end_s: float = float("inf")
    sent_s: list[float] = field(default_factory=list)


@dataclass
class World:
    """Runs that share a directory and a clock, and what they complained of."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    warnings: list[str] = field(default_factory=list)

    def group(self, name: str = "team") -> LimitGroup:
        return LimitGroup.open(name, self.directory, self.warnings.append, self.clock)

    def run(self, per_minute: float, kind: Kind = "requests", demand_s: float = 0.0, **when: float) -> Run:
        group = self.group()
        return Run(group, group.meter("account", kind, per_minute), demand_s, **when)

    @property
    def file(self) -> Path:
        return self.directory / "limits" / "team.group"

    def spend(self, runs: list[Run], seconds: float, amount: float = 1.0) -> None:
        """Timers come up to 2 ms late, as in life."""
        chance, start_s = Random(3), self.clock.now_s
        due = [(start_s + run.begin_s + chance.uniform(0, 0.002), at) for at, run in enumerate(runs)]
        heapq.heapify(due)
        while due and due[0][0] < start_s + seconds:
            self.clock.now_s, at = heapq.heappop(due)
            run = runs[at]
            if self.clock.now_s - start_s > run.end_s:
                run.group.close()
                continue
            wait_s = run.meter.wait_s(self.clock.now_s, amount)
            if wait_s == 0.0:
                run.meter.take(self.clock.now_s, amount)
                run.sent_s.append(self.clock.now_s - start_s)
                next_s = start_s + run.begin_s + len(run.sent_s) * run.demand_s
                wait_s = max(0.0, next_s - self.clock.now_s)
            heapq.heappush(due, (self.clock.now_s + wait_s + chance.uniform(0, 0.002) * (wait_s > 0), at))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state")


def together(*runs: Run) -> list[float]:
    return sorted(sent_s for run in runs for sent_s in run.sent_s)


@pytest.mark.parametrize(("per_minute", "seconds"), [(60, 300), (600, 130), (6000, 70)])
def test_two_hungry_runs_share_evenly_all_that_is_allowed_and_no_more(
    world: World, per_minute: int, seconds: float
) -> None:
    runs = [world.run(per_minute), world.run(per_minute)]
    world.spend(runs, seconds)
    sent_s = together(*runs)
    assert len(sent_s) >= 0.99 * per_minute * seconds / 60
    assert most_in_a_minute(sent_s) <= per_minute
    assert all(len(run.sent_s) >= 0.45 * len(sent_s) for run in runs)
    assert world.warnings == []


@pytest.mark.parametrize("demand_s", [0.02, 0.05, 0.5])
def test_what_one_run_does_not_need_the_others_have(world: World, demand_s: float) -> None:
    modest, hungry = world.run(3000, demand_s=demand_s), world.run(3000)
    world.spend([modest, hungry], 65)
    sent_s = together(modest, hungry)
    assert most_in_a_minute(sent_s) <= 3000
    assert len(sent_s) >= 0.97 * 3000 * 65 / 60
    assert len(modest.sent_s) >= 0.97 * min(65 / demand_s, 3000 * 65 / 60 / 2)


def test_three_runs_that_come_and_go_never_exceed_the_limit(world: World) -> None:
    runs = [world.run(1200), world.run(1200, begin_s=31.0, end_s=70.0), world.run(1200, begin_s=45.3)]
    world.spend(runs, 120)
    assert most_in_a_minute(together(*runs)) <= 1200
    assert len(together(*runs)) >= 0.99 * 1200 * 2


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "killed"])
def test_when_one_ends_the_other_has_all_within_a_second(world: World, closes: bool) -> None:
    staying, going = world.run(600), world.run(600, end_s=10.0)
    if not closes:
        going.group.close = lambda: None  # type: ignore[method-assign]
    world.spend([staying, going], 21.0)
    assert sum(1 for sent_s in staying.sent_s if 11.0 <= sent_s < 21.0) >= 99


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize(
    ("per_minute", "demand_s"),
    [(600, 0.0), (1800, 0.0), (6000, 0.0), (60_000, 0.0), (6000, 0.02), (60_000, 0.003), (1e7, 0.001), (1e7, 0.02)],
)
def test_each_run_touches_the_file_some_twenty_times_a_second(
    world: World, per_minute: float, demand_s: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when much less is sent than is allowed: a lease that is too old when it is had would be asked for again."""
    touched = []
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: (touched.append(how), flock(fd, how)))
    world.spend([world.run(per_minute, demand_s=demand_s) for _ in range(runs)], 10)
    assert sum(1 for how in touched if how != fcntl.LOCK_UN) <= runs * 10 * 1.1 / LEASE_S


def test_tokens_are_shared_and_stay_within_the_limit_and_one_request_of_each_run(world: World) -> None:
    runs = [world.run(120_000, "tokens"), world.run(120_000, "tokens")]
    world.spend(runs, 200, amount=3000.0)
    sent_s = together(*runs)
    assert 3000 * len(sent_s) >= 0.98 * 120_000 * 200 / 60
    assert most_in_a_minute(sent_s, [3000.0] * len(sent_s)) <= 120_000 + 2 * 3000
    assert all(len(run.sent_s) >= 0.45 * len(sent_s) for run in runs)


@pytest.mark.parametrize("tpm", [90_000, 120_000, 180_000], ids=["tokens bind", "both bind", "requests bind"])
@pytest.mark.parametrize("kinds", [("requests", "tokens"), ("tokens", "requests")])
def test_two_runs_with_limits_of_requests_and_of_tokens(world: World, tpm: int, kinds: tuple[Kind, Kind]) -> None:
    """Who waits for the one must not lose the other meanwhile."""
    groups = [world.group(), world.group()]
    limits = {"requests": 60.0, "tokens": float(tpm)}
    meters = [{kind: group.meter("account", kind, limits[kind]) for kind in kinds} for group in groups]
    chance, start_s, sent = Random(4), world.clock.now_s, [0, 0]
    due = [(start_s, 0), (start_s, 1)]
    while due and due[0][0] < start_s + 600:
        world.clock.now_s, at = heapq.heappop(due)
        amounts = {"requests": 1.0, "tokens": 2000.0}
        wait_s = max(meter.wait_s(world.clock.now_s, amounts[kind]) for kind, meter in meters[at].items())
        if wait_s == 0.0:
            for kind, meter in meters[at].items():
                meter.take(world.clock.now_s, amounts[kind])
            sent[at] += 1
            meters[at]["tokens"].settle(world.clock.now_s, 2000.0 * chance.uniform(-0.6, 0.6))
        heapq.heappush(due, (world.clock.now_s + wait_s + chance.uniform(0, 0.002), at))
    assert sum(sent) >= 0.88 * min(600, tpm / 2000 * 10)
    assert min(sent) >= 0.45 * sum(sent)


def test_each_account_and_kind_is_a_limit_of_its_own(world: World) -> None:
    group = world.group()
    meters = [
        group.meter("https://a\0key", "requests", 60),
        group.meter("https://a\0key", "tokens", 60),
        group.meter("https://b\0key", "requests", 60),
        world.group("other").meter("https://a\0key", "requests", 60),
    ]
    for meter in meters:
        assert meter.wait_s(0.0) == 0.0
        meter.take(0.0)
    assert all(meter.wait_s(0.0) > 0.5 for meter in meters)
    assert group.meter("https://a\0key", "requests", 60) is meters[0]


def test_a_limit_may_change(world: World) -> None:
    group = world.group()
    meter = group.meter("account", "requests", 60)
    assert meter.wait_s(0.0) == 0.0
    meter.take(0.0)
    meter.change(6000)
    assert meter.per_minute == 6000
    world.clock.now_s += 1.0
    run = Run(group, meter)
    world.spend([run], 1.0)
    assert 98 <= len(run.sent_s) <= 106


def test_nothing_costs_nothing(world: World) -> None:
    meter = world.group().meter("account", "output_tokens", 60)
    assert [meter.wait_s(0.0, 0.0) for _ in range(3)] == [0.0] * 3


def test_the_run_clock_may_be_another_one(world: World) -> None:
    meter = world.group().meter("account", "requests", 60)
    assert meter.wait_s(3.0) == 0.0
    meter.take(3.0)
    assert 1.0 <= meter.wait_s(3.0) < 1.01


def test_the_file_is_private_and_holds_no_key(world: World) -> None:
    meter = world.group().meter("https://api.example\0sk-canary-123", "requests", 60)
    meter.wait_s(0.0)
    assert world.file.stat().st_mode & 0o777 == 0o600
    assert world.file.parent.stat().st_mode & 0o777 == 0o700
    assert b"canary" not in world.file.read_bytes() and b"example" not in world.file.read_bytes()


def test_what_is_left_is_given_back_at_the_end(world: World) -> None:
    first, second = world.run(6), world.run(6)
    assert first.meter.wait_s(0.0) == 0.0
    first.group.close()
    first.group.close()
    assert second.meter.wait_s(0.0) == 0.0


def test_limits_that_rest_are_forgotten(world: World) -> None:
    group = world.group()
    for number in range(20):
        group.meter(f"account {number}", "requests", 600).wait_s(0.0)
    world.clock.now_s += 100.0
    group.meter("account", "requests", 600).wait_s(0.0)
    assert len(json.loads(world.file.read_bytes())["tails_s"]) == 1


def test_after_a_new_start_of_the_machine_nothing_is_leased(world: World) -> None:
    world.run(6).meter.wait_s(0.0)
    content = json.loads(world.file.read_bytes())
    content |= {"boot": "another", "tails_s": {key: tail_s + 500.0 for key, tail_s in content["tails_s"].items()}}
    world.file.write_text(json.dumps(content))
    assert world.run(6).meter.wait_s(0.0) == 0.0
    assert world.warnings == []


def test_without_a_name_for_the_start_a_time_that_makes_no_sense_is_not_believed(world: World) -> None:
    world.run(6).meter.wait_s(0.0)
    world.clock.now_s = 3.0
    assert world.run(6).meter.wait_s(0.0) == 0.0


def test_a_time_ahead_that_makes_sense_is_waited_for(world: World) -> None:
    world.run(6).meter.wait_s(0.0)
    content = json.loads(world.file.read_bytes())
    world.file.write_text(json.dumps(content | {"tails_s": dict.fromkeys(content["tails_s"], 5100.0)}))
    assert world.run(6).meter.wait_s(0.0) == pytest.approx(100.0)


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"\0" * 300,
        b"[]",
        b"{}",
        b'{"llmbatch":2,"tails_s":{}}',
        b'{"llmbatch":1,"tails_s":[]}',
        b'{"llmbatch":1,"boot":"","tails_s":{"a":"b"}}',
        b"x" * (1 << 21),
        b'{"llmbatch":1,"boot":"","tails_s":{"a',
    ],
    ids=lambda garbage: garbage[:45].decode(),
)
def test_garbage_is_replaced_and_said_once(world: World, garbage: bytes) -> None:
    world.file.parent.mkdir(parents=True, mode=0o700)
    world.file.write_bytes(garbage)
    world.file.chmod(0o600)
    runs = [world.run(600), world.run(600)]
    world.spend(runs, 10)
    assert world.warnings == ["--limit-group team: its file held something else, and was written anew"]
    assert 98 <= len(together(*runs)) <= 101 and world.file.stat().st_size <= max(256, len(garbage))
    assert json.loads(world.file.read_bytes())["llmbatch"] == 1


def test_a_file_that_was_removed_is_made_anew(world: World) -> None:
    runs = [world.run(600), world.run(600)]
    world.spend(runs, 5)
    world.file.unlink()
    world.spend(runs, 20)
    assert len(together(*runs)) <= 253
    assert world.file.exists() and world.warnings == []


def _link(file: Path) -> None:
    (file.parent / "target").write_bytes(b"mine")
    file.symlink_to(file.parent / "target")


def _open_to_all(file: Path) -> None:
    file.touch()
    file.chmod(0o666)


UNUSABLE = {
    "a directory": (lambda file: file.mkdir(), "Is a directory"),
    "a pipe": (os.mkfifo, "something else has that name"),
    "a link": (_link, "Too many levels of symbolic links"),
    "open to all": (_open_to_all, "it is not yours alone"),
    "folder is a file": (lambda file: (file.parent.rmdir(), file.parent.touch()), "File exists"),
    "folder of all": (lambda file: file.parent.chmod(0o777), "it is not yours alone"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_file_that_can_not_be_used_is_said_once_and_the_run_keeps_to_the_limit(world: World, what: str) -> None:
    world.file.parent.mkdir(parents=True, mode=0o700)
    make, reason = UNUSABLE[what]
    make(world.file)
    run = world.run(600)
    world.spend([run], 70)
    [warning] = world.warnings
    assert warning.startswith("--limit-group team: cannot use ") and f": {reason}; this run keeps to" in warning
    assert len(run.sent_s) >= 0.99 * 700 and most_in_a_minute(run.sent_s) <= 600
    run.group.close()
    if what == "a link":
        assert (world.file.parent / "target").read_bytes() == b"mine"


def test_a_directory_that_is_read_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(world.directory))

    monkeypatch.setattr(Path, "mkdir", refuse)
    run = world.run(600)
    world.spend([run], 10)
    assert 98 <= len(run.sent_s) <= 101
    assert world.warnings[0].startswith(f"--limit-group team: cannot use {world.directory}: Permission denied; ")


def test_a_user_without_a_home(world: World) -> None:
    group = LimitGroup.open("team", None, world.warnings.append, world.clock)
    run = Run(group, group.meter("account", "requests", 600))
    world.spend([run], 10)
    assert 98 <= len(run.sent_s) <= 101
    assert len(world.warnings) == 1 and "set XDG_STATE_HOME" in world.warnings[0]


def fail(*args: object) -> bytes:
    raise OSError(5, "Input/output error")


def test_a_disk_that_fails_in_mid_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.run(600)
    world.spend([run], 5)
    monkeypatch.setattr(os, "pread", fail)
    world.spend([run], 65)
    assert len(world.warnings) == 1 and "Input/output error" in world.warnings[0]
    assert len(run.sent_s) <= 701 and len(run.sent_s) >= 0.99 * 700


def test_what_was_sent_before_the_disk_failed_counts_after_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = world.run(6).meter
    assert meter.wait_s(0.0) == 0.0
    meter.take(0.0)
    monkeypatch.setattr(os, "pread", fail)
    assert 10 <= meter.wait_s(0.0) < 10.1
    assert len(world.warnings) == 1


@contextmanager
def held(file: Path) -> Iterator[None]:
    fd = os.open(file, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def test_a_lock_that_is_held_for_a_moment_is_waited_for_and_blocks_nobody(world: World) -> None:
    run = world.run(60)
    with held(world.file):
        begin_s = time.monotonic()
        waits_s = [run.meter.wait_s(0.0) for _ in range(1000)]
        assert time.monotonic() - begin_s < 0.5
        assert waits_s == pytest.approx([0.005] * 1000)
    world.clock.now_s += 0.005
    assert run.meter.wait_s(0.0) == 0.0 and world.warnings == []


def test_a_lock_that_is_not_let_go_is_said_once_and_the_limit_is_kept_alone(world: World) -> None:
    stuck, other = world.run(600), world.run(600)
    with held(world.file):
        world.spend([stuck], 20)
    assert 190 <= len(stuck.sent_s) <= 191
    assert len(world.warnings) == 1 and "does not let go of its file" in world.warnings[0]
    before = len(stuck.sent_s)
    world.clock.now_s += 1.0
    world.spend([stuck, other], 20)
    assert 0.45 < len(other.sent_s) / (len(stuck.sent_s) - before + len(other.sent_s)) < 0.55


def test_what_was_sent_alone_counts_when_the_lock_is_free_again(world: World) -> None:
    meter = world.run(6).meter
    with held(world.file):
        assert meter.wait_s(0.0) > 0.0
        world.clock.now_s += 1.1
        assert meter.wait_s(0.0) == 0.0
        meter.take(0.0)
    world.clock.now_s += 1.1
    assert 8 < meter.wait_s(0.0) < 9


@pytest.mark.parametrize("name", ["", "a/b", "..\0", "a b", "é", "x" * 65, "a@b", "team\n"])
def test_names_that_are_none(name: str, world: World) -> None:
    with pytest.raises(OptionsError, match="--limit-group"):
        world.group(name)
    with pytest.raises(OptionsError, match="--limit-group"):
        RunOptions(input="in.jsonl", limit_group=name)


@pytest.mark.parametrize("name", ["a", "Team-1.b_c", "..", "x" * 64])
def test_names(name: str, world: World) -> None:
    assert RunOptions(input="in.jsonl", limit_group=name).limit_group == name
    world.group(name).meter("account", "requests", 60).wait_s(0.0)
    assert (world.directory / "limits" / f"{name}.group").exists() and world.warnings == []


@contextmanager
def spenders(directory: Path, count: int, per_minute: float, seconds: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Real processes that have said they are ready, and are told to begin at the same moment."""
    command = [sys.executable, str(SPENDER), "team", str(directory), str(per_minute), str(seconds)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def times_of(child: subprocess.Popen[str]) -> list[float]:
    output, _ = child.communicate(timeout=30)
    return [float(line) for line in output.split("\n")[:-1]]


def test_two_real_processes_share_a_limit(tmp_path: Path) -> None:
    with spenders(tmp_path, 2, 6000, 3.0) as children:
        sent_s = [times_of(child) for child in children]
    total = sum(map(len, sent_s))
    # 50 ms may be made up for, and the two do not begin and end at the same moment; a busy machine makes them late.
    assert 0.85 * 300 <= total <= 300 + 15
    assert all(len(times_s) >= 0.4 * total for times_s in sent_s)


def test_when_a_real_process_is_killed_the_other_takes_over(tmp_path: Path) -> None:
    with spenders(tmp_path, 2, 3000, 4.0) as (staying, going):
        time.sleep(1.5)
        going.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        sent_s = times_of(staying)
    before = [time_s for time_s in sent_s if time_s < killed_s]
    after = [time_s for time_s in sent_s if killed_s + 1.0 <= time_s < killed_s + 2.0]
    assert len(before) <= 0.7 * 1.5 * 50
    assert len(after) >= 42
