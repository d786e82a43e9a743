"""The comparison of the two servers: that it measures, and that its tables say what was measured."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import serving

    module: ModuleType = serving
    return module


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3, 1, 2], 0.5, 2),
        ([4, 3, 1, 2], 0.5, 2),
        (list(range(1, 101)), 0.99, 99),
        ([1, 2, math.inf], 1, math.inf),
        ([5], 0.01, 5),
    ],
)
def test_percentile_is_by_nearest_rank(serving: ModuleType, values: list[float], share: float, expected: float):
    assert serving.percentile(values, share) == expected


def test_nothing_answered_has_no_percentile(serving: ModuleType):
    assert math.isnan(serving.percentile([], 0.5))


def test_only_the_figures_of_the_page_are_replaced(
    serving: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("REPORT", "PAGE", "PLOT"):
        monkeypatch.setattr(serving, name, tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # not installed
    serving.PLOT.write_text("old")
    (tmp_path / "PAGE").write_text(f"before\n{serving.BEGIN}\nold figures\n{serving.END}\nafter\n")
    run = serving.Run(20.0, 0.5, math.inf, math.inf, 1, 2, 0, 3, 0.004, 0.01, 18, 27.5, 0.1)
    runs = [run, dataclasses.replace(run, answers_per_s=19.0), dataclasses.replace(run, answers_per_s=21.5)]
    serving.write({(title, 10, server): runs for title in serving.LOADS for server in serving.SERVERS}, "Told.")
    page = (tmp_path / "PAGE").read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "old figures" not in page
    brief = "| 10 | 16 threads | 20.0 | 20.0 (19.0 to 21.5) | 0.50 | > 6 | 1 | 2 | 3 | 0.004 | 27.5 |"
    assert page.count(brief) == 1, "the other load has another mean, so another law"
    full = "| 0.50 | > 6 | > 6 | 1 | 2 | 0 | 3 | 0.004 | 0.010 | 18 | 27.5 |"
    assert (tmp_path / "REPORT").read_text().count(full) == len(serving.LOADS) * len(serving.SERVERS)
    assert serving.PLOT.name not in page and not serving.PLOT.exists(), "an old plot would contradict the tables"


def test_it_measures_every_server_under_every_load():
    command = [sys.executable, BENCHMARKS / "serving.py", "--runs", "1", "--seconds", "1", "--clients", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| 2 | ")]
    assert len(rows) == 8
    assert all(float(row[3]) > 0 for row in rows)
