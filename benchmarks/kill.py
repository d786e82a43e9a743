"""kill -9 in the middle, then the same command: nothing lost, nothing that was done paid for again.

The simulator runs in another process and keeps its own ledger of what it billed. Each run is killed after a
random share of its rows; then the same command finishes it. It must hold that the sealed output has exactly one
line per row, in order, each with the answer to its own prompt, and that no row that stood in the journal at the
kill was billed twice. What may be billed twice are rows in flight at the kill; they are counted. Exit code 1 if a
promise broke.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import clients
from measure import arguments, keep, kill_group, run_child, table, verdict
from rows import write_rows

from llmbatch.sim.answers import prompt_hash

CONCURRENCY = 64
LATENCY_S = 0.05
TIMEOUT_S = 120.0
POLL_S = 0.005
SEED = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one kill and one second run came to. Rows are counted, but ``exit_code`` and ``intact``."""

    done_at_kill: int
    billed_at_kill: int
    billed: int
    billed_twice: int
    done_billed_twice: int
    sealed: int
    exit_code: int
    intact: bool


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=5_000)
    options = parser.parse_args()
    if not clients.present(["llmbatch"]):
        return 2
    chance = random.Random(SEED)
    outcomes = [kill_and_finish(options.rows, chance.uniform(0.1, 0.9)) for _ in range(options.runs)]
    keep(options.json, "kill", {"rows": options.rows, "outcomes": [asdict(outcome) for outcome in outcomes]})
    names = list(asdict(outcomes[0]))
    lines = [[str(number), *map(str, asdict(outcome).values())] for number, outcome in enumerate(outcomes, start=1)]
    print(table(["run", *(name.replace("_", " ") for name in names)], lines))
    kept = all(outcome.intact and outcome.done_billed_twice == 0 for outcome in outcomes)
    print(f"one line per row, in order, nothing done billed twice: {'kept' if kept else 'BROKEN'}")
    print(f"most rows billed twice by one kill: {verdict(max(each.billed_twice for each in outcomes), CONCURRENCY)}")
    return 0 if kept else 1


def kill_and_finish(rows: int, share: float) -> Outcome:
    """Run, kill -9 when ``share`` of the rows stand in the journal, run again, and compare both books."""
    with tempfile.TemporaryDirectory() as name, simulator(Path(name, "ledger.jsonl")) as base_url:
        folder = Path(name)
        source = write_rows(folder / "in.jsonl", rows, ids=True)
        output = folder / "out.jsonl"
        command = clients.command("llmbatch", source, output, base_url, CONCURRENCY)
        run_until(command, folder / "out.jsonl.partial", int(rows * share))
        wait_until_idle(base_url)
        done = {result["row"] for result in records(folder / "out.jsonl.partial") if result.get("status") == "ok"}
        billed_at_kill = sum(1 for _ in records(folder / "ledger.jsonl"))
        finished = run_child(command, TIMEOUT_S)
        if finished.exit_code:
            print(f"the second run ended with {finished.exit_code}: {finished.stderr}", file=sys.stderr)
        bills = Counter(bill["prompt_hash"] for bill in records(folder / "ledger.jsonl"))
        prompts = [prompt_hash(row["prompt"]) for row in records(source)]
        results = list(records(output)) if output.exists() else []
    return Outcome(
        done_at_kill=len(done),
        billed_at_kill=billed_at_kill,
        billed=bills.total(),
        billed_twice=bills.total() - len(bills),
        done_billed_twice=sum(bills[prompts[row - 1]] != 1 for row in done),
        sealed=len(results),
        exit_code=finished.exit_code,
        intact=finished.exit_code == 0 and in_order(results, prompts),
    )


def in_order(results: list[dict[str, Any]], prompts: list[str]) -> bool:
    """Exactly one ok line per row, in input order, each with the answer to its own prompt."""
    if [result["row"] for result in results] != list(range(1, len(prompts) + 1)):
        return False
    pairs = zip(results, prompts, strict=True)
    return all(result["status"] == "ok" and result["output"].startswith(prompt) for result, prompt in pairs)


def run_until(command: list[str], journal: Path, lines: int) -> None:
    """Start ``command`` and kill -9 it as soon as its journal has ``lines`` lines."""
    deadline_s = time.monotonic() + TIMEOUT_S
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
        try:
            while count_lines(journal) < lines and child.poll() is None and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
            if child.poll() is not None:
                stderr.seek(0)
                raise RuntimeError(f"the run ended before it could be killed: {stderr.read().decode()}")
        finally:
            kill_group(child.pid)
            child.wait()


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a JSONL file; a torn last line is none."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


@contextmanager
def simulator(ledger: Path) -> Iterator[str]:
    """`llmbatch sim` on a free port; gives its base URL."""
    command = [*clients.LLMBATCH, "sim", "--port", "0", "--latency", str(LATENCY_S), "--ledger", str(ledger)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert child.stdout is not None
        announced = child.stdout.readline()
        if "http://" not in announced:
            raise RuntimeError(f"llmbatch sim did not start: {announced!r}")
        yield announced.split()[-1]
    finally:
        kill_group(child.pid)
        child.communicate()


def wait_until_idle(base_url: str) -> None:
    """Return when the simulator has nothing in flight, so that its book is closed on the killed run."""
    deadline_s = time.monotonic() + TIMEOUT_S
    url = f"{base_url.removesuffix('/v1')}/ledger"
    while time.monotonic() < deadline_s:
        with urllib.request.urlopen(url, timeout=5) as response:
            if json.load(response)["in_flight"] == 0:
                return
        time.sleep(POLL_S)
    raise RuntimeError("the simulator still has requests in flight")


if __name__ == "__main__":
    sys.exit(main())
