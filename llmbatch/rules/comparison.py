"""What is compared with what? The cases of a comparison, what was measured of each, and the arithmetic on it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["sequential", "threads", "processes", "loop"]
Part = Literal["drivers", "overhead", "short", "cpu", "session", "blocking", "tasks", "memory"]
Variant = Literal[
    "",
    "new session",
    "blocked loop",
    "blocked thread",
    "tasks together",
    "tasks in turn",
    "hook",
    "hook in processes",
]
PARTS: tuple[Part, ...] = ("drivers", "overhead", "short", "cpu", "session", "blocking", "tasks", "memory")
REAL_PARTS: tuple[Part, ...] = ("drivers", "session")
"""What makes sense with answers that cost money."""

# One after the other, more rows say nothing new: each takes what the one before took. So many seconds are enough.
SEQUENTIAL_S = 10.0
SEQUENTIAL_LEAST_ROWS = 5
# The largest concurrency of a part has at least so many rows for each request in flight.
ROWS_PER_SLOT = 2
SHORT_CALL_S = 0.01
# A row with tasks asks so many questions.
TASKS = 4
# What is compared here shows with few rows; the more they are, the longer it takes.
COMPUTING_ROWS = 40
FAR_ROWS = 10
TRAPPED_ROWS = 40
TRAPPED_CALL_S = 0.2
# As a call that somebody forgot to await, or that has no async form.
BLOCKING_CALL_S = 1.0
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Driver:
    """Who sends: one request after the other, so many threads or processes, or so many requests on one event loop."""

    kind: Kind
    size: int = 1

    @property
    def name(self) -> str:
        return self.kind if self.kind == "sequential" else f"{self.kind}({self.size:,})"


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers: the simulated provider after ``latency_s``, over TLS or not, ``rtt_s`` away (there and back).

    ``latency_s`` None is a real provider, about which nothing can be set.
    """

    latency_s: float | None
    tls: bool = False
    rtt_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure: ``rows`` rows under one driver, done in the way that ``variant`` says."""

    part: Part
    driver: Driver
    server: Server
    rows: int
    variant: Variant = ""

    @property
    def in_flight(self) -> int:
        """The most requests that can be under way at once."""
        return min(self.rows, self.driver.size) * (TASKS if self.variant == "tasks together" else 1)

    @property
    def requests(self) -> int:
        return self.rows * (TASKS if self.variant.startswith("tasks") else 1)

    @property
    def ideal_s(self) -> float | None:
        """N/C x latency: what the waiting alone takes. None where nobody knows the latency, or rows also compute."""
        if self.server.latency_s is None or self.variant.startswith("hook"):
            return None
        return self.requests / self.in_flight * (self.server.latency_s + self.server.rtt_s)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run of a case cost the process of the driver, and its children.

    ``wall_s`` and CPU seconds are from the first thread, process or session to the last answer decoded; the start of
    Python and its imports are not in it, but those of the driver's own processes are. ``start_mb`` is the resident
    memory before. Peaks are None where the system does not tell. ``in_flight`` is what the simulated provider saw.
    ``failures`` counts rows by the type of their failure; ``answers`` is a checksum over the good ones.
    """

    wall_s: float
    user_s: float
    system_s: float
    ok: int
    failures: Mapping[str, int]
    latency_p50_s: float
    latency_p95_s: float
    latency_max_s: float
    start_mb: float | None
    peak_mb: float | None
    peak_threads: int | None
    peak_files: int | None
    peak_processes: int | None
    in_flight: int | None
    answers: str

    @property
    def rows(self) -> int:
        return self.ok + self.failed

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and between what the values lie."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Compared:
    """A case and its runs. ``problem`` says why it could not be measured, if so."""

    case: Case
    runs: tuple[Measured, ...] = ()
    problem: str | None = None

    @property
    def wall_s(self) -> Spread:
        return spread(run.wall_s for run in self.runs)

    @property
    def per_s(self) -> Spread:
        """Requests per second."""
        return spread(self.case.requests / run.wall_s for run in self.runs)

    @property
    def cpu_s(self) -> Spread:
        return spread(run.cpu_s for run in self.runs)

    @property
    def cpu_ms_per_request(self) -> Spread:
        return spread(run.cpu_s * 1000 / self.case.requests for run in self.runs)

    @property
    def latency_p50_s(self) -> Spread:
        return spread(run.latency_p50_s for run in self.runs)

    @property
    def latency_max_s(self) -> Spread:
        return spread(run.latency_max_s for run in self.runs)

    @property
    def start_mb(self) -> Spread | None:
        return _spread_of_known(run.start_mb for run in self.runs)

    @property
    def peak_mb(self) -> Spread | None:
        return _spread_of_known(run.peak_mb for run in self.runs)

    @property
    def kb_per_call(self) -> Spread | None:
        """By how much memory grew, for each request in flight."""
        return _spread_of_known(
            (run.peak_mb - run.start_mb) * 1024 / (run.in_flight or self.case.in_flight)
            for run in self.runs
            if run.peak_mb is not None and run.start_mb is not None
        )

    @property
    def failed(self) -> int:
        return sum(run.failed for run in self.runs)

    def most(self, name: Literal["peak_threads", "peak_files", "peak_processes", "in_flight"]) -> int | None:
        """The highest of a peak over the runs."""
        known = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return max(known) if known else None

    def times_faster(self, sequential: Compared | None) -> float | None:
        """Than one request after the other, by row. Without that measured, than its ideal; None if that is unknown."""
        if sequential is not None and sequential.runs:
            one_s = sequential.wall_s.median / sequential.case.rows
        elif self.case.server.latency_s:
            one_s = self.case.server.latency_s
        else:
            return None
        return one_s * self.case.rows / self.wall_s.median


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cases of one comparison. ``machine`` and ``made_by`` say where, and by what command."""

    endpoint: str
    made_by: str
    date: str
    machine: Mapping[str, Any]
    compared: tuple[Compared, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        return sum(one.failed for one in self.compared)

    def of(self, part: Part) -> list[Compared]:
        return [one for one in self.compared if one.case.part == part]

    @property
    def differing(self) -> list[Compared]:
        """What got other answers than the first of its part with as many rows; a real provider may well vary them."""
        first: dict[tuple[object, ...], str] = {}
        found = []
        for one in self.compared:
            case = one.case
            if case.server.latency_s is None:
                continue
            same = (case.part, case.rows, case.variant.startswith("tasks"), case.variant.startswith("hook"))
            sums = {run.answers for run in one.runs if not run.failed}
            if sums and len(sums | {first.setdefault(same, min(sums))}) > 1:
                found.append(one)
        return found

    def to_json(self) -> dict[str, Any]:
        return {"version": SCHEMA_VERSION, **asdict(self)}


def comparison_from(record: Mapping[str, Any]) -> Comparison:
    """What ``to_json`` made. Raises ValueError for another version."""
    if record.get("version") != SCHEMA_VERSION:
        raise ValueError(f"a comparison of version {record.get('version')!r}; this reads {SCHEMA_VERSION}")
    known = {name: record[name] for name in ("endpoint", "made_by", "date", "machine")}
    compared = tuple(
        Compared(_case(one["case"]), tuple(Measured(**run) for run in one["runs"]), one["problem"])
        for one in record["compared"]
    )
    return Comparison(**known, compared=compared, notes=tuple(record["notes"]))


def _case(record: Mapping[str, Any]) -> Case:
    return Case(**{**record, "driver": Driver(**record["driver"]), "server": Server(**record["server"])})


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value."""
    known = list(values)
    return Spread(statistics.median(known), min(known), max(known))


