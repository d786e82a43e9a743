"""The clients that are compared, each as a command that turns INPUT into OUTPUT through a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from measure import Cost, count_ok, run_child

_HERE = Path(__file__).parent
_SCRIPT = Path(sys.executable).with_name("llmbatch")
# Without an installed script: the package of the working directory.
LLMBATCH = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "llmbatch"]


def command(name: str, source: Path, output: Path, base_url: str, concurrency: int) -> list[str]:
    """The command line of client ``name``: floor, gather or llmbatch."""
    count = str(concurrency)
    if name == "llmbatch":
        flags = ["--base-url", base_url, "-m", "bench", "-c", count, "--progress", "none"]
        return [*LLMBATCH, "run", str(source), "-o", str(output), *flags]
    url = f"{base_url}/chat/completions"
    return [sys.executable, str(_HERE / f"{name}.py"), str(source), str(output), url, "-c", count]


def present(names: Sequence[str]) -> list[str]:
    """``names`` without llmbatch if it can not be started, which is said."""
    if "llmbatch" not in names or has_llmbatch():
        return list(names)
    print("llmbatch run does not work here: its column is left out", file=sys.stderr)
    return [name for name in names if name != "llmbatch"]


def has_llmbatch() -> bool:
    """Whether ``llmbatch run`` can be started in this environment."""
    return subprocess.run([*LLMBATCH, "run", "--help"], capture_output=True, timeout=20).returncode == 0


def send_all(name: str, source: Path, rows: int, base_url: str, concurrency: int, timeout_s: float) -> Cost:
    """Run one client over ``source`` into a fresh output; rows that are not ok there are its errors."""
    output = source.with_name(f"{name}.out.jsonl")
    output.unlink(missing_ok=True)
    cost = run_child(command(name, source, output, base_url, concurrency), timeout_s)
    errors = rows - count_ok(output)
    for left in source.parent.glob(f"{output.name}*"):
        left.unlink()
    if errors:
        print(f"{name}: {errors} of {rows} rows have no answer (exit {cost.exit_code}): {cost.stderr}", file=sys.stderr)
    return replace(cost, errors=errors)
