"""Ctrl-C, kill, a closed terminal, once to three times at any moment: what is in flight is paid for, and written.

The real command runs against a provider in another process, in one of four settings: on a terminal of its own (Ctrl-C
is typed there, and half of the hang-ups close it), between pipes, detached in a session without a terminal, and so
under nohup. Signals come in steps after the start of the process (also into its imports), or up to 30 ms after
something changed beside its output: the lock, an append, the seal. They come once, twice or three times, some apart,
some at once; where there are several, some rows are never answered, so that a drain would not end.

Kept if the exit code is right: of the signal, or 0 when the output is complete; death by the signal itself only if
nothing had been sent. After one signal every answer that was billed is in the journal and no row is ever billed twice;
after a second one the process has left within a second, and what had been billed long before it is in the journal. No
traceback, no lock is left, the terminal is as it was, its cursor shown. The same command then completes, and what was
in the journal is not billed again. SIGHUP under nohup changes nothing.

Counted: where the first signal came, how the processes ended, the answers billed and given up by a second signal, the
longest drain and the longest leave; and Python's own tracebacks, of a Ctrl-C before the first line of ours.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from end_to_end.processes import COMMAND, PATIENCE_S, Sim, assert_answers, read_lines, until, whole_lines, write_rows

from campaigns.books import Bills
from campaigns.campaign import Report, progress
from campaigns.kill import Moment, Watch
from llmbatch.sim.answers import prompt_hash

LONG_RUNS = 1_000
AT_ONCE = 10
LATENCY = "uniform:low=0.1,high=0.5"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SETTINGS = ("terminal", "pipe", "detached", "nohup")
# Whoever runs this campaign in the background may ignore some, and what is ignored is inherited.
LISTENING = ("env", "--default-signal=INT,TERM,HUP")
STEPS_S = tuple(
    ms / 1000 for ms in (0, 1, 2, 5, 10, 20, 40, 60, 80, 100, 130, 160, 200, *range(250, 1_001, 50), 1_200, 1_400)
)
CHANGES = ((".lock", 1), (".partial", 1), (".partial", 9), (".sealing", 1), (".sealing", 3), (".jsonl", 1))
GAPS_S = (0.0, 0.001, 0.005, 0.02, 0.1, 0.3)
# Two signals that come apart by this are two, however busy the machine is.
APART_S = 0.1
LEAVE_S = 1.0
STALL_TIMEOUT = "3s"
# An answer that was billed so long ago has arrived and is written.
SETTLED_S = 0.25
# A frame of ours that is more than the import of the package, which comes before the first line that can help it.
_OURS = re.compile(r'File "[^"]*/llmbatch/(?!(__init__|_version)\.py"|__main__\.py", line \d+, in <module>)')


def why_not() -> str | None:
    """Why this campaign can not run on this machine; None if it can."""
    if sys.platform != "linux":
        return "only Linux has inotify"
    missing = [tool for tool in ("env", "nohup", "setsid") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


@dataclass(frozen=True)
class Case:
    """One run. ``gaps_s`` lie between its signals; ``stalled`` rows have no answer at the first time of asking."""

    number: int
    signal: signal.Signals
    setting: str
    moment: Moment
    gaps_s: tuple[float, ...]
    rows: int
    concurrency: int
    stalled: int
    closes_terminal: bool

    @property
    def name(self) -> str:
        at = self.moment
        when = f"{at.ending}#{at.number}+{at.delay_s:.3f}" if at.after_s is None else f"{at.after_s:.3f}"
        how = "closed" if self.closes_terminal else self.signal.name
        return f"n{self.number}:{how}x{1 + len(self.gaps_s)}:{self.setting}:at={when}:gaps={self.gaps_s}"

    @property
    def ignored(self) -> bool:
        return self.setting == "nohup" and self.signal == signal.SIGHUP


def cases(runs: int, seed: int) -> Iterator[Case]:
    """Signals, times and settings in turn; the rest by chance."""
    for number in range(1, runs + 1):
        chance = random.Random(f"{seed}:{number}")
        kind, times, setting = list(CODES)[number % 3], number // 3 % 3 + 1, SETTINGS[number // 9 % 4]
        ignored = (kind, setting) == (signal.SIGHUP, "nohup")
        stalled = chance.choice([0, 2]) if times > 1 and not ignored else 0
        gaps = [gap for gap in GAPS_S if gap >= APART_S or not stalled]
        yield Case(
            number=number,
            signal=kind,
            setting=setting,
            moment=moment(chance, CHANGES[:2] if stalled else CHANGES),
            gaps_s=tuple(chance.choice(gaps) for _ in range(times - 1)),
            rows=chance.randint(4, 12),
            concurrency=chance.choice([2, 4, 8]),
            stalled=stalled,
            closes_terminal=setting == "terminal" and kind == signal.SIGHUP and times == 1 and chance.random() < 0.5,
        )


def moment(chance: random.Random, changes: tuple[tuple[str, int], ...]) -> Moment:
    """Steps after the start, or just after something changed; with stalled rows it does not come to the end."""
    if chance.random() < 0.6:
        return Moment(after_s=chance.choice(STEPS_S))
    ending, most = chance.choice(changes)
    return Moment(ending=ending, number=chance.randint(1, most), delay_s=chance.choice([0, 0.001, 0.005, 0.03]))


class Broken(Exception):
    """A promise was not kept."""


class Books:
    """The bills of all runs, read by several threads."""

    def __init__(self, ledger: Path) -> None:
        self._bills = Bills(ledger)
        self._times_s: defaultdict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()

    def times_s(self, prompt: str) -> list[float]:
        """When this prompt was billed (Unix time)."""
        with self._lock:
            for bill in self._bills.new():
                self._times_s[bill["prompt_hash"]].append(bill["time_s"])
            return list(self._times_s[prompt_hash(prompt)])


class Terminal:
    """A pseudo-terminal that somebody looks at: what is shown is read at once."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self._before = termios.tcgetattr(self._ours)
        self._shown = bytearray()
        self._left = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while not self._left.is_set() or select.select([self._ours], [], [], 0)[0]:
            if select.select([self._ours], [], [], 0.02)[0]:
                self._shown += os.read(self._ours, 65536)

    def controls(self, pid: int) -> bool:
        """Whether Ctrl-C would reach this process."""
        with contextlib.suppress(OSError):
            return os.tcgetpgrp(self._ours) == pid
        return False

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> None:
        """Away with it, as when a window is closed; SIGHUP is the kernel's."""
        self.shown()
        if self._ours >= 0:
            os.close(self._ours)
            os.close(self.theirs)
            self._ours = -1

    def shown(self) -> str:
        """All that was shown; the reader then has left."""
        self._left.set()
        self._reader.join()
        return self._shown.decode(errors="replace")

    def check(self) -> None:
        """It is as it was. Raises Broken."""
        shown = self.shown()
        if self._ours >= 0 and termios.tcgetattr(self._ours) != self._before:
            raise Broken("the terminal's settings were changed")
        if shown.rfind("\x1b[?25l") > shown.rfind("\x1b[?25h"):
            raise Broken("the terminal's cursor is hidden")


