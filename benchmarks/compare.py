"""The figures of docs/comparison.md and of the README's table: `make bench-compare`, about 25 minutes.

Each set is one `llmbatch compare` command, which records its figures in benchmarks/compared/ and draws its picture.
From these records the tables between the markers in README.md and docs/comparison.md are made, never by hand.

    python benchmarks/compare.py                 every set, then the pages
    python benchmarks/compare.py memory --runs 1  one of them, once
    python benchmarks/compare.py --render        only the pages, from what was recorded
    python benchmarks/compare.py --check         exit code 1 if a page is not what the records say
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import orjson

from llmbatch.rules.comparison import Compared, Comparison, Kind, comparison_from
from llmbatch.views.compare import markdown, tables, went_wrong

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "compared"
PAGES = (ROOT / "README.md", ROOT / "docs" / "comparison.md")
BLOCK = re.compile(r"(<!-- compare:(\w+) -->\n).*?(<!-- /compare -->)", re.DOTALL)
ROWS = ["samples/reviews.jsonl", "-t", "@samples/sentiment.txt"]
SETS: Mapping[str, list[str]] = {
    "calls_400ms": ["--part", "drivers", "--latency", "0.4s", "--loop", "10,100,1000,10000"],
    "calls_4s": ["--part", "drivers", "--latency", "4s", "--loop", "10,100,1000,10000"],
    "overhead": ["--part", "overhead"],
    "short": ["--part", "short"],
    "cpu": ["--part", "cpu"],
    "session": ["--part", "session", "--full"],
    "blocking": ["--part", "blocking"],
    "tasks": ["--part", "tasks"],
    "memory": ["--part", "memory", "--in-flight", "100,1000,10000"],
}
DRAWN = ("calls_400ms", "calls_4s", "overhead", "cpu", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], help="default: all")
    parser.add_argument("--runs", type=int, default=3, help="take the median of this many (default 3)")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    worst = 0
    if not (options.render or options.check):
        RECORDS.mkdir(exist_ok=True)
        for name in options.sets or SETS:
            worst = max(worst, measure(name, options.runs))
    return max(worst, write_pages(check=options.check))


def measure(name: str, runs: int) -> int:
    """Run the command of one set from the project's directory, so that its record names no other; its exit code."""
    picture = ["--plot", f"docs/plots/{name}.svg"] if name in DRAWN else []
    command = [
        "compare",
        *ROWS,
        *SETS[name],
        "--runs",
        str(runs),
        "--json",
        f"benchmarks/compared/{name}.json",
        *picture,
    ]
    print(f"== llmbatch {shlex.join(command)}", flush=True)
    return subprocess.run([sys.executable, "-m", "llmbatch", *command], cwd=ROOT, check=False).returncode


def recorded() -> dict[str, Comparison]:
    """What there is of the sets."""
    paths = {name: RECORDS / f"{name}.json" for name in SETS}
    return {name: comparison_from(orjson.loads(path.read_bytes())) for name, path in paths.items() if path.exists()}


# The pages


def write_pages(*, check: bool) -> int:
    """Put the blocks in; with ``check`` only say which page has others."""
    found = recorded()
    if missing := [name for name in SETS if name not in found]:
        print(f"not measured yet: {', '.join(missing)}")
        return 1
    blocks = made_of(found)
    stale = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}{match[3]}", text)
        if new != text and check:
            print(f"{page.name} is not what benchmarks/compared/ says; run: python benchmarks/compare.py --render")
            stale = 1
        elif new != text:
            page.write_text(new, encoding="utf-8")
    return stale


def made_of(found: Mapping[str, Comparison]) -> dict[str, str]:
    """Each block by its name."""
    blocks = {name: block(one) for name, one in found.items()}
    blocks["claims"] = "\n".join(claims(found)) + "\n"
    blocks["readme"] = markdown(tables(found["calls_4s"])[0][1]) + f"\n\n{measured(found['calls_4s'])}\n"
    return blocks


def block(found: Comparison) -> str:
    """The command, its table, and where it was measured."""
    (_, table), *_ = tables(found)
    wrong = "\n".join(f"* {text}" for text in went_wrong(found))
    lines = [f"```sh\n{found.made_by}\n```", markdown(table), *([wrong] if wrong else []), measured(found)]
    return "\n\n".join(lines) + "\n"


def measured(found: Comparison) -> str:
    machine, runs = found.machine, max(len(one.runs) for one in found.compared)
    times = "one run" if runs == 1 else f"medians of {runs} runs, with their range"
    return f"{machine['system']}, {machine['cores']} cores, Python {machine['python']}, {found.date}; {times}."


# The claims


