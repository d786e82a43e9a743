"""A long run over a provider that fails now and then, killed and started again: the books agree, nothing grows.

Of the answers 1 % are rate limits, 0.5 % server errors, 0.1 % resets, 0.05 % cut off, 0.02 % no valid answers; of the
rows 0.1 % can not be sent. In the first half of the work the command is killed (kill -9), and started again; when it is
complete it runs again until only rows that can not be sent are left. ``runs`` are rows.

Kept if OUT has one line per row, in order, each with the right id and answer; if each row that was done was never
billed again, each answer in OUT was billed once and once more for each kill that lost it, and a kill lost no more than
the concurrency; if no file is left over. While a run lasts, memory (VmRSS), descriptors and threads are looked at each
second; from its first 100,000 answers on memory may grow by 5 % and by what is kept of every row (its id, and its place
in the journal when it is sealed: 30 bytes together), descriptors and threads not at all. A shorter run is not judged:
buffers and the allocator take their time to find their size.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from end_to_end.processes import COMMAND, Sim

from campaigns.books import Bills, closed, is_record
from campaigns.campaign import Report
from llmbatch.sim.answers import expected_answer, prompt_hash

LONG_RUNS = 1_000_000
MANY_ROWS = 100_000
CONCURRENCY = 64
RUNS_AT_MOST = 8
BAD_SHARE = 0.001
BAD_ROWS = (b'{"prompt": ', b'{"text":"no prompt"}', b'{"prompt":""}', b"17", b'{"prompt":"\xff"}')
FAULTS = {
    "429": 0.01,
    "500": 0.002,
    "502": 0.001,
    "503": 0.001,
    "529": 0.001,
    "reset-before": 0.0005,
    "reset-after": 0.0005,
    "truncate": 0.0005,
    "garbage-json": 0.0001,
    "empty": 0.0001,
}
POLL_S = 0.02
SAMPLE_S = 1.0
WARM_ROWS = 100_000
GROWTH = 0.05
ROW_BYTES = 30
SPARE_FILES = 2  # connections that were reset and are being opened again
SPARE_THREADS = 1  # that of the seal


def why_not() -> str | None:
    """Why this campaign can not run on this machine; None if it can."""
    return None if sys.platform == "linux" else "only Linux has /proc/PID/status"


class Broken(Exception):
    """A promise was not kept."""


@dataclass(frozen=True)
class Sample:
    """What a running process holds, and how many answers the provider had billed by then."""

    billed: int
    rss_bytes: int
    files: int
    threads: int


def sample(pid: int, billed: int) -> Sample:
    """From proc(5)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(billed, int(fields["VmRSS"].split()[0]) * 1024, files, int(fields["Threads"]))


