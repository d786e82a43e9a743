"""`python tests/campaigns NAME ...`: the long form of the campaigns named, in turn; without a name it lists them."""

from __future__ import annotations

import argparse
import importlib
import random
import re
import sys
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
NOT_CAMPAIGNS = ("__init__", "__main__", "bad_servers", "books", "campaign")
HEAD = """# Campaigns

The last long form of each, by `make campaign-NAME` (`make campaigns` runs them all). `python tests/campaigns NAME
--seed SEED` runs one of them again as it was.

| campaign | runs | counted | result | seed | took | on |
| --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> int:
    sys.path[0] = str(HERE.parent)
    known = sorted(
        path.stem for path in HERE.glob("*.py") if path.stem not in NOT_CAMPAIGNS and not path.stem.startswith("test_")
    )
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print(f"usage: python tests/campaigns {{{','.join(known)}}} [--runs N] [--seed N] [--case WORD]")
        return 2
    return run(sys.argv[1], sys.argv[2:])


def run(name: str, words: list[str]) -> int:
    """One campaign from the command line. 1 if a promise was broken."""
    module = importlib.import_module(f"campaigns.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python tests/campaigns {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=module.LONG_RUNS)
    parser.add_argument("--seed", type=int, help="default: a new one, printed first")
    parser.add_argument("--case", help="only the cases with this in their name")
    arguments = parser.parse_args(words)
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(2**31)
    print(f"{name}: seed {arguments.seed}; again: {parser.prog} --seed {arguments.seed}", flush=True)
    began_s = time.monotonic()
    report = module.campaign(arguments.runs, arguments.seed, arguments.case)
    took_s = time.monotonic() - began_s
    for line in report.broken:
        print(f"BROKEN  {line}")
    counted = ", ".join(f"{value} {what}" for what, value in report.counted.items())
    result = "broken" if report.broken else "kept"
    print(f"{name}: {report.runs:,} runs in {took_s:.0f} s; {counted}; {result}")
    if arguments.case is None and arguments.runs >= module.LONG_RUNS:
        record(name, f"{report.runs:,} | {counted} | {result} | {arguments.seed} | {took_s:.0f} s | {date.today()}")
    return 1 if report.broken else 0


def record(name: str, columns: str) -> None:
    """Put one row into the table of results."""
    rows = re.findall(r"(?m)^\| ((?!campaign|---)\w+) (\|.*)$", RESULTS.read_text()) if RESULTS.exists() else []
    table = dict(rows) | {name: f"| {columns} |"}
    RESULTS.write_text(HEAD + "".join(f"| {key} {table[key]}\n" for key in sorted(table)))


if __name__ == "__main__":
    sys.exit(main())