def claims(found: Mapping[str, Comparison]) -> Iterator[str]:
    """Each well-known sentence, and what was measured of it."""
    yield "| what is said | what was measured | so it is |"
    yield "| --- | --- | --- |"
    for claim in (_forty_seconds(found), _tens_of_megabytes(found), _reuse(found), _threads(found), _processes(found)):
        yield f"| {' | '.join(claim)} |"


def _forty_seconds(found: Mapping[str, Comparison]) -> tuple[str, str, str]:
    loop, threads = (_one(found["calls_4s"], kind, 10) for kind in ("loop", "threads"))
    seconds = loop.wall_s.median
    said = "100 calls of 4 s take 40 s at concurrency 10"
    what = f"{seconds:.1f} s on the loop, {threads.wall_s.median:.1f} s with 10 threads"
    return said, what, "true" if loop.case.rows == 100 and 40 <= seconds < 41 else "not so here"


def _tens_of_megabytes(found: Mapping[str, Comparison]) -> tuple[str, str, str]:
    plain, tls = (_waiting(found["memory"], "loop", 10_000, tls=tls) for tls in (False, True))
    said = "10,000 waiting requests on one thread in tens of megabytes"
    if plain is None or plain.peak_mb is None or plain.kb_per_call is None:
        return said, "not measured: the machine allows fewer open files", "open"
    there = plain.most("in_flight") or 0
    if there < 10_000:
        return said, f"not measured: this machine was busy, and only {there:,} were there at once", "open"
    what = f"{plain.peak_mb.median:,.0f} MB over http, {plain.kb_per_call.median:.0f} KB for each call"
    if tls is not None and tls.peak_mb is not None and tls.kb_per_call is not None:
        what += f"; {tls.peak_mb.median:,.0f} MB over https, {tls.kb_per_call.median:.0f} KB for each"
    return said, what, "true" if plain.peak_mb.median < 100 else "one thread, yes; hundreds of megabytes"


def _reuse(found: Mapping[str, Comparison]) -> tuple[str, str, str]:
    places = {(0.0, 0.0): "on this machine", (0.0, 0.05): "50 ms away", (0.4, 0.05): "50 ms away, answers in 0.4 s"}
    words, shares = [], []
    for (latency_s, rtt_s), where in places.items():
        shared, new = (_session(found["session"], latency_s, rtt_s, variant) for variant in ("", "new session"))
        if shared is not None and new is not None:
            shares.append(1 - shared.latency_p50_s.median / new.latency_p50_s.median)
            words.append(f"{shares[-1]:.0%} {where}")
    said = "reusing connections saves 40 to 60 % of the latency over TLS"
    true = all(0.4 <= share <= 0.6 for share in shares)
    return said, "; ".join(words), "true" if true else "two round trips, whatever share of the answer that is"


def _threads(found: Mapping[str, Comparison]) -> tuple[str, str, str]:
    loop, threads = (_one(found["calls_400ms"], kind, 100) for kind in ("loop", "threads"))
    said = "threads can not wait for many at once"
    what = (
        f"100 calls of 0.4 s with 100 threads: {threads.wall_s.median:.2f} s; on the loop: {loop.wall_s.median:.2f} s"
    )
    return said, what, "false for hundreds" if threads.wall_s.median < 1.5 * loop.wall_s.median else "true here"


def _processes(found: Mapping[str, Comparison]) -> tuple[str, str, str]:
    computing = found["cpu"].of("cpu")
    processes = next(one for one in computing if one.case.driver.kind == "processes")
    loop = next(one for one in computing if one.case.driver.kind == "loop" and one.case.variant == "hook")
    said = "one loop is always enough"
    what = (
        f"40 rows that compute 50 ms each: {loop.wall_s.median:.2f} s with the loop, "
        f"{processes.wall_s.median:.2f} s with {processes.case.driver.size} processes"
    )
    return said, what, "false where rows compute" if processes.wall_s.median < loop.wall_s.median else "true here"


def _one(found: Comparison, kind: Kind, size: int) -> Compared:
    return next(one for one in found.compared if (one.case.driver.kind, one.case.driver.size) == (kind, size))


def _waiting(found: Comparison, kind: Kind, size: int, *, tls: bool) -> Compared | None:
    wanted = (one for one in found.compared if (one.case.driver.kind, one.case.server.tls) == (kind, tls))
    return next((one for one in wanted if one.case.rows == size and one.runs), None)


def _session(found: Comparison, latency_s: float, rtt_s: float, variant: str) -> Compared | None:
    over_tls = (one for one in found.compared if one.case.server.tls and one.case.variant == variant)
    here = (latency_s, rtt_s)
    return next((one for one in over_tls if (one.case.server.latency_s, one.case.server.rtt_s) == here), None)


if __name__ == "__main__":
    sys.exit(main())
