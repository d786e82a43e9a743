"""kill -9 at any moment, then the same command, again and again: nothing lost, nothing that was done paid for again.

The real command runs against a provider in another process, which keeps its own books. One output is killed many
times in a row. Half of the moments are even chance over start-up and run; the other half come 0 to 2 ms, in steps of
10 us, after a change in the output's directory (inotify tells: an append, a truncation, a new name, a rename), or as
soon as a file is seen to grow, so that they fall around and into writes, syncs, mending and seal. When it is complete
the input grows, and the killing goes on. Concurrency, latency, sizes of prompts and answers, ids and the kind of output
vary.

Kept if after each kill all that was in the journal still is, none of it was or is billed again, no row was billed
twice in one run, and the rows that were billed and are in no journal are not more than the concurrency, nor than the
next start says; if no start fails; and if each complete output has one line per row, in order, with the right answer
and id, and each row was billed once more than its answer was lost.

Counted: what the killed processes had received to the last byte and not yet written. The provider measures it: the
kernel resets the connection of a process that dies with unread bytes and closes any other in order, so an answer that
was sent before the kill, on a connection that was then closed in order, had been read. (A body that did not fit into
the socket buffers may count as read when it was not: the figure is an upper bound.) One turn of the client's loop reads
all that has arrived, so the figure is given apart for answers that all take the same time, and so come together, and
for others.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from end_to_end.processes import COMMAND, PATIENCE_S, Sim, write_rows

from campaigns.books import Bills, closed, percentile, results, whole_lines
from campaigns.campaign import Report, progress
from llmbatch.files.checksum import checksum_ok
from llmbatch.sim.answers import CHARS_PER_TOKEN, expected_answer, prompt_hash

LONG_RUNS = 2_000
KILLS_EACH = 10
AT_ONCE = 2
START_S = 0.35
STEP_S = 10e-6
STEPS = 200
GROWTH_S = 0.1
TORN = "with a torn line"

# inotify(7)
_IN_CHANGED = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200  # modified, attributes, moved from, moved to, created, deleted
_IN_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_EVENT = struct.Struct("iIII")


def why_not() -> str | None:
    """Why this campaign can not run on this machine; None if it can."""
    return None if sys.platform == "linux" else "only Linux has inotify"


@dataclass(frozen=True)
class Setting:
    """One output. ``latency`` and ``answers`` (tokens) are the provider's; None are answers as long as they come."""

    number: int
    kills: int
    concurrency: int
    latency: str
    mean_s: float
    answers: str | None
    prompt_chars: int
    ids: str
    include_input: bool
    stdout: bool

    @property
    def name(self) -> str:
        where = "stdout" if self.stdout else "file"
        return f"n{self.number}:c{self.concurrency}:latency={self.latency}:answers={self.answers}:{self.ids}:{where}"

    @property
    def latency_varies(self) -> bool:
        return ":" in self.latency

    @property
    def row_s(self) -> float:
        """About how long a row takes when all are busy."""
        return max(self.mean_s / self.concurrency, 1e-3)

    @property
    def rows(self) -> int:
        """Enough for about half a second."""
        return max(4, min(300, round(0.5 / self.row_s)))


def setting(number: int, kills: int, chance: random.Random) -> Setting:
    """Draw one."""
    latency, mean_s = chance.choice(
        [("0", 0.0), ("0.01", 0.01), ("uniform:low=0,high=0.06", 0.03), ("lognormal:median=0.02,sigma=1", 0.033)]
    )
    long_prompts = chance.random() < 0.25
    return Setting(
        number=number,
        kills=kills,
        concurrency=chance.choice([1, 8, 64]),
        latency=latency,
        mean_s=mean_s,
        answers=chance.choice([None, "3", "uniform:low=3,high=5000", "uniform:low=1000,high=50000"]),
        prompt_chars=chance.choice([3_000, 50_000]) if long_prompts else 0,
        ids=chance.choice(["none", "text", "number"]),
        include_input=long_prompts or chance.random() < 0.2,
        stdout=chance.random() < 0.2,
    )


