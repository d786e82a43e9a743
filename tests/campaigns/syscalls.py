"""One call to the disk fails, and the run says so and loses nothing.

The real command runs under strace, which makes one call fail: each write-side call (write, fdatasync, fsync,
ftruncate, openat, rename, unlink, flock, fchmod, close) that touches a file of the output, with each of five errors,
once or from there on, for five things that a run may find: nothing, a torn journal, a sealed output with rows still
to do, answers saved elsewhere, a seal that was cut short. Then the same command runs without fault.

Kept if the run with the fault ends in time with the right exit code and a reason, if all it reported done and all it
was billed for is on disk (journal, spill or output), and if the second run asks for none of it again, completes, and
leaves nothing behind. Counted: the faults that were reached, the runs that stopped, and what they saved elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from queue import Queue
from typing import Any

from end_to_end.processes import COMMAND, Done, Sim, read_lines, write_rows

from campaigns.campaign import Report, progress
from llmbatch.files.spill import header
from llmbatch.sim.answers import expected_answer, prompt_hash

LONG_RUNS = 1_000
ROWS = 300  # so many that the journal is made durable more than once
CALLS = 200
AT_ONCE = 2
PATIENCE_S = 60.0
HUNG = -1
WITH_BAD_ROWS = 1  # the exit code of a run that is complete
EVERY_PERSISTENT = 4  # one fault in so many goes on to the end of the run
STARTS = ("nothing", "torn", "sealed", "sealing", "spilled")

_DATA = ("ENOSPC", "EIO", "EDQUOT", "EFBIG", "EINTR")
_SYNC = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EINTR")
_NAME = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EINTR")
ERRORS = {
    "write": _DATA,
    "pwrite64": _DATA,
    "writev": _DATA,
    "ftruncate": _DATA,
    "fdatasync": _SYNC,
    "fsync": _SYNC,
    "close": _SYNC,
    "fchmod": ("EPERM", "EIO", "ENOSPC", "EROFS", "EINTR"),
    "openat": ("EMFILE", "ENOSPC", "EDQUOT", "EIO", "EINTR"),
    "rename": _NAME,
    "renameat2": _NAME,
    "unlink": _NAME,
    "flock": ("ENOLCK", "EIO", "EAGAIN", "EOPNOTSUPP", "EINTR"),
}
# May fail unnoticed: nothing that must last depends on it. By name, and by name and file: the number of requests in
# flight, and that what was taken back is gone from where it had been saved (it may be taken back again).
HARMLESS = ("close", "unlink", ("pwrite64", "lock"), ("fsync", "state"), ("openat", "state"))
# Python calls these again after EINTR (PEP 475); but the C library's opendir, for the state directory, is not.
TRIED_AGAIN = ("write", "fdatasync", "fsync", "ftruncate", "openat", "flock", "fchmod")
CALL = re.compile(rb'^(\d+) +(\w+)\((?:AT_FDCWD[^,]*, )?(?:\d+<([^>]*)>|"([^"]*)")')


@dataclass(frozen=True)
class Call:
    """The ``number``-th call of this name on this file in its thread, which is how strace counts."""

    start: str
    name: str
    file: str
    number: int

    @property
    def harmless(self) -> bool:
        return self.name in HARMLESS or (self.name, self.file) in HARMLESS


@dataclass(frozen=True)
class Case:
    """A call, the error it ends with, and whether all later ones do as well."""

    call: Call
    error: str
    persistent: bool

    @property
    def name(self) -> str:
        call = self.call
        return f"{call.start}:{call.name}:{call.file}:{call.number}{'+' if self.persistent else ''}:{self.error}"


def why_not() -> str | None:
    """Why this campaign can not run on this machine; None if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-f", "--seccomp-bpf", "-o", os.devnull, "-e", "inject=fsync:error=EIO", "true"]
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return None if tried.returncode == 0 else f"strace can not trace here: {tried.stderr.strip()}"


