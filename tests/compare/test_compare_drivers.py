"""Each driver does the whole work, in a process of its own, and its figures are what they are called."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from llmbatch.compare.certificate import make_certificate
from llmbatch.compare.job import Job
from llmbatch.compare.measure import Bench, NotMeasured
from llmbatch.compare.options import DEFAULT_WORK
from llmbatch.options import RunOptions
from llmbatch.records import Request, Row
from llmbatch.rules.comparison import TASKS, Case, Driver, Kind, Measured, Server, Variant

ROWS = 12
LATENCY_S = 0.1
# So long that a busy machine adds less than half of it.
RTT_S = 0.2
DRIVERS: list[tuple[Kind, int]] = [("sequential", 1), ("threads", 4), ("processes", 2), ("loop", 4)]
HOOKS = """import os

def loud(row):
    return {"prompt": row["prompt"].upper()}

def broken(row):
    raise KeyError("text")

def leaving(row):
    os._exit(3)
"""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="counted in /proc")


def job(case: Case, work: str | None = None) -> Job:
    options = RunOptions(input="-", model="sim/compare")
    if work is not None:
        rows = tuple(Row(number, number, None, {"prompt": f"row {number}"}) for number in range(1, case.rows + 1))
        return Job(case, options, None, None, rows=rows, work=work)
    asked = (Request("compare", [{"role": "user", "content": f"row {number}"}]) for number in range(case.rows))
    return Job(case, options, None, None, requests=tuple(asked))


def measured(
    driver: Driver,
    server: Server | None = None,
    *,
    rows: int = ROWS,
    variant: Variant = "",
    sim: dict[str, str] | None = None,
    certificate: tuple[Path, Path] | None = None,
    work: str | None = None,
) -> Measured:
    case = Case("drivers", driver, server or Server(LATENCY_S), rows, variant)
    return Bench(sim or {}, certificate).measure(job(case, work))


@pytest.fixture(scope="module")
def by_driver() -> dict[str, Measured]:
    return {kind: measured(Driver(kind, size)) for kind, size in DRIVERS}


def test_all_drivers_get_the_same_answers(by_driver: dict[str, Measured]) -> None:
    assert {one.ok for one in by_driver.values()} == {ROWS}
    assert len({one.answers for one in by_driver.values()}) == 1


@pytest.mark.parametrize(("kind", "size"), DRIVERS)
def test_as_many_are_in_flight_as_the_driver_has_places(by_driver: dict[str, Measured], kind: str, size: int) -> None:
    one = by_driver[kind]
    assert one.in_flight == size
    assert one.wall_s >= ROWS / size * LATENCY_S
    assert one.latency_p50_s >= LATENCY_S
    assert one.latency_p50_s <= one.latency_p95_s <= one.latency_max_s <= one.wall_s
    assert one.cpu_s > 0


@on_linux
@pytest.mark.parametrize(
    ("kind", "threads", "processes"),
    [("sequential", 1, 1), ("threads", 5, 1), ("processes", None, 3), ("loop", None, 1)],
)
def test_threads_files_and_processes_are_counted(
    by_driver: dict[str, Measured], kind: str, threads: int | None, processes: int
) -> None:
    one = by_driver[kind]
    assert one.peak_threads is not None and one.peak_files is not None
    assert one.peak_threads == threads or (threads is None and one.peak_threads < 10)
    assert one.peak_processes == processes
    assert one.peak_files >= dict(DRIVERS)[kind]  # type: ignore[index]  # a connection is a file
    assert one.start_mb is not None and one.peak_mb is not None
    assert one.start_mb < one.peak_mb < one.start_mb + 100


@pytest.mark.parametrize(("kind", "size"), DRIVERS)
def test_failures_are_counted_by_type_and_not_tried_again(kind: Kind, size: int) -> None:
    failing = measured(Driver(kind, size), Server(0.0), sim={"script": "fail-some.jsonl"})
    assert (failing.ok, dict(failing.failures)) == (ROWS - 3, {"server_is_overloaded": 3})


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated provider reads it in the working directory; hooks are found there too."""
    faults = (f'{{"prompt": "row {number}", "fault": "503"}}\n' for number in (3, 5, 7))
    (tmp_path / "fail-some.jsonl").write_text("".join(faults))
    (tmp_path / "shouting.py").write_text(HOOKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def test_rows_that_compute_do_so_under_every_driver() -> None:
    answers = set()
    for kind, size, variant in [*((kind, size, "hook") for kind, size in DRIVERS), ("loop", 4, "hook in processes")]:
        one = measured(Driver(kind, size), Server(0.0), rows=4, variant=variant, work="shouting:loud")  # type: ignore[arg-type]
        assert one.ok == 4
        answers.add(one.answers)
    as_they_were = measured(Driver("sequential"), Server(0.0), rows=4, variant="hook", work=DEFAULT_WORK)
    assert len(answers) == 1 and as_they_were.answers not in answers


@pytest.mark.parametrize(("kind", "size"), DRIVERS)
def test_a_hook_that_fails_is_told_with_its_line(kind: Kind, size: int) -> None:
    with pytest.raises(NotMeasured, match=r"shouting\.py:7 in broken: KeyError"):
        measured(Driver(kind, size), Server(0.0), rows=4, variant="hook", work="shouting:broken")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
@pytest.mark.parametrize("kind", ["sequential", "loop"])
def test_a_new_session_costs_a_round_trip_for_tcp_and_one_for_tls(kind: Kind, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    trips = {}
    for tls, variant in ((False, ""), (False, "new session"), (True, ""), (True, "new session")):
        far = Server(0.0, tls=tls, rtt_s=RTT_S)
        one = measured(Driver(kind), far, rows=3, variant=variant, certificate=certificate)  # type: ignore[arg-type]
        assert one.ok == 3
        trips[tls, variant] = int(one.latency_p50_s / RTT_S)
    assert trips == {(False, ""): 1, (False, "new session"): 2, (True, ""): 1, (True, "new session"): 3}


def test_a_call_that_blocks_the_loop_holds_everybody_up_and_in_a_thread_nobody() -> None:
    in_thread = measured(Driver("loop", 4), variant="blocked thread", rows=8)
    on_loop = measured(Driver("loop", 4), variant="blocked loop", rows=8)
    assert in_thread.latency_max_s < 0.9 < 1.0 <= on_loop.latency_max_s


def test_tasks_together_take_as_long_as_one() -> None:
    together = measured(Driver("loop", 2), variant="tasks together", rows=4)
    in_turn = measured(Driver("loop", 2), variant="tasks in turn", rows=4)
    assert together.answers == in_turn.answers
    assert (together.in_flight, in_turn.in_flight) == (2 * TASKS, 2)
    assert together.latency_p50_s < TASKS * LATENCY_S <= in_turn.latency_p50_s


def test_a_driver_that_dies_is_no_bug_of_the_comparison() -> None:
    with pytest.raises(NotMeasured, match="ended in the middle"):
        measured(Driver("sequential"), Server(0.0), rows=2, variant="hook", work="shouting:leaving")
