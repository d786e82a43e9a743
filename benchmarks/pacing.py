"""As fast as the limits allow: the figures of benchmarks/PACING.md, by `make bench-pacing`.

The simulated provider has a true limiter that our side was not told of. Virtual time where that is exact: the real
scheduler and call stack before a provider in the same process (pacing_virtual.py), several seeds of each case. Then
a sample in real time: llmbatch against `llmbatch sim`, two processes over loopback (pacing_real.py).
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from itertools import groupby
from pathlib import Path

from measure import table
from pacing_cases import CASES, Asked, Experiment, Figures, shown
from pacing_figures import middle_and_worst

HERE = Path(__file__).parent
RESULTS = HERE / "PACING.md"
SEEDS = 3
# Benchmarks of their own whose output belongs on the same page.
OTHERS = {"pacing_real": "In real time", "pacing_hedge": "Hedging", "pacing_group": "Two processes, one limit group"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only the virtual cases whose name or group holds one of these")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs of each case (default {SEEDS})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    options = parser.parse_args()
    wanted = [number for number, case in enumerate(CASES) if _chosen(case, options.words)]
    if options.list:
        print("\n".join(f"{CASES[number].group}: {CASES[number].name}" for number in wanted))
        return 0
    measured = dict(_measure(wanted, options.seeds, options.jobs))
    sections = [_section(group, list(numbers), measured) for group, numbers in _by_group(wanted)]
    print("\n".join(sections))
    failed = 0
    if not options.words:
        for name, title in OTHERS.items():
            if (HERE / f"{name}.py").exists():
                code, text = _other(name)
                failed = failed or code
                print(text)
                sections.append(f"## {title}\n\n`benchmarks/{name}.py`\n\n```\n{text.rstrip()}\n```\n")
        RESULTS.write_text("\n".join([_head(options.seeds), *sections]), encoding="utf-8")
    return failed


def _chosen(case: Experiment, words: Sequence[str]) -> bool:
    return not words or any(word.lower() in f"{case.group}: {case.name}".lower() for word in words)


def _by_group(numbers: Sequence[int]) -> Iterator[tuple[str, Iterator[int]]]:
    return groupby(numbers, key=lambda number: CASES[number].group)


def _measure(wanted: Sequence[int], seeds: int, jobs: int) -> Iterator[tuple[int, list[Figures]]]:
    with ProcessPoolExecutor(jobs) as pool:
        runs = {number: [pool.submit(_once, number, seed) for seed in range(1, seeds + 1)] for number in wanted}
        for number, futures in runs.items():
            took = [future.result() for future in futures]
            note = f"{CASES[number].group}: {CASES[number].name}: {sum(seconds for _, seconds in took):.1f} s"
            print(note, file=sys.stderr, flush=True)
            yield number, [figures for figures, _ in took]


def _once(number: int, seed: int) -> tuple[Figures, float]:
    start_s = time.perf_counter()
    case = CASES[number]
    return case.measure(replace(case.case, seed=seed)), time.perf_counter() - start_s


def _section(group: str, numbers: Sequence[int], measured: Mapping[int, list[Figures]]) -> str:
    rows = [row for number in numbers for row in _rows(CASES[number], measured[number])]
    text = table([group, "figure", "median", "worst", "asked", ""], rows)
    return f"## {group}\n\n```\n{text}\n```\n"


def _rows(case: Experiment, runs: Sequence[Figures]) -> Iterator[list[str]]:
    name = case.name
    for figure in runs[0]:
        asked = case.asked.get(figure)
        most = asked is None or asked.at_most is not None
        middle, worst = middle_and_worst([figures[figure] for figures in runs], most=most)
        shape = asked or (Asked(unit="%") if figure in ("429", "most in 60 s") else None)
        bound, verdict = _verdict(asked, worst)
        yield [name, figure, shown(middle, shape), shown(worst, shape), bound, verdict]
        name = ""


def _verdict(asked: Asked | None, worst: float) -> tuple[str, str]:
    if asked is None:
        return "", ""
    bound = f"<= {shown(asked.at_most, asked)}" if asked.at_most is not None else f">= {shown(asked.at_least, asked)}"
    return bound, "met" if asked.met(worst) else "MISSED"


def _other(name: str) -> tuple[int, str]:
    """What the ``main`` of another benchmark prints, in a process of its own."""
    call = f"import sys, {name}; sys.exit({name}.main())"
    done = subprocess.run([sys.executable, "-c", call], cwd=HERE, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def _head(seeds: int) -> str:
    machine = f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return (
        f"# Pacing\n\nBy `make bench-pacing`, {date.today()}, {machine}. Virtual time, {seeds} seeds of each case; "
        "a figure is met if its worst seed meets it. Latency is lognormal, 0.2 to 8 s, the network 5 to 25 ms each "
        "way; `bucket` is what the provider's limiter lets through at once, in seconds of its limit.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
