"""The loop, the process or the disk stands still: no answer that came meanwhile is thrown away, and limits still end.

Runs with time limits shorter than their stalls, against a provider in another process that answers in the middle of
them. Kinds: ``clock``, the loop is blocked until the answers lie in its sockets, and its clock moved by 0.1 to 60 s
more; ``block``, a callback sleeps for 0.3 to 2 s; ``stop``, the real command gets SIGSTOP and SIGCONT; ``disk``, syncs
and writes take up to 5 s; ``huge``, a block under answers of megabytes; ``silent``, some rows are never answered, with
and without a stall. Whole answers and streams, uvloop and asyncio's own loop.

Kept if each row has its answer and was billed once: no attempt was ended whose answer had been sent; but each attempt
that is never answered was ended, not before its limit has passed in time that the loop attended to, nor long after; and
if no slow disk held up the loop. An attempt that a stall ends while it connects has sent nothing: its row is tried
again, and that is counted.

Counted: the runs of each kind, the answers sent while nobody could look, the attempts ended, and the longest that a
slow disk held up the loop (on a busy machine it waits for a processor too).
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from end_to_end.processes import COMMAND, PATIENCE_S, Sim, read_lines, write_rows

from campaigns.campaign import Report, progress
from campaigns.kill import is_answer
from campaigns.signals import Books, why_not  # noqa: F401
from llmbatch.api import arun
from llmbatch.events import AttemptFailed, Event, RunStarted
from llmbatch.files import journal, paths
from llmbatch.machine import fast_loop
from llmbatch.options import Timeouts

LONG_RUNS = 500
AT_ONCE = 10
KINDS = ("clock", "block", "stop", "silent", "disk", "clock", "block", "stop", "clock", "huge")
LATENCY = ("--latency", "uniform:low=0.05,high=0.3", "--first-token", "0.03")
HUGE = ("--latency", "0.1", "--output-tokens", "uniform:low=50000,high=800000")
# Longer than every latency: after it all answers that were awaited lie in their sockets.
OVER_ALL_S = 0.4
LAG_S = 1.0
LATE_S = 3.0


@dataclass(frozen=True)
class Case:
    """One run. ``stalls_s`` are pairs: when after the start of the run (of the process), and for how long.

    ``moved_s``: how far the clock goes on during a stall. ``disk_s``: the longest sync and write.
    """

    number: int
    kind: str
    limit_s: float
    stalls_s: tuple[tuple[float, float], ...]
    moved_s: float = 0.0
    disk_s: float = 0.0
    silent: int = 0
    rows: int = 8
    stream: bool = False
    uvloop: bool = False

    @property
    def name(self) -> str:
        how = f"{'stream' if self.stream else 'whole'}:{'uvloop' if self.uvloop else 'asyncio'}"
        return f"n{self.number}:{self.kind}:{how}:limit={self.limit_s:g}:stalls={self.stalls_s}:moved={self.moved_s:g}"

    @property
    def in_process(self) -> bool:
        return self.kind in ("clock", "silent")


def cases(runs: int, seed: int) -> Iterator[Case]:
    """The kinds in turn, the rest by chance."""
    for number in range(1, runs + 1):
        chance = random.Random(f"{seed}:{number}")
        yield case_of(number, KINDS[number % len(KINDS)], chance)


def case_of(number: int, kind: str, chance: random.Random) -> Case:
    """Draw one."""
    stream, uvloop = chance.random() < 0.5, chance.random() < 0.5
    at_s = chance.uniform(0.0, 0.25)
    if kind == "clock":
        moved_s = 10 ** chance.uniform(-1, 1.78)
        return Case(number, kind, chance.uniform(0.8, 1.2), ((at_s, OVER_ALL_S),), moved_s, stream=stream)
    if kind == "block":
        limit_s = chance.uniform(0.6, 0.9)
        stalls = ((at_s, chance.uniform(0.3, 2.0)), (at_s + 3.0, chance.uniform(0.7, 1.5)))
        return Case(number, kind, limit_s, stalls[: chance.randint(1, 2)], rows=12, stream=stream, uvloop=uvloop)
    if kind == "stop":
        stops = tuple((chance.uniform(0.1, 0.9), chance.uniform(0.3, 2.5)) for _ in range(chance.randint(1, 3)))
        return Case(number, kind, chance.uniform(0.6, 1.2), stops, rows=12, stream=stream, uvloop=True)
    if kind == "disk":
        return Case(number, kind, chance.uniform(0.6, 1.2), (), disk_s=chance.uniform(0.5, 5.0), rows=12, uvloop=uvloop)
    if kind == "huge":
        return Case(number, kind, 1.5, ((at_s, chance.uniform(1.6, 2.0)),), rows=4, uvloop=uvloop)
    stalls = ((at_s, OVER_ALL_S),) if chance.random() < 0.5 else ()
    moved_s = chance.uniform(1, 60) if stalls else 0.0
    return Case(number, kind, chance.uniform(0.8, 1.2), stalls, moved_s, silent=2, stream=stream)


class Broken(Exception):
    """A promise was not kept."""


@dataclass
class Told:
    """How a run went: ``timeouts_s`` after its start, ``lag_s`` the longest that the loop was held up by others.

    ``stood`` are the spans (Unix time) in which it could not look. ``unsent`` attempts were ended while connecting.
    """

    code: int = 0
    unsent: int = 0
    timeouts_s: list[float] = field(default_factory=list)
    lag_s: float = 0.0
    stood: list[tuple[float, float]] = field(default_factory=list)


class MovedLoop(asyncio.SelectorEventLoop):
    """Real sockets, and a clock that can be put forward."""

    moved_s = 0.0

    def time(self) -> float:
        return super().time() + self.moved_s


class Driver:
    """Runs one case on a loop in this thread."""

    def __init__(self, case: Case, base_url: str, root: Path) -> None:
        self._case, self._base_url, self._root = case, base_url, root
        self._told = Told()
        self._began_s = time.monotonic()
        self._ticking: asyncio.Task[None] | None = None

    def run(self) -> Told:
        factory: Callable[[], asyncio.AbstractEventLoop] | None = MovedLoop
        if not self._case.in_process:
            factory = fast_loop() if self._case.uvloop else None
        with asyncio.Runner(loop_factory=factory) as runner:
            self._told.code = runner.run(self._main())
        return self._told

    async def _main(self) -> int:
        limit_s = self._case.limit_s
        summary = await arun(
            str(self._root / "in.jsonl"),
            listen=self._heard,
            output=str(self._root / "out.jsonl"),
            model="m",
            base_url=self._base_url,
            concurrency=4 if self._case.kind == "block" else 8,
            stream=self._case.stream,
            timeouts=Timeouts(first_token_s=limit_s, idle_s=limit_s, total_s=limit_s),
        )
        if self._ticking is not None:
            self._ticking.cancel()
        return summary.exit_code

    def _heard(self, event: Event) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(event, RunStarted):
            self._began_s = time.monotonic()
            for at_s, for_s in self._case.stalls_s:
                loop.call_later(at_s, self._stall, loop, for_s)
            self._ticking = asyncio.create_task(self._tick())
        elif isinstance(event, AttemptFailed) and event.failure.type.endswith("timeout"):
            if event.failure.kind == "never_sent":
                self._told.unsent += 1
            else:
                self._told.timeouts_s.append(time.monotonic() - self._began_s)

    def _stall(self, loop: asyncio.AbstractEventLoop, for_s: float) -> None:
        from_s = time.time()
        time.sleep(for_s)
        if isinstance(loop, MovedLoop):
            loop.moved_s += self._case.moved_s
        self._told.stood.append((from_s, time.time()))

    async def _tick(self) -> None:
        """Measure, and for a slow disk note where the loop is held up."""
        with (self._root / "held").open("w") as held:
            while True:
                from_s = time.monotonic()
                if self._case.disk_s:
                    faulthandler.dump_traceback_later(LAG_S, file=held)
                try:
                    await asyncio.sleep(0.01)
                finally:
                    faulthandler.cancel_dump_traceback_later()
                self._told.lag_s = max(self._told.lag_s, time.monotonic() - from_s)


def slow_disk(longest_s: float, chance: random.Random) -> None:
    """From now on syncs and the journal's writes take time, in the thread that makes them. For a process of its own."""
    sync, opened = paths._sync, journal.aiofiles.open

    def slow_sync(fd: int) -> None:
        time.sleep(chance.choice([longest_s, chance.uniform(0, longest_s)]))
        sync(fd)

    class SlowFile:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: bytes) -> Any:
            time.sleep(chance.uniform(0, longest_s / 4))
            return self._file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    async def slow_open(*args: Any, **settings: Any) -> Any:
        file = await opened(*args, **settings)
        file._file = SlowFile(file._file)
        return file

    paths._sync = slow_sync
    journal.aiofiles.open = slow_open  # type: ignore[assignment]