@dataclass
class Figures:
    """What kills came to: where they came, how many answers each lost, and how many of these had been received.

    ``unwritten_apart`` is the same where answers do not come together, ``age_s`` how old the answers received and lost
    were at the kill, ``told`` the kills that left a lock with a number in it.
    """

    at: Counter[str] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    unwritten: list[int] = field(default_factory=list)
    unwritten_apart: list[int] = field(default_factory=list)
    age_s: list[float] = field(default_factory=list)
    told: int = 0
    outputs: int = 0
    rows: int = 0

    def add(self, other: Figures) -> None:
        """Take in those of another output."""
        self.at += other.at
        self.lost += other.lost
        self.unwritten += other.unwritten
        self.unwritten_apart += other.unwritten_apart
        self.age_s += other.age_s
        self.told += other.told
        self.outputs += other.outputs
        self.rows += other.rows


class Broken(Exception):
    """A promise was not kept."""


class Watch:
    """Tells of changes in a directory as they happen."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_IN_FLAGS)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_CHANGED) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {directory}")

    def next(self, within_s: float) -> list[str]:
        """The names that changed, as soon as one does; none after ``within_s``."""
        if not select.select([self._fd], [], [], within_s)[0]:
            return []
        data, names = os.read(self._fd, 1 << 16), []
        while data:
            size = _EVENT.unpack_from(data)[3]
            names.append(os.fsdecode(data[_EVENT.size : _EVENT.size + size].rstrip(b"\0")))
            data = data[_EVENT.size + size :]
        return names

    def until_growth(self, name: str) -> None:
        """Return while the next write to this file is under way, if there is one soon. The size grows page by page."""
        path, end_s = self._directory / name, time.monotonic() + GROWTH_S
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            while path.stat().st_size == size and time.monotonic() < end_s:
                pass

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True)
class Moment:
    """When to kill: ``after_s``; or ``delay_s`` after the ``number``-th change of a name with ``ending``.

    ``within``: not then, but when its file is next seen to grow.
    """

    after_s: float | None = None
    ending: str = ""
    number: int = 1
    delay_s: float = 0.0
    within: bool = False

    def wait(self, process: subprocess.Popen[bytes], watch: Watch) -> None:
        """Return at this moment, or when the process has ended before."""
        end_s = time.monotonic() + (PATIENCE_S if self.after_s is None else self.after_s)
        left = self.number if self.after_s is None else 1 << 30
        name = ""
        while left > 0 and process.poll() is None and (wait_s := end_s - time.monotonic()) > 0:
            changed = [name for name in watch.next(min(wait_s, 0.02)) if name.endswith(self.ending)]
            left, name = left - len(changed), changed[-1] if changed else name
        if self.within and left <= 0:
            watch.until_growth(name)
        due_s = time.perf_counter() + self.delay_s
        while time.perf_counter() < due_s:
            pass


def moment(chance: random.Random, span_s: float, writes: int, torn: bool) -> Moment:
    """By chance over ``span_s``, or just after something changed: ``writes`` are to come."""
    if chance.random() < 0.5:
        return Moment(after_s=chance.uniform(0, span_s))
    changes = [
        (".lock", 2),
        (".partial", 4),
        (".partial", max(4, writes // 2)),
        (".sealing", 3),
        (".jsonl", 1),
        ("", 8),
    ]
    ending, most = chance.choice([*changes, *([(".torn", 2)] * 3 if torn else ())])
    if ending in (".partial", ".sealing", ".torn") and chance.random() < 0.5:
        return Moment(ending=ending, number=chance.randint(1, most), within=True)
    steps = chance.choice([STEPS, STEPS // 10])
    return Moment(ending=ending, number=chance.randint(1, most), delay_s=STEP_S * chance.randrange(steps + 1))


class Victim:
    """One output, its provider, and what must be true of it."""

    def __init__(self, setting: Setting, chance: random.Random, root: Path, figures: Figures) -> None:
        self.setting, self.chance, self.root = setting, chance, root
        self.work, self.state = root / "work", root / "state"
        self.figures = figures
        self.prompts: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.out = self.work / "out.jsonl"
        self._printed, self._errors = root / "stdout", root / "stderr"
        for directory in (self.work, self.state / "llmbatch", root / "home"):
            directory.mkdir(parents=True)
        tokens = () if setting.answers is None else ("--output-tokens", setting.answers)
        ledger = root / "ledger.jsonl"
        self.sim = Sim("--latency", setting.latency, "--ledger", str(ledger), *tokens)
        self.bills = Bills(ledger)
        self.billed: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        self.safe: set[bytes] = set()  # the ok lines that were seen on disk
        self.killed = False
        self.told = 0
        self.stretch = 1.0  # of the time that a run seems to take, learnt from what came too late
        self.grow()

    @property
    def watched(self) -> Path:
        return self.state / "llmbatch" if self.setting.stdout else self.work

    @cached_property
    def command(self) -> list[str]:
        out = "-" if self.setting.stdout else str(self.out)
        words = [*COMMAND, "run", str(self.root / "in.jsonl"), "-o", out, "-c", str(self.setting.concurrency)]
        words += ["-m", "m", "--base-url", self.sim.base_url, "--progress", "plain"]
        return [*words, "--include-input"] if self.setting.include_input else words

    def grow(self) -> None:
        """More rows; for standard output other rows, for its journal is gone when it is complete."""
        if self.setting.stdout:
            self.prompts, self.safe = [], set()
            for left in self.watched.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        start = len(self.prompts)
        most = max(2, self.setting.rows // 4) if start else self.setting.rows
        filling = "word \u2028é " * (self.setting.prompt_chars // 8)
        count = self.chance.randint(max(1, most // 3), most)
        self.prompts += [f"{self.figures.outputs}:{row} {filling}" for row in range(start + 1, start + count + 1)]
        ids: dict[str, Callable[[int], dict[str, Any]]] = {
            "none": lambda row: {},
            "text": lambda row: {"id": f"r{row}"},
            "number": lambda row: {"id": row},
        }
        self.rows = [{"prompt": prompt, **ids[self.setting.ids](row)} for row, prompt in enumerate(self.prompts, 1)]
        write_rows(self.root / "in.jsonl", self.rows)

    def campaign(self) -> None:
        """Kill it as often as is asked for, let it complete, look. Raises Broken."""
        kills = 0
        while kills < self.setting.kills:
            if self._run(kill=True):
                kills += 1
            else:
                self._completed()
                self.grow()
        while self._run(kill=False):
            pass
        self._completed()

    def _run(self, kill: bool) -> bool:
        """Start the command, and maybe kill it. False if it is complete. Raises Broken."""
        left = max(1, len(self.prompts) - len(self.safe))
        span_s = self.stretch * (START_S + left * self.setting.row_s)
        at = moment(self.chance, span_s, left, self._phase() == TORN) if kill else None
        size = self._journals()[0].stat().st_size if self._journals() else -1
        code, kill_s = self._start_and_kill(at)
        counters = closed(self.sim)
        said = self._errors.read_text()
        if "Traceback" in said or code not in (0, -signal.SIGKILL):
            raise Broken(f"exit code {code}: {said[-900:]!r}")
        if code == 0 and self.told and f"cut off with {self.told:,} in flight" not in said:
            raise Broken(f"it does not say that {self.told} were in flight: {said[-900:]!r}")
        self.told = 0
        if at is not None and at.after_s is not None:
            self.stretch *= 1.05 if code else 0.8
        self._account(counters, kill_s if code else None)
        if code and at is not None:
            self.figures.at[self._phase(size)] += 1
        complete = self.setting.stdout and not self._journals() and len(self._read()) == len(self.prompts)
        self.killed = code != 0
        return self.killed and not complete

    def _start_and_kill(self, at: Moment | None) -> tuple[int, float]:
        watch = Watch(self.watched)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "XDG_STATE_HOME": str(self.state),
            "LC_ALL": "C.UTF-8",
        }
        with self._printed.open("wb") as printed, self._errors.open("wb") as errors:
            process = subprocess.Popen(
                self.command, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=errors
            )
            try:
                if at is None:
                    process.wait(PATIENCE_S)
                else:
                    at.wait(process, watch)
            finally:
                watch.close()
                process.kill()
                kill_s = time.time()
                process.wait()
        return process.returncode, kill_s

    def _account(self, counters: dict[str, Any], kill_s: float | None) -> None:
        """Compare both books after a run; ``kill_s`` is when it was killed. Raises Broken."""
        done_before = self._hashes()
        self._take_lines()
        billed = list(self.bills.new())
        bills = {bill["prompt_hash"]: bill["time_s"] for bill in billed}
        self.billed.update(bills.keys())
        if len(bills) < len(billed):
            raise Broken(f"{len(billed) - len(bills)} rows were billed twice in one run")
        if again := done_before & set(bills):
            raise Broken(f"{len(again)} rows that were done were billed again")
        lost = set(bills) - self._hashes()
        self.lost.update(lost)
        unread = Counter(counters["unread_by_prompt"]) - self.unread
        self.unread = Counter(counters["unread_by_prompt"])
        if kill_s is None and lost:
            raise Broken(f"{len(lost)} answers were billed and are not in the output")
        if len(lost) > self.setting.concurrency:
            raise Broken(f"{len(lost)} rows will be paid for twice, and {self.setting.concurrency} can be in flight")
        if kill_s is not None:
            self.told = self._read_told(len(lost))
            read = [prompt for prompt in lost if not unread[prompt] and bills[prompt] <= kill_s]
            self._figure([kill_s - bills[prompt] for prompt in read], len(lost))

    def _take_lines(self) -> None:
        """What is on disk now is safe. Raises Broken."""
        lines = self._read()
        if missing := self.safe - set(lines):
            raise Broken(f"{len(missing)} lines that were in the journal are gone, the first: {min(missing)[:200]!r}")
        self.safe = set(lines)
        if len(self._hashes()) < len(lines):
            raise Broken("a row was answered twice in the journal")

    def _hashes(self) -> set[str]:
        """The prompts of the rows that are safe."""
        return {prompt_hash(self.prompts[orjson.loads(line)["row"] - 1]) for line in self.safe}

    def _figure(self, unwritten: list[float], lost: int) -> None:
        figures = self.figures
        figures.lost.append(lost)
        figures.unwritten.append(len(unwritten))
        if self.setting.latency_varies:
            figures.unwritten_apart.append(len(unwritten))
        figures.age_s += unwritten

    def _read_told(self, lost: int) -> int:
        """How many were in flight, as the lock of a killed run says; 0 if it does not. Raises Broken."""
        locks = list(self.watched.glob("*.lock"))
        signature = locks[0].read_bytes() if locks else b""
        if not signature:
            return 0
        told = int(orjson.loads(signature)["in_flight"])
        self.figures.told += 1
        if not lost <= told <= self.setting.concurrency:
            raise Broken(f"the lock says that {told} were in flight; {lost} will be paid for twice")
        return told

    def _phase(self, before: int = -1) -> str:
        """Where a kill came, by the files it left; ``before``: how long the journal was at the start."""
        if list(self.watched.glob("*.sealing")):
            return "while writing the output"
        if self._journals():
            if self.out.exists():
                return "between rename and removal"
            whole = self._journals()[0].read_bytes()
            if len(whole) == before:
                return "before the first append"
            return TORN if whole and not whole.endswith(b"\n") else "with a journal"
        return "with a sealed output" if self.safe else "before the journal"

    def _journals(self) -> list[Path]:
        return list(self.watched.glob("*.partial"))

    def _read(self) -> list[bytes]:
        """The ok lines on disk; standard output's when it has no journal any more. Raises Broken."""
        journals = self._journals()
        path = journals[0] if journals else self._printed if self.setting.stdout else self.out
        lines = whole_lines(path.read_bytes()) if path.exists() else []
        try:
            found = [(line, orjson.loads(line)) for line in lines]
        except ValueError as error:
            raise Broken(f"{path} has a line that can not be read: {error}") from None
        if any(value.get("status") == "error" for _, value in found):
            raise Broken(f"{path} has a failed row")
        return [line for line, value in found if "status" in value]

    def _completed(self) -> None:
        """Look at a complete output. Raises Broken."""
        lines = whole_lines((self._printed if self.setting.stdout else self.out).read_bytes())
        if not all(checksum_ok(line) in (True, None) for line in lines):
            raise Broken("a line has a wrong checksum")
        found = list(results(lines))
        if self.setting.stdout:
            found.sort(key=lambda line: line["row"])
        if [line["row"] for line in found] != list(range(1, len(self.prompts) + 1)):
            raise Broken("the output has not one line for each row, in order")
        for line, row in zip(found, self.rows, strict=True):
            if line["id"] != row.get("id") or not is_answer(line["output"], row["prompt"]):
                raise Broken(f"row {line['row']} has another row's id or answer: {str(line)[:300]}")
            if self.setting.include_input and line["input"] != row:
                raise Broken(f"row {line['row']} has another row's input")
        for prompt in map(prompt_hash, self.prompts):
            if self.billed[prompt] != 1 + self.lost[prompt]:
                raise Broken(f"{prompt} was billed {self.billed[prompt]} times, and lost {self.lost[prompt]} times")
        expected = (".jsonl", ".torn", ".lock", ".ctl") if self.killed else (".jsonl", ".torn")
        if left := [path.name for path in self.watched.iterdir() if path.suffix not in expected]:
            raise Broken(f"left behind: {', '.join(left)}")
        self.figures.outputs += 1
        self.figures.rows += len(found)