@dataclass
class Ended:
    """How the process ended that got the signals, and when they were sent (Unix time)."""

    code: int
    said: str
    at_s: float
    sent_s: list[float] = field(default_factory=list)
    phase: str = ""


class Victim:
    """One run, and what must be true of it."""

    def __init__(self, case: Case, word: str, root: Path, base_url: str, books: Books, stack: ExitStack) -> None:
        self.case, self.root, self._books, self._stack = case, root, books, stack
        self.work = root / "work"
        self.out = self.work / "out.jsonl"
        self.partial, self.lock = self.work / "out.jsonl.partial", self.work / "out.jsonl.lock"
        for directory in (self.work, root / "home"):
            directory.mkdir()
        first_stalled = case.rows - case.stalled
        self.prompts = [f"{word} {'stall' if row >= first_stalled else 'row'} {row}" for row in range(case.rows)]
        write_rows(root / "in.jsonl", self.prompts)
        self._command = [*COMMAND, "run", str(root / "in.jsonl"), "-o", str(self.out), "-c", str(case.concurrency)]
        self._command += ["-m", "m", "--base-url", base_url]
        self._terminal: Terminal | None = None
        self._errors = root / "stderr"

    @cached_property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "XDG_STATE_HOME": str(self.root / "state"),
            "PYTHONWARNINGS": "error",
            "LC_ALL": "C.UTF-8",
            "SSL_CERT_FILE": os.devnull,
            "TERM": "xterm-256color",
        }

    def run(self, report: Report) -> None:
        """Signal it, look, let it complete, look. Raises Broken."""
        ended = self._signalled()
        recorded = self._recorded()
        report.count(f"first signal {ended.phase}")
        report.count(self._ending(ended))
        self._check(ended, report)
        given_up = self._check_bills(ended, recorded)
        report.count("answers given up by a second signal", given_up)
        if ended.sent_s and ended.code == CODES[self.case.signal]:
            kind = "ms to drain at most" if len(ended.sent_s) == 1 else "ms to leave at most"
            report.most(kind, round(1000 * (ended.at_s - ended.sent_s[-1 if len(ended.sent_s) == 1 else 1])))
        self._complete(recorded, once=len(ended.sent_s) < 2)

    def _signalled(self) -> Ended:
        watch = Watch(self.work)
        process, terminal = self._start()
        try:
            self.case.moment.wait(process, watch)
            phase, sent_s = self._phase(process), []
            for gap_s in (0.0, *self.case.gaps_s):
                time.sleep(gap_s)
                if process.poll() is None:
                    sent_s.append(time.time())
                    self._send(process, terminal)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                raise Broken(f"still running after {PATIENCE_S:g} s") from None
            at_s = time.time()
        finally:
            watch.close()
            process.kill()
            process.wait()
        said = self._errors.read_text(errors="replace") + (terminal.shown() if terminal else "")
        return Ended(process.returncode, said, at_s, sent_s, phase)

    def _start(self) -> tuple[subprocess.Popen[bytes], Terminal | None]:
        """The tools that change a session or a signal are replaced by the command: its pid is the process's."""
        around = {"terminal": ["setsid", "-c"], "pipe": [], "detached": ["setsid"], "nohup": ["setsid", "nohup"]}
        command = [*LISTENING, *around[self.case.setting], *self._command]
        with self._errors.open("wb") as errors:
            if self.case.setting != "terminal":
                stdout = subprocess.PIPE if self.case.setting == "pipe" else subprocess.DEVNULL
                process = subprocess.Popen(
                    command, env=self.environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=errors
                )
                if process.stdout is not None:
                    self._stack.callback(process.stdout.close)
                if self.case.setting == "nohup":
                    until(lambda: _ignores_hup(process.pid), "nohup has done its work")
                return process, None
        self._terminal = terminal = Terminal()
        self._stack.callback(terminal.close)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.theirs)
        process = subprocess.Popen(command, env=self.environment, **streams)  # type: ignore[call-overload]
        until(lambda: terminal.controls(process.pid), "it has its terminal")
        return process, terminal

    def _send(self, process: subprocess.Popen[bytes], terminal: Terminal | None) -> None:
        if terminal is not None and self.case.closes_terminal:
            terminal.close()
        elif terminal is not None and self.case.signal == signal.SIGINT:
            terminal.type(b"\x03")
        else:
            process.send_signal(self.case.signal)

    def _phase(self, process: subprocess.Popen[bytes]) -> str:
        if process.poll() is not None:
            return "too late"
        if list(self.work.glob("*.sealing")) or self.out.exists():
            return "at the end"
        if not self.lock.exists():
            return "before the lock"
        return "in mid-run" if self._recorded() else "before the first result"

    def _recorded(self) -> set[int]:
        """The rows that are done, on disk now."""
        lines = whole_lines(self.out if self.out.exists() else self.partial)
        return {line["row"] for line in lines if line["status"] == "ok"}

    def _ending(self, ended: Ended) -> str:
        if ended.code in (-self.case.signal, 1):
            return "died before the handlers"
        return "complete" if ended.code == 0 else "stopped and said so"

    def _check(self, ended: Ended, report: Report) -> None:
        """Of the process, by what it left. Raises Broken."""
        complete, kind = self.out.exists(), self.case.signal
        said = f"{ended.said[-900:]!r}"
        untouched = not complete and not self.partial.exists()
        right = {0: complete, CODES[kind]: not complete, -kind: untouched}
        if "Traceback" in ended.said:
            # Python's own start may also swallow the signal, in a callback of an import, and go on.
            starting = untouched or ended.phase == "before the lock"
            if _OURS.search(ended.said) or kind != signal.SIGINT or not starting:
                raise Broken(f"a traceback: {ended.said[ended.said.index('Traceback') :][:900]!r} {said}")
            report.count("tracebacks of Python's own start")
            right[1] = True  # while it imports its site module
        if not right.get(ended.code, False) or (ended.code and (self.case.ignored or not ended.sent_s)):
            raise Broken(f"exit code {ended.code}, {'complete' if complete else 'not complete'}: {said}")
        if left := [path.name for path in self.work.iterdir() if path.suffix in (".lock", ".sealing")]:
            raise Broken(f"left behind: {', '.join(left)}")
        apart = len(ended.sent_s) > 1 and ended.sent_s[1] - ended.sent_s[0] >= APART_S
        if apart and not self.case.ignored and ended.at_s - ended.sent_s[1] > LEAVE_S:
            raise Broken(f"it left {ended.at_s - ended.sent_s[1]:.2f} s after the second signal: {said}")
        if self._terminal is not None:
            self._terminal.check()

    def _check_bills(self, ended: Ended, recorded: set[int]) -> int:
        """How many answers a second signal gave up. Raises Broken for any that need not have been lost."""
        billed = {row: times for row, prompt in enumerate(self.prompts, 1) if (times := self._books.times_s(prompt))}
        if ended.code in (-self.case.signal, 1) and billed:
            raise Broken("killed by the signal itself, and something had been sent")
        lost = {row: times[0] for row, times in billed.items() if row not in recorded and times[0] <= ended.at_s}
        second_s = ended.sent_s[1] if len(ended.sent_s) > 1 else float("inf")
        if early := [row for row, at_s in lost.items() if at_s < second_s - SETTLED_S]:
            raise Broken(f"answers to the rows {early} were billed and are not in the journal: {ended.said[-900:]!r}")
        return len(lost)

    def _complete(self, recorded: set[int], *, once: bool) -> None:
        """The same command again; it may be the first to ask for the stalled rows. Raises Broken."""
        command = [*self._command, "--timeout", STALL_TIMEOUT] if self.case.stalled else self._command
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S
        )
        if done.returncode != 0 or b"Traceback" in done.stderr:
            raise Broken(f"the same command again: exit code {done.returncode}: {done.stderr[-900:]!r}")
        assert_answers(read_lines(self.out), self.prompts)
        for row, prompt in enumerate(self.prompts, 1):
            times = len(self._books.times_s(prompt))
            if times != 1 and (once or row in recorded or times != 2):
                raise Broken(f"row {row} was billed {times} times")
        if left := [path.name for path in self.work.iterdir() if path != self.out]:
            raise Broken(f"left behind: {', '.join(left)}")