def drive() -> None:
    """The process that `in_process` cases do without: one case on the command line, what it told on standard output."""
    fields = json.loads(sys.argv[1])
    fields["stalls_s"] = tuple(map(tuple, fields["stalls_s"]))
    case = Case(**fields)
    if case.disk_s:
        slow_disk(case.disk_s, random.Random(case.number))
    print(json.dumps(asdict(Driver(case, sys.argv[2], Path(sys.argv[3])).run())))


def environment(root: Path) -> dict[str, str]:
    """Nothing is shared with the user's home."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "XDG_STATE_HOME": str(root / "state"),
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "LC_ALL": "C.UTF-8",
    }


def driven(case: Case, base_url: str, root: Path) -> Told:
    """What a process of its own tells. Raises Broken if it ends badly."""
    words = [sys.executable, "-m", "campaigns.stalls", json.dumps(asdict(case)), base_url, str(root)]
    done = subprocess.run(words, env=environment(root), capture_output=True, timeout=2 * PATIENCE_S)
    if done.returncode or done.stderr:
        raise Broken(f"exit code {done.returncode}: {done.stderr[-900:]!r}")
    fields = json.loads(done.stdout)
    return Told(**{**fields, "stood": [tuple(span) for span in fields["stood"]]})


def stopped(case: Case, base_url: str, root: Path) -> Told:
    """The real command, stopped and continued."""
    command = [*COMMAND, "run", str(root / "in.jsonl"), "-o", str(root / "out.jsonl"), "-m", "m", "-c", "4", "-v"]
    command += [*(["--stream"] if case.stream else []), "--base-url", base_url, "--progress", "plain"]
    for flag in ("--timeout", "--idle-timeout", "--first-token-timeout"):
        command += [flag, f"{case.limit_s:.3f}s"]
    told = Told()
    with (root / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            command, env=environment(root), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            for after_s, for_s in case.stalls_s:
                time.sleep(after_s)
                process.send_signal(signal.SIGSTOP)
                from_s = time.time()
                time.sleep(for_s)
                process.send_signal(signal.SIGCONT)
                told.stood.append((from_s, time.time()))
            told.code = process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
    said = (root / "stderr").read_text()
    told.unsent = said.count("connect_timeout: ")
    told.timeouts_s = [0.0] * (said.count("timeout: ") - told.unsent)
    if told.code:
        raise Broken(f"exit code {told.code}: {said[-900:]!r}")
    return told


def check(case: Case, told: Told, prompts: list[str], root: Path, books: Books, report: Report) -> None:
    """Hold the output against the provider's books. Raises Broken."""
    billed = [books.times_s(prompt) for prompt in prompts]
    if told.code:
        raise Broken(f"exit code {told.code}")
    for row, (line, prompt) in enumerate(zip(read_lines(root / "out.jsonl"), prompts, strict=True), 1):
        if line["row"] != row or not is_answer(line["output"], prompt):
            raise Broken(f"row {row} has not its answer: {str(line)[:300]}")
    if again := [row for row, times in enumerate(billed, 1) if len(times) != 1]:
        raise Broken(f"the rows {again} were billed again; attempts ended by a limit: {told.timeouts_s}")
    if len(told.timeouts_s) != case.silent:
        raise Broken(f"{len(told.timeouts_s)} attempts were ended by a limit, and {case.silent} are never answered")
    for after_s in told.timeouts_s if case.silent else ():
        # What stood still counts for two looks at most, an eighth of the limit to a quarter of a second apart.
        if not case.limit_s / 2 <= after_s <= case.limit_s + OVER_ALL_S + LATE_S:
            raise Broken(f"a limit of {case.limit_s:.2f} s ended an attempt after {after_s:.2f} s")
    if case.disk_s > 2 * LAG_S and told.lag_s > LAG_S:
        where = (root / "held").read_text()
        raise Broken(f"a disk that takes {case.disk_s:.1f} s held up the loop for {told.lag_s:.2f} s: {where[:2000]!r}")
    unseen = sum(any(start <= at_s <= end for start, end in told.stood) for (at_s,) in billed)
    report.count(f"runs {case.kind}")
    report.count("answers sent while nobody could look", unseen)
    report.count("attempts ended that were never answered", case.silent)
    report.count("attempts ended while connecting", told.unsent)
    if case.disk_s:
        report.most("ms that a slow disk held up the loop at most", round(1000 * told.lag_s))