def _spread_of_known(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def percentile(values: Sequence[float], percent: float) -> float:
    """Of sorted values, by nearest rank; 0.0 of none."""
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else 0.0


# Which cases


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many threads, processes and requests on the loop are compared. ``cores`` are those of this machine.

    ``in_flight`` are the requests whose memory is weighed, ``in_flight_tls`` the same over TLS. ``calls`` are those of
    the part ``session``: seconds until the server answers, and seconds to it and back.
    """

    threads: tuple[int, ...] = (10, 100)
    processes: tuple[int, ...] = (10,)
    loop: tuple[int, ...] = (10, 100)
    cores: int = 2
    in_flight: tuple[int, ...] = (1_000,)
    in_flight_tls: tuple[int, ...] = ()
    calls: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.0, 0.05))
    tls: bool = True

    @property
    def concurrent(self) -> list[Driver]:
        """All but the sequential one."""
        return [
            *(Driver("threads", size) for size in self.threads),
            *(Driver("processes", size) for size in self.processes),
            *(Driver("loop", size) for size in self.loop),
        ]


def real_cases(parts: Iterable[Part], sizes: Sizes, rows: int) -> list[Case]:
    """Against a real provider: every driver gets the same rows, and none of them twice."""
    real = Server(None)
    drivers = [Driver("sequential"), *sizes.concurrent]
    by_part = {
        "drivers": [Case("drivers", driver, real, rows) for driver in drivers],
        "session": [Case("session", Driver("loop", 1), real, rows, variant) for variant in _SESSIONS],
    }
    return [case for part in parts for case in by_part[part]]


_SESSIONS: tuple[Variant, ...] = ("", "new session")


def cases(parts: Iterable[Part], sizes: Sizes, rows: int, latency_s: float) -> list[Case]:
    """Against the simulated provider. ``rows`` is for the main table; the rest is as large as it must be to tell."""
    makers = {
        "drivers": lambda: _drivers("drivers", sizes, rows, latency_s),
        "overhead": lambda: _drivers("overhead", sizes, rows * 10, 0.0),
        "short": lambda: _drivers("short", sizes, rows, SHORT_CALL_S),
        "cpu": lambda: _cpu(sizes, rows),
        "session": lambda: _session(sizes, rows),
        "blocking": lambda: _blocking(rows),
        "tasks": lambda: _tasks(latency_s),
        "memory": lambda: _memory(sizes),
    }
    return [case for part in parts for case in makers[part]()]


def _drivers(part: Part, sizes: Sizes, rows: int, latency_s: float) -> list[Case]:
    server = Server(latency_s)
    enough = max(SEQUENTIAL_LEAST_ROWS, round(SEQUENTIAL_S / latency_s)) if latency_s else rows
    concurrent = [
        Case(part, driver, server, max(rows, ROWS_PER_SLOT * driver.size) if driver.size > 100 else rows)
        for driver in sizes.concurrent
    ]
    return [Case(part, Driver("sequential"), server, min(rows, enough)), *concurrent]


def _cpu(sizes: Sizes, rows: int) -> list[Case]:
    """Rows that compute before they are sent. More processes than cores would not compute faster."""
    server, rows = Server(SHORT_CALL_S), min(rows, COMPUTING_ROWS)
    drivers = (Driver("sequential"), Driver("threads", 10), Driver("processes", sizes.cores), Driver("loop", 10))
    by_hook = [Case("cpu", driver, server, rows, "hook") for driver in drivers]
    return [*by_hook, Case("cpu", Driver("loop", 10), server, rows, "hook in processes")]


def _session(sizes: Sizes, rows: int) -> list[Case]:
    """One request at a time, so that the latency is that of the connection alone."""
    return [
        Case(
            "session",
            Driver("loop", 1),
            Server(latency_s, tls=tls, rtt_s=rtt_s),
            min(rows, FAR_ROWS) if rtt_s else rows,
            variant,
        )
        for tls in ((False, True) if sizes.tls else (False,))
        for latency_s, rtt_s in sizes.calls
        for variant in _SESSIONS
    ]


def _blocking(rows: int) -> list[Case]:
    variants: tuple[Variant, ...] = ("", "blocked thread", "blocked loop")
    return [
        Case("blocking", Driver("loop", 10), Server(TRAPPED_CALL_S), min(rows, TRAPPED_ROWS), variant)
        for variant in variants
    ]


def _tasks(latency_s: float) -> list[Case]:
    variants: tuple[Variant, ...] = ("tasks in turn", "tasks together")
    return [Case("tasks", Driver("loop", 10), Server(latency_s), 10, variant) for variant in variants]


def _memory(sizes: Sizes) -> list[Case]:
    """Every request is under way at once: there are as many rows as threads, or places on the loop."""
    kinds: tuple[Kind, ...] = ("threads", "loop")
    wanted = [(size, False) for size in sizes.in_flight] + [(size, True) for size in sizes.in_flight_tls if sizes.tls]
    return [
        Case("memory", Driver(kind, size), Server(_all_at_once_s(size, tls), tls=tls), size)
        for size, tls in wanted
        for kind in kinds
    ]


def again_for_longer(case: Case, measured: Measured) -> Case | None:
    """``case`` with twice the latency, if requests were answered before the last one was under way."""
    early = measured.in_flight is not None and measured.in_flight < case.in_flight
    if case.part != "memory" or not early or case.server.latency_s is None:
        return None
    return replace(case, server=replace(case.server, latency_s=2 * case.server.latency_s))


def _all_at_once_s(size: int, tls: bool) -> float:
    """For how long the first request must wait until the last one is on its way too."""
    return max(1.5, size * (0.004 if tls else 0.002))
