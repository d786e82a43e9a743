"""The tables of the README and of docs/comparison.md are what was recorded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_pages_are_made_of_the_records() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/compare.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_every_picture_of_the_page_is_there() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    shown = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert shown and all((ROOT / "docs" / name).is_file() for name in shown)