def run_one(case: Case, seed: int, base_url: str, books: Books, again: str) -> Report:
    """One case; its directory is kept if a promise was broken."""
    report = Report(runs=1)
    root = Path(tempfile.mkdtemp(prefix="llmbatch-stalls-"))
    prompts = [f"{seed}:{case.number} {'silent' if row < case.silent else 'row'} {row}" for row in range(case.rows)]
    write_rows(root / "in.jsonl", prompts)
    try:
        if case.in_process:
            told = Driver(case, base_url, root).run()
        else:
            told = (stopped if case.kind == "stop" else driven)(case, base_url, root)
        check(case, told, prompts, root, books, report)
    except Exception as error:
        report.broken = [f"{case.name}: {error!r}; kept: {root}; {again} --case n{case.number}:"]
    else:
        shutil.rmtree(root)
    return report


class Providers:
    """One for all but the huge answers, which have one of their own: it is busy making them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        script = directory / "script.jsonl"
        script.write_text('{"prompt": "silent", "fault": "stall", "times": 1}\n')
        ledgers = {kind: directory / f"{kind}.jsonl" for kind in ("plain", "huge")}
        self._sims = {
            "plain": Sim(*LATENCY, "--ledger", str(ledgers["plain"]), "--script", str(script)),
            "huge": Sim(*HUGE, "--ledger", str(ledgers["huge"])),
        }
        for sim in self._sims.values():
            stack.callback(sim.stop)
        self._books = {kind: Books(ledger) for kind, ledger in ledgers.items()}

    def of(self, case: Case) -> tuple[str, Books]:
        """The address of its provider, and the books."""
        kind = "huge" if case.kind == "huge" else "plain"
        return self._sims[kind].base_url, self._books[kind]


def campaign(runs: int, seed: int, case: str | None = None) -> Report:
    """``runs`` runs that are stalled."""
    report, counted = Report(), Counter[str]()
    chosen = [one for one in cases(runs, seed) if case is None or case in one.name]
    again = f"python tests/campaigns stalls --seed {seed} --runs {runs}"
    most: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        providers = Providers(Path(directory), stack)
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        for one in pool.map(lambda case: run_one(case, seed, *providers.of(case), again), chosen):
            progress(report.runs, runs)
            report.runs += 1
            report.broken += one.broken
            for what, value in one.counted.items():
                if what.endswith("at most"):
                    most[what] = max(most.get(what, 0), int(value))
                else:
                    counted[what] += int(value)
    report.counted = {**dict(sorted(counted.items())), **most}
    return report


if __name__ == "__main__":
    drive()