def run_one(case: Case, seed: int, base_url: str, books: Books, again: str) -> Report:
    """One case; its directory is kept if a promise was broken."""
    report = Report(runs=1)
    root = Path(tempfile.mkdtemp(prefix="llmbatch-signals-"))
    try:
        with ExitStack() as stack:
            Victim(case, f"{seed}:{case.number}", root, base_url, books, stack).run(report)
    except Exception as error:
        report.broken = [f"{case.name}: {error!r}; kept: {root}; {again} --case n{case.number}:"]
    else:
        shutil.rmtree(root)
    return report


def campaign(runs: int, seed: int, case: str | None = None) -> Report:
    """``runs`` processes that get signals, and each continued."""
    report, counted = Report(), Counter[str]()
    most: dict[str, int] = {}
    chosen = [one for one in cases(runs, seed) if case is None or case in one.name]
    again = f"python tests/campaigns signals --seed {seed} --runs {runs}"
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        script, ledger = Path(directory, "script.jsonl"), Path(directory, "ledger.jsonl")
        script.write_text('{"prompt": "stall", "fault": "stall", "times": 1}\n')
        sim = Sim("--latency", LATENCY, "--ledger", str(ledger), "--script", str(script))
        stack.callback(sim.stop)
        books = Books(ledger)
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        for one in pool.map(lambda case: run_one(case, seed, sim.base_url, books, again), chosen):
            progress(report.runs, runs)
            report.runs += 1
            report.broken += one.broken
            counts: dict[str, Any] = one.counted
            for what, value in counts.items():
                if what.endswith("at most"):
                    most[what] = max(most.get(what, 0), value)
                else:
                    counted[what] += value
    report.counted = {**dict(sorted(counted.items())), **most}
    return report


def _ignores_hup(pid: int) -> bool:
    """Whether it is past what ``env`` and ``nohup`` do before they become the command (proc(5), SigIgn)."""
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored.split()[1], 16) >> (signal.SIGHUP - 1) & 1)