class Soak:
    """The input, the provider, the runs, and what must be true of them."""

    def __init__(self, rows: int, seed: int, root: Path) -> None:
        chance = random.Random(seed)
        self.root, self.work, self.rows, self.seed = root, root / "work", rows, seed
        for name in ("work", "state", "home", "tmp"):
            (root / name).mkdir()
        self.out = self.work / "out.jsonl"
        self.bad = {row for row in range(1, rows + 1) if chance.random() < BAD_SHARE} | {rows // 2}
        with (root / "in.jsonl").open("wb") as file:
            for row in range(1, rows + 1):
                good = orjson.dumps({"id": f"r{row}", "prompt": prompt(row)})
                file.write((chance.choice(BAD_ROWS) if row in self.bad else good) + b"\n")
        self.kills_at = sorted(chance.uniform(0.02, 0.5) * rows for _ in range(5 if rows >= MANY_ROWS else 2))
        faults = [word for kind, rate in FAULTS.items() for word in ("--fault", f"{kind}={rate}")]
        ledger = root / "ledger.jsonl"
        # A pause of a second for each rate limit would make most of the run waiting.
        latency = ("--latency", "uniform:low=0.002,high=0.02", "--retry-after", "0.001")
        self.sim = Sim(*latency, "--seed", str(seed), "--ledger", str(ledger), *faults)
        self.bills = Bills(ledger)
        self.row_of = {prompt_hash(prompt(row)): row for row in range(1, rows + 1)}
        self.done = bytearray(rows + 1)
        self.answered = bytearray(rows + 1)  # how often each row was billed for a whole answer
        self.lost = bytearray(rows + 1)  # and how often that answer did not reach the journal
        self.report = Report(runs=rows)

    def campaign(self) -> None:
        """Raises Broken."""
        for at in self.kills_at:
            self.report.count("kills", self.run(at) == -signal.SIGKILL)
        codes = [self.run(None)]
        while (failed := self.failed()) != self.bad and len(codes) < RUNS_AT_MOST:
            self.report.count("rows that failed at first", len(failed - self.bad))
            codes.append(self.run(None))
        self.report.counted["complete runs"] = len(codes)
        if set(codes) != {1}:
            raise Broken(f"exit codes {codes} of runs that are complete but for rows that can not be sent")
        self.look()

    def run(self, kill_at: float | None) -> int:
        """One run, killed when so many answers are billed; compare the books after it. Raises Broken."""
        words = [*COMMAND, "run", str(self.root / "in.jsonl"), "-o", str(self.out), "-m", "m", "-c", str(CONCURRENCY)]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "XDG_STATE_HOME": str(self.root / "state"),
            "TMPDIR": str(self.root / "tmp"),
            "LC_ALL": "C.UTF-8",
            "SSL_CERT_FILE": os.devnull,
        }
        with (self.root / "stderr").open("ab") as errors:
            process = subprocess.Popen(
                [*words, "--base-url", self.sim.base_url],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            try:
                samples = self._watch(process, kill_at)
            finally:
                process.kill()
                process.wait()
        said = (self.root / "stderr").read_text()
        if "Traceback" in said or process.returncode not in (0, 1, -signal.SIGKILL):
            raise Broken(f"exit code {process.returncode}: {said[-900:]!r}")
        closed(self.sim, full=False)
        self._account()
        self._judge(samples)
        return process.returncode

    def _watch(self, process: subprocess.Popen[bytes], kill_at: float | None) -> list[Sample]:
        samples: list[Sample] = []
        due_s = 0.0
        while process.poll() is None:
            time.sleep(POLL_S)
            billed = self.sim.ledger()["billed"]
            if kill_at is not None and billed >= kill_at:
                break
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + SAMPLE_S
                try:
                    samples.append(sample(process.pid, billed))
                except (OSError, KeyError):  # it ends, and has no memory any more
                    break
                if len(samples) % 30 == 0:
                    print(f"  {billed:,}/{self.rows:,}: {samples[-1]}", file=sys.stderr, flush=True)
        if kill_at is None:
            process.wait()
        return samples

    def _account(self) -> None:
        """Both books after a run. Raises Broken."""
        billed = bytearray(self.rows + 1)
        for bill in self.bills.new():
            row = self.row_of[bill["prompt_hash"]]
            if self.done[row]:
                raise Broken(f"row {row} was done and was billed again")
            self.answered[row] += bill["fault"] is None
            billed[row] += bill["fault"] is None
        if twice := sum(count > 1 for count in billed):
            raise Broken(f"{twice} rows got two whole answers in one run")
        now = bytearray(self.rows + 1)
        for line in self.lines():
            now[line["row"]] |= line["status"] == "ok"
        if gone := sum(before > after for before, after in zip(self.done, now, strict=True)):
            raise Broken(f"{gone} rows that were done are not done any more")
        lost = [row for row in range(1, self.rows + 1) if billed[row] and not now[row]]
        if len(lost) > CONCURRENCY:
            raise Broken(f"{len(lost)} answers are lost, and {CONCURRENCY} can be in flight")
        self.report.count("rows paid for twice", len(lost))
        for row in lost:
            self.lost[row] += 1
        self.done = now

    def lines(self) -> Iterator[dict[str, Any]]:
        """The result lines on disk, one after the other."""
        partial = self.work / "out.jsonl.partial"
        with (partial if partial.exists() else self.out).open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or is_record(line):
                    value = orjson.loads(line)
                    if "status" in value:
                        yield value

    def failed(self) -> set[int]:
        return {line["row"] for line in self.lines() if line["status"] == "error"}

    def look(self) -> None:
        """The complete output. Raises Broken."""
        row = 0
        for row, line in enumerate(self.lines(), start=1):
            if line["row"] != row:
                raise Broken(f"line {row} is of row {line['row']}")
            if row in self.bad:
                if self.answered[row] or line["status"] != "error":
                    raise Broken(f"row {row} can not be sent, and was")
            elif (line["id"], line["output"]) != (f"r{row}", expected_answer(prompt(row))):
                raise Broken(f"row {row} has another row's id or answer: {str(line)[:300]}")
            elif self.answered[row] != 1 + self.lost[row]:
                raise Broken(f"row {row} was answered {self.answered[row]} times, and lost {self.lost[row]} times")
        if row != self.rows:
            raise Broken(f"{row} lines for {self.rows} rows")
        left = [path for name in ("work", "state", "tmp") for path in (self.root / name).rglob("*") if path.is_file()]
        if left := [path.name for path in left if path.name not in ("out.jsonl", "out.jsonl.torn")]:
            raise Broken(f"left behind: {', '.join(left)}")
        self.report.count("rows that can not be sent", len(self.bad))
        for fault, count in sorted(self.sim.ledger()["faults"].items()):
            self.report.counted[f"faults {fault}"] = count

    def _judge(self, samples: list[Sample]) -> None:
        """Does anything grow? That does not end the campaign."""
        if not samples:
            return
        self.report.most("MB of memory at most", max(each.rss_bytes for each in samples) >> 20)
        self.report.most("descriptors at most", max(each.files for each in samples))
        self.report.most("threads at most", max(each.threads for each in samples))
        warm = [each for each in samples if each.billed >= samples[0].billed + WARM_ROWS]
        if not warm or (rows := warm[-1].billed - warm[0].billed) < WARM_ROWS:
            return
        sending = [each for each in warm if each.billed < warm[-1].billed]  # the sealing pass has its own table
        first, half = warm[0], len(warm) // 2
        grown = max(each.rss_bytes for each in sending) - first.rss_bytes
        self.report.counted["answers in the longest run"] = warm[-1].billed - samples[0].billed
        self.report.counted["MB of memory after 100,000"] = round(first.rss_bytes / 2**20, 1)
        self.report.counted["bytes a row more from there"] = round(grown / rows, 1)
        self.report.counted["% more from there"] = round(100 * grown / first.rss_bytes, 1)
        if grown > GROWTH * first.rss_bytes + ROW_BYTES * rows:
            self.broken(f"memory grew from {first.rss_bytes:,} by {grown:,} bytes over {rows:,} rows")
        for what, spare in (("files", SPARE_FILES), ("threads", SPARE_THREADS)):
            before, after = (max(getattr(each, what) for each in some) for some in (warm[:half], warm[half:]))
            if after > before + spare:
                self.broken(f"{what} grew from {before} to {after}")

    def broken(self, what: str) -> None:
        """Say it, and how to see it again; the directory is kept."""
        again = f"python tests/campaigns soak --seed {self.seed} --runs {self.rows}"
        self.report.broken.append(f"{what}; kept: {self.root}; {again}")


def prompt(row: int) -> str:
    return f"What is {row} times {row % 97}, in words?"


def campaign(runs: int, seed: int, case: str | None = None) -> Report:
    """``runs`` rows; there are no cases."""
    root = Path(tempfile.mkdtemp(prefix="llmbatch-soak-"))
    soak = Soak(runs, seed, root)
    try:
        soak.campaign()
    except Exception as error:
        soak.broken(repr(error))
    finally:
        soak.sim.stop()
    if not soak.report.broken:
        shutil.rmtree(root)
    return soak.report