def is_answer(output: str, prompt: str) -> bool:
    """Whether the simulated provider says this to the prompt, at any length."""
    natural = expected_answer(prompt)
    return output == natural or output == expected_answer(prompt, len(output) // CHARS_PER_TOKEN)


def settings(runs: int, seed: int) -> Iterator[Setting]:
    """The outputs of a campaign of so many kills."""
    for number, first in enumerate(range(0, runs, KILLS_EACH), start=1):
        yield setting(number, min(KILLS_EACH, runs - first), random.Random(f"{seed}:{number}"))


def kill_one(one: Setting, seed: int, again: str) -> tuple[Figures, str | None]:
    """The figures of one output, and what was broken; then its directory is kept."""
    root = Path(tempfile.mkdtemp(prefix="llmbatch-kill-"))
    figures, broken = Figures(), None
    with ExitStack() as stack:
        try:
            victim = Victim(one, random.Random(f"{seed}:{one.number}:moments"), root, figures)
            stack.callback(victim.sim.stop)
            victim.campaign()
        except Exception as error:
            broken = f"{one.name}: {error!r}; kept: {root}; {again} --case n{one.number}:"
    if broken is None:
        shutil.rmtree(root)
    return figures, broken


def campaign(runs: int, seed: int, case: str | None = None) -> Report:
    """``runs`` kills."""
    report, all_ = Report(), Figures()
    chosen = [one for one in settings(runs, seed) if case is None or case in one.name]
    again = f"python tests/campaigns kill --seed {seed} --runs {runs}"
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for figures, broken in pool.map(lambda one: kill_one(one, seed, again), chosen):
            progress(report.runs, runs, KILLS_EACH)
            report.runs += len(figures.lost)
            report.broken += [broken] if broken else []
            all_.add(figures)
    report.counted = counted(all_)
    return report


def counted(figures: Figures) -> dict[str, int | float | str]:
    """The figures in words."""
    unwritten = Counter(figures.unwritten)
    return {
        "complete outputs": figures.outputs,
        "rows": figures.rows,
        **{f"kills {phase}": count for phase, count in sorted(figures.at.items())},
        "kills left in_flight in the lock": figures.told,
        "rows paid for twice": sum(figures.lost),
        "by one kill at most": max(figures.lost, default=0),
        "of them received and unwritten": sum(figures.unwritten),
        "such by one kill at most": max(unwritten, default=0),
        "such at the 99th percentile of kills": percentile(figures.unwritten, 0.99),
        "such there if answers do not come together": percentile(figures.unwritten_apart, 0.99),
        "kills without such": unwritten[0],
        "kills with one": unwritten[1],
        "ms old at most": round(1000 * max(figures.age_s, default=0.0)),
    }