class Place:
    """A provider, its books, and one directory for one run after another."""

    def __init__(self, root: Path, rows: int, sim: Sim) -> None:
        self.root, self.work, self.state, self.temporary = root, root / "work", root / "state", root / "tmp"
        self.sim = sim
        self.prompts = [f"prompt {number}" for number in range(1, rows + 1)]
        self.bad = {rows // 3, 2 * rows // 3}
        root.mkdir()
        asked = [{"prompt": "" if at in self.bad else prompt} for at, prompt in enumerate(self.prompts)]
        self.input = write_rows(
            root / "in.jsonl", [row | ({"id": at} if at % 2 else {}) for at, row in enumerate(asked)]
        )
        spill = self.state / "llmbatch" / "out.jsonl.partial.saved.spill"
        self.files = {
            "partial": self.work / "out.jsonl.partial",
            "lock": self.work / "out.jsonl.lock",
            "torn": self.work / "out.jsonl.torn",
            "sealing": self.work / ".out.jsonl.sealing",
            "out": self.work / "out.jsonl",
            "directory": self.work,
            "spill": spill,
            "state": spill.parent,
        }
        self.begin("nothing")
        done = self.run()
        assert done.code == WITH_BAD_ROWS, done.err
        self.answers = self.files["out"].read_bytes().splitlines(keepends=True)

    def begin(self, start: str) -> None:
        """What the next run finds: half of the rows done, in the way named."""
        for directory in (self.work, self.state, self.temporary):
            shutil.rmtree(directory, ignore_errors=True)
        for directory in (self.work, self.files["state"], self.temporary):
            directory.mkdir(parents=True)
        if start != "nothing":
            half = self.answers[: len(self.prompts) // 2]
            for name, data in self._left(start, half).items():
                self.files[name].write_bytes(data)

    def _left(self, start: str, half: list[bytes]) -> dict[str, bytes]:
        all_ = b"".join(half)
        if start == "torn":
            return {"partial": all_ + self.answers[-1][:50]}
        if start == "sealed":
            return {"out": all_}
        if start == "sealing":
            return {"out": all_, "partial": all_}
        assert start == "spilled", start
        quarter = len(half) // 2
        return {
            "partial": b"".join(half[:quarter]),
            "spill": header(self.files["partial"]) + b"".join(half[quarter:]),
        }

    def run(self, *tracer: str) -> Done:
        command = [*tracer, *COMMAND, "run", str(self.input), "-o", str(self.files["out"]), "-m", "m", "-c", "4"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "XDG_STATE_HOME": str(self.state),
            "TMPDIR": str(self.temporary),
            "LC_ALL": "C.UTF-8",
            "SSL_CERT_FILE": os.devnull,
        }
        process = subprocess.Popen(
            [*command, "--base-url", self.sim.base_url, "--progress", "json"],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            return Done(HUNG, out, err.decode(), PATIENCE_S)
        return Done(process.returncode, out, err.decode(), 0.0)

    def traced(self, files: list[str], names: tuple[str, ...], fault: str | None = None) -> tuple[Done, bytes]:
        """The command with the calls named, on the files named, written down; and one of them failing."""
        log = self.root / "trace"
        paths = [word for file in files for word in ("-P", str(self.files[file]))]
        tamper = [] if fault is None else ["-e", f"inject={fault}"]
        strace = ["strace", "-f", "-y", "--seccomp-bpf", "-o", str(log), "-e", "trace=" + ",".join(names)]
        return self.run(*strace, *tamper, *paths), log.read_bytes()

    def calls(self, start: str) -> list[Call]:
        """The write-side calls of a run without fault, in their order."""
        self.begin(start)
        _, log = self.traced(list(self.files), tuple(ERRORS))
        names = {os.fsencode(path): name for name, path in self.files.items()}
        found, seen = [], Counter[tuple[bytes, bytes, bytes]]()
        for line in log.splitlines():
            match = CALL.match(line)
            if match is None or (path := match[3] or match[4]) not in names:
                continue
            seen[match[1], match[2], path] += 1
            found.append(Call(start, match[2].decode(), names[path], seen[match[1], match[2], path]))
        return list(dict.fromkeys(found))

    def billed(self) -> Counter[str]:
        """How often each prompt was paid for so far, by its hash."""
        return Counter(self.sim.ledger(full=True)["billed_by_prompt"])

    def spills(self) -> list[Path]:
        """What was saved elsewhere."""
        return sorted([*self.files["state"].iterdir(), *self.temporary.iterdir()])

    def saved(self) -> set[str]:
        """The hashes of the prompts whose answers are in the journal, in the output, or saved elsewhere."""
        there = [path for path in (self.files["partial"], self.files["out"], *self.spills()) if path.exists()]
        ok = (line for path in there for line in whole_results(path) if line["status"] == "ok")
        return {prompt_hash(self.prompts[line["row"] - 1]) for line in ok}


def whole_results(path: Path) -> Iterator[dict[str, Any]]:
    """The results in a file that may have a torn end."""
    for data in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            line = json.loads(data)
            if "status" in line:
                yield line


@dataclass
class Outcome:
    """What one case showed: whether its fault was met, how the run ended, and what was wrong."""

    reached: bool
    stopped: bool
    saved_elsewhere: bool
    wrong: list[str]


def attempt(place: Place, case: Case) -> Outcome:
    """Fail, look, run again, look."""
    call = case.call
    place.begin(call.start)
    before, there = place.billed(), place.saved()
    fault = f"{call.name}:error={case.error}:when={call.number}{'+' if case.persistent else ''}"
    faulted, log = place.traced([call.file], (call.name,), fault)
    reached, stopped = b"(INJECTED)" in log, faulted.code != WITH_BAD_ROWS
    after, saved = place.billed(), place.saved()
    spilled = stopped and call.start != "spilled" and place.spills() != []
    wrong = list(_faulted(case, faulted, after - before, there, saved)) if reached else []
    again = place.run()
    may_stay = {place.files["spill"].name} if (call.name, call.file) == ("unlink", "spill") else set()
    wrong += _completed(place, again, place.billed() - after, saved, may_stay)
    if wrong:
        wrong.append(f"exit {faulted.code}, then {again.code}; {faulted.err[-900:]!r}")
    return Outcome(reached, stopped, spilled, wrong)


def _faulted(case: Case, done: Done, paid: Counter[str], before: set[str], saved: set[str]) -> Iterator[str]:
    """What is wrong with how a run met its fault."""
    if done.code == HUNG:
        yield "it hangs"
        return
    if done.code not in (WITH_BAD_ROWS, 2, 5, 6):
        yield f"exit code {done.code}"
    if "Traceback" in done.err or " bug" in done.err:
        yield "it calls it a bug"
    if done.code in (2, 6) and paid:
        yield f"exit code {done.code} says that nothing was sent, and {paid.total()} requests were"
    if done.code == WITH_BAD_ROWS and case.error != "EINTR" and not case.call.harmless:
        yield "the error went unnoticed"
    if (
        done.code != WITH_BAD_ROWS
        and case.error == "EINTR"
        and case.call.name in TRIED_AGAIN
        and case.call.file != "state"
    ):
        yield "a call that was interrupted is not tried again"
    if done.code in (2, 5) and os.strerror(getattr(errno, case.error)) not in done.err:
        yield "the reason is not said"
    if twice := before & set(paid):
        yield f"{len(twice)} answers that were there were paid for again"
    if (lost := set(paid) - saved) and "could not be saved anywhere" not in done.err:
        yield f"{len(lost)} answers that were paid for are nowhere"
    ends = [json.loads(line) for line in done.err.splitlines() if line.startswith('{"event":"end"')]
    if ends and (reported := ends[-1]["ok"] + ends[-1]["ok_before"]) > len(saved):
        yield f"{reported} rows were reported done, {len(saved)} are on disk"


def _completed(place: Place, done: Done, paid: Counter[str], saved: set[str], may_stay: set[str]) -> Iterator[str]:
    """What is wrong with the run after it."""
    if done.code != WITH_BAD_ROWS:
        yield f"the second run: exit code {done.code}: {done.err[-900:]!r}"
        return
    if twice := saved & set(paid):
        yield f"{len(twice)} answers that were on disk were paid for again"
    lines = read_lines(place.files["out"])
    answers = [None if at in place.bad else expected_answer(prompt) for at, prompt in enumerate(place.prompts)]
    if [line["row"] for line in lines] != list(range(1, len(answers) + 1)):
        yield "the output has not one line for each row"
    elif [line.get("output") for line in lines] != answers:
        yield "the output has wrong answers"
    left = {path.name for path in place.work.iterdir()} - {"out.jsonl", "out.jsonl.torn"}
    if left := sorted((left | {path.name for path in place.spills()}) - may_stay):
        yield f"left behind: {', '.join(left)}"


def cases(calls: Iterable[Call], chance: random.Random, word: str | None) -> list[Case]:
    """Every error at every call, in an order by chance in which each kind of call comes early."""
    kinds: dict[tuple[str, ...], list[Case]] = {}
    for call in calls:
        for at, error in enumerate(ERRORS[call.name]):
            persistent = error != "EINTR" and (call.number + at) % EVERY_PERSISTENT == 0
            case = Case(call, error, persistent)
            if word is None or word in case.name:
                kinds.setdefault((call.start, call.name, call.file), []).append(case)
    decks = list(kinds.values())
    for deck in (*decks, decks):
        chance.shuffle(deck)  # type: ignore[arg-type]
    return [case for turn in zip_longest(*decks) for case in turn if case is not None]


def few_writes(calls: Sequence[Call], most: int) -> list[Call]:
    """Most calls append a line to the journal, each like the next: of these as many as fit, evenly spread.

    How many lines share a write is up to chance, so the last ones may not come in another run.
    """
    appends = [call for call in calls if (call.name, call.file) == ("write", "partial")]
    others = [call for call in calls if call not in appends]
    likely = appends[: max(1, len(appends) * 2 // 3)]
    step = max(1, math.ceil(len(likely) / max(1, most - len(others))))
    return others + likely[::step]


def campaign(runs: int, seed: int, case: str | None = None, *, rows: int = ROWS) -> Report:
    """``runs`` faults, each followed by a run without."""
    report, chance = Report(), random.Random(seed)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        places: Queue[Place] = Queue()
        for number in range(AT_ONCE):
            sim = Sim()
            stack.callback(sim.stop)
            places.put(Place(root / str(number), rows, sim))

        def in_a_place(act: Callable[[Place, Any], Any], what: Any) -> Any:
            place = places.get()
            try:
                return act(place, what)
            finally:
                places.put(place)

        starts = list(pool.map(lambda start: in_a_place(Place.calls, start), STARTS))
        all_ = [call for calls in starts for call in few_writes(calls, CALLS)]
        report.counted["different calls"] = len(all_)
        chosen = cases(all_, chance, case)[:runs]
        for number, (one, outcome) in enumerate(
            zip(chosen, pool.map(lambda one: in_a_place(attempt, one), chosen), strict=True), start=1
        ):
            progress(number, len(chosen))
            report.runs += 1
            report.count("faults met", outcome.reached)
            report.count("runs stopped", outcome.stopped)
            report.count("with answers saved elsewhere", outcome.saved_elsewhere)
            if outcome.wrong:
                again = f"python tests/campaigns syscalls --seed {seed} --case {one.name}"
                report.broken.append(f"{one.name}: {'; '.join(outcome.wrong)}; {again}")
    return report
