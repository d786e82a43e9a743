"""All figures of benchmarks/RESULTS.md, in one go: `make bench`, or `python -m benchmarks NAME ...` for some of them.

Each benchmark is a script of its own with a docstring that says what it measures. Needs nginx with its echo module.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
ALL = {
    "startup": "Start",
    "waiting": "100 rows of 4 s",
    "overhead": "CPU per request",
    "in_flight": "10,000 in flight",
    "memory": "1,000,000 rows",
    "kill": "kill -9 in the middle",
    "sim_load": "The simulated provider",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ALL, []], help="default: all")
    names = parser.parse_args().names or list(ALL)
    sections = _read()
    worst = 0
    for name in names:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, HERE / f"{name}.py"], stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout)
        if done.returncode == 2:
            return 2
        worst = max(worst, done.returncode)
        sections[name] = (
            f"## {ALL[name]}\n\n`benchmarks/{name}.py`, {date.today()}\n\n```\n{done.stdout.rstrip()}\n```\n"
        )
        _write(sections)
    return worst


def _read() -> dict[str, str]:
    """The sections that are there, so that one of them can be measured again alone."""
    if not RESULTS.exists():
        return {}
    parts = re.split(r"(?m)^(?=## )", RESULTS.read_text(encoding="utf-8"))[1:]
    names = {title: name for name, title in ALL.items()}
    return {names[part.splitlines()[0].removeprefix("## ")]: part.rstrip() + "\n" for part in parts}


def _write(sections: dict[str, str]) -> None:
    machine = f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    drift = "Absolute figures drift with the machine and the hour: take the ratios."
    head = f"# Measured\n\nBy `make bench` on {machine}. {drift}\n"
    RESULTS.write_text("\n".join([head, *(sections[name] for name in ALL if name in sections)]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
