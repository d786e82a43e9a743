"""How a comparison is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmbatch.errors import OptionsError
from llmbatch.rules.comparison import PARTS, Case, Compared, Comparison, Driver, Measured, Server, Sizes, cases
from llmbatch.views.compare import Table, markdown, plain, render_comparison, tables
from llmbatch.views.plot import check_plot, save_plot

MACHINE = {"cores": 2, "system": "Linux x86_64", "python": "3.11.7"}


def run(wall_s: float, **other: object) -> Measured:
    figures = {
        "user_s": 0.05, "system_s": 0.01, "ok": 100, "failures": {}, "latency_p50_s": 0.4, "latency_p95_s": 0.41,
        "latency_max_s": 0.42, "start_mb": 30.0, "peak_mb": 32.0, "peak_threads": 11, "peak_files": 14,
        "peak_processes": 1, "in_flight": 10, "answers": "0a1b2c3d", **other,
    }  # fmt: skip
    return Measured(wall_s=wall_s, **figures)  # type: ignore[arg-type]


def found(*compared: Compared, notes: tuple[str, ...] = ()) -> Comparison:
    return Comparison("the simulated provider", "llmbatch compare x", "2026-11-21", MACHINE, compared, notes)


DRIVERS = (
    Compared(Case("drivers", Driver("sequential"), Server(0.4), 25), (run(10.1, ok=25),)),
    Compared(Case("drivers", Driver("threads", 10), Server(0.4), 100), (run(4.1), run(4.3), run(4.2))),
    Compared(Case("drivers", Driver("loop", 1_000), Server(0.4), 2_000), (run(0.9, ok=2_000),)),
)


def test_the_main_table_in_full() -> None:
    assert render_comparison(found(*DRIVERS, notes=("rows were repeated",))).splitlines() == [
        "The same rows under each driver, calls of 0.40 s",
        "(ideal: N/C x latency, what the waiting alone takes)",
        "",
        "                                                                  CPU                 ",
        "driver       rows          seconds ideal requests/s faster ms/request MB threads files",
        "----------- ----- ---------------- ----- ---------- ------ ---------- -- ------- -----",
        "sequential     25             10.1  10.0        2.5  1.0 x       2.40 32      11    14",
        "threads(10)   100 4.20 (4.10–4.30)  4.00       23.8  9.6 x       0.60 32      11    14",
        "loop(1,000) 2,000             0.90  0.80      2,222  898 x       0.03 32      11    14",
        "",
        "sequential   ▏ 2.5/s",
        "threads(10)  ▍ 23.8/s",
        "loop(1,000)  ████████████████████████████████████████ 2,222/s",
        "",
        "On Linux x86_64, 2 cores, Python 3.11.7, 2026-11-21.",
        "Asked: the simulated provider",
        "note: rows were repeated",
    ]


def test_what_went_wrong_is_said_by_driver() -> None:
    failed = replace(DRIVERS[1], runs=(run(4.1, ok=97, failures={"overloaded": 3}),))
    other = Compared(Case("drivers", Driver("loop", 10), Server(0.4), 25), (run(1.0, ok=25, answers="ffffffff"),))
    not_run = Compared(
        Case("drivers", Driver("threads", 10_000), Server(0.4), 100), (), "can't start new \x1b[2Jthread"
    )
    text = render_comparison(found(DRIVERS[0], failed, other, not_run))
    assert "warning: threads(10): 3 rows failed: overloaded" in text
    assert "warning: loop(10) got other answers than the others" in text
    assert "warning: threads(10,000) could not be measured: can't start new" in text
    assert "\x1b" not in text


def test_every_part_has_a_table_and_markdown_of_the_same_cells() -> None:
    sizes = Sizes(in_flight=(100, 1_000), in_flight_tls=(100,))
    every = found(*(Compared(case, (run(1.0),)) for case in cases(PARTS, sizes, 100, 0.4)))
    made = tables(every)
    assert [part for part, _ in made] == list(PARTS)
    for _, table in made:
        assert all(len(row) == len(table.heads) for row in table.rows)
        shown = plain(table).splitlines()
        assert len({len(line) for line in shown}) == 1
        assert len(shown[0]) <= 80
        assert shown[-len(table.rows) - 1].replace(" ", "").strip("-") == "", "heads, a rule, rows"
        assert len(markdown(table).splitlines()) == len(table.rows) + 2


def test_what_reuse_saves_stands_beside_what_it_costs_not_to() -> None:
    shared, new = cases(["session"], Sizes(calls=((0.0, 0.05),), tls=False), 100, 0.4)
    pair = found(Compared(shared, (run(1.0, latency_p50_s=0.05),)), Compared(new, (run(1.0, latency_p50_s=0.1),)))
    ((_, table),) = tables(pair)
    assert table.rows[0][:5] == ("http, 50 ms away", "10", "50.0", "100.0", "50%")


def test_unknown_figures_are_dashes() -> None:
    unknown = run(1.0, start_mb=None, peak_mb=None, peak_threads=None, peak_files=None)
    ((_, table),) = tables(found(Compared(Case("drivers", Driver("loop", 10), Server(None), 10), (unknown,))))
    assert table.title == "The same rows under each driver, calls to a real provider"
    assert [table.rows[0][at] for at in (3, 5, 7, 8, 9)] == ["-"] * 5


def test_markdown() -> None:
    assert markdown(Table("", "", ("a", "b"), (("x", "1"),))) == "| a | b |\n| --- | ---: |\n| x | 1 |"


@pytest.mark.parametrize("name", ["x.pdf", "plot", "missing/x.svg"])
def test_a_picture_that_can_not_be_made_is_refused_before_anything_is_sent(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="--plot"):
        check_plot(tmp_path / name, PARTS)


def test_parts_without_a_picture_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="--plot shows the parts drivers"):
        check_plot(tmp_path / "x.svg", ["tasks", "blocking"])


@pytest.mark.parametrize(("name", "begins"), [("x.svg", b"<?xml"), ("x.png", b"\x89PNG")])
def test_pictures(name: str, begins: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    every = found(*(Compared(case, (run(1.0),)) for case in cases(PARTS, Sizes(in_flight=(100, 1_000)), 100, 0.4)))
    for number in range(2):
        save_plot(every, tmp_path / f"{number}{name}")
    once, again = (tmp_path / f"{number}{name}" for number in range(2))
    assert once.read_bytes().startswith(begins)
    assert once.read_bytes() == again.read_bytes()


def test_a_missing_library_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmbatch.views.plot.find_spec", lambda name: None)
    with pytest.raises(OptionsError, match=r"pip install 'llmbatch\[plot\]'"):
        check_plot(tmp_path / "x.svg", PARTS)
