"""The cases of `make bench-pacing` and what is asked of each; `CASES` is the list, each measured in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pacing_figures as figures
from pacing_virtual import Case, Lognormal, Span, run

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Asked:
    """A bound of one figure; ``unit`` is how it is shown: share, seconds, or number."""

    at_most: float | None = None
    at_least: float | None = None
    unit: str = "%"

    def met(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True, slots=True)
class Experiment:
    """``measure`` makes the figures of one case; ``asked`` says what they should be."""

    name: str
    group: str
    case: Case
    measure: Callable[[Case], Figures]
    asked: Mapping[str, Asked]


def small_burst_s(rpm: float) -> float:
    """A bucket of a second; of two requests where that is more, as no network keeps distances exactly."""
    return max(1.0, 120.0 / rpm)


def known(rpm: float, duration_s: float, burst_s: float) -> Experiment:
    """Our side is told the limit."""
    return Experiment(
        f"{rpm:,.0f} RPM, bucket of {burst_s:g} s",
        "Known limits",
        Case(duration_s, rpm=rpm, burst_s=burst_s, told=True),
        _of_requests(10.0),
        {"used after 10 s": Asked(at_least=0.99), "429": Asked(at_most=0.001), "most in 60 s": Asked(at_most=1.0)},
    )


def _of_requests(from_s: float) -> Callable[[Case], Figures]:
    def measure(case: Case) -> Figures:
        diary = run(case)
        assert case.rpm is not None
        return {
            f"used after {from_s:.0f} s": figures.used_share(case, diary, from_s),
            "429": figures.refused_share(diary),
            "most in 60 s": figures.most_in_window(diary.sent) / case.rpm,
        }

    return measure


# One answer in twenty is longer than 1,700 tokens, the median is 150.
HEAVY = Lognormal(150.0, 1.5, 5.0, 8000.0)


def tokens(
    tpm: float, duration_s: float = 600.0, *, told: bool, headers: bool = False, burst_s: float = 60.0
) -> Experiment:
    """The tokens are the narrower limit, and how many an answer has is not known before."""
    how = "known" if told else "from headers" if headers else "from 429s"
    from_s = 60.0

    def measure(case: Case) -> Figures:
        diary = run(case)
        most = figures.most_tokens_in_window(diary.accepted, diary.tokens)
        return {
            f"used after {from_s:.0f} s": figures.used_share(case, diary, from_s),
            "429": figures.refused_share(diary),
            "most in 60 s": most / tpm,
        }

    return Experiment(
        f"{tpm:,.0f} TPM {how}, lengths of heavy tail, bucket of {burst_s:g} s",
        "Token-bound",
        Case(duration_s, tpm=tpm, rpm=60_000, told=told, headers=headers, burst_s=burst_s, output_tokens=HEAVY),
        measure,
        {f"used after {from_s:.0f} s": Asked(at_least=0.97), "429": Asked(at_most=0.005)},
    )


def unknown(rpm: float, duration_s: float, *, headers: bool, burst_s: float) -> Experiment:
    """Our side learns the limit from headers, or from 429s alone."""
    from_s = 10.0 if headers else 60.0
    used, refused = (0.97, 0.005) if headers else (0.92, 0.02)
    return Experiment(
        f"{rpm:,.0f} RPM, {'with' if headers else 'without'} headers, bucket of {burst_s:g} s",
        "Unknown limits",
        Case(duration_s, rpm=rpm, headers=headers, burst_s=burst_s),
        _of_requests(from_s),
        {f"used after {from_s:.0f} s": Asked(at_least=used), "429": Asked(at_most=refused)},
    )


def changed(rpm: float, *, headers: bool, burst_s: float, each_s: float = 240.0) -> Experiment:
    """The limit is halved, and then doubled, after ``each_s`` seconds."""
    halved_s, doubled_s, end_s = each_s, 2 * each_s, 3 * each_s
    tolerance = 0.05 if headers else 0.08

    def measure(case: Case) -> Figures:
        diary = run(case)
        return {
            "s to find the half": figures.settled_s(diary, halved_s, doubled_s, rpm / 2, tolerance),
            "s to find the double": figures.settled_s(diary, doubled_s, end_s, rpm, tolerance),
            "429": figures.refused_share(diary),
        }

    found = Asked(at_most=20.0, unit="s")
    return Experiment(
        f"{rpm:,.0f} RPM halved and doubled, {'with' if headers else 'without'} headers, bucket of {burst_s:g} s",
        "Limits that change",
        Case(
            end_s,
            rpm=rpm,
            headers=headers,
            burst_s=burst_s,
            changes=((halved_s, rpm / 2), (doubled_s, rpm)),
        ),
        measure,
        {"s to find the half": found, "s to find the double": found},
    )


# Fixed windows that are tried to find the peak, as shares of the slots, each for so long.
_WINDOWS = (0.75, 0.9, 1.0, 1.05, 1.1, 1.25, 1.5)
_FIXED_S = 360.0
_WARM_S = 120.0


def peak_of(case: Case) -> tuple[float, float]:
    """The most work per second that any fixed window gets, and the least in-flight that gets 99 % of it."""
    assert case.slots is not None
    reached = []
    for share in _WINDOWS:
        window = max(1, round(case.slots * share))
        fixed = replace(case, concurrency=window, duration_s=_FIXED_S)
        reached.append((figures.work_per_s(fixed, run(fixed), _WARM_S), window))
    peak = max(work for work, _ in reached)
    return peak, min(window for work, window in reached if work >= 0.99 * peak)


def queueing(slots: int, slowdown: float = 0.0) -> Experiment:
    """A server that never says 429: the more than its slots only wait there."""

    def measure(case: Case) -> Figures:
        peak, window = peak_of(case)
        diary = run(case)
        return {
            "of the peak": figures.work_per_s(case, diary, _WARM_S) / peak,
            "x in flight": figures.mean_in_flight(case, diary, _WARM_S) / window,
            "x most in flight": figures.most_in_flight(diary, _WARM_S) / window,
        }

    slower = f", {slowdown:g} slower when full" if slowdown else ""
    return Experiment(
        f"{slots} slots{slower}",
        "Servers that queue",
        Case(600.0, slots=slots, slowdown=slowdown),
        measure,
        {"of the peak": Asked(at_least=0.97), "x in flight": Asked(at_most=1.3, unit="x")},
    )


def _interrupted(name: str, case: Case, span: Span) -> Experiment:
    def measure(case: Case) -> Figures:
        diary = run(case)
        assert case.rpm is not None
        return {
            "s to 90 %": figures.recovery_s(diary, span.end_s, case.rpm),
            "probes per 30 s": figures.most_probes(diary, span.start_s + 60.0, span.end_s),
            "sent in its first 60 s": figures.most_probes(diary, span.start_s + 1.0, span.start_s + 60.0, 60.0),
            "s to the first answer": figures.unheard_s(diary, span.end_s),
            "failed rows": diary.failed_rows,
        }

    return Experiment(
        name,
        "Outages",
        case,
        measure,
        {
            "s to 90 %": Asked(at_most=30.0, unit="s"),
            "probes per 30 s": Asked(at_most=1.0, unit=""),
            "failed rows": Asked(at_most=0.0, unit=""),
        },
    )


_TEN_MINUTES = Span(60.0, 660.0)


def outages(rpm: float, *, told: bool) -> list[Experiment]:
    """Nobody is there for ten minutes, and everybody gets 429 for ten minutes."""
    how = "known" if told else "from headers"
    case = Case(840.0, rpm=rpm, told=told, headers=not told)
    return [
        _interrupted(f"nobody there for 10 min, {rpm:,.0f} RPM {how}", replace(case, down=_TEN_MINUTES), _TEN_MINUTES),
        _interrupted(f"only 429 for 10 min, {rpm:,.0f} RPM {how}", replace(case, storm=_TEN_MINUTES), _TEN_MINUTES),
    ]


CASES: Sequence[Experiment] = (
    *(
        known(rpm, duration_s, burst_s)
        for rpm, duration_s in ((60.0, 1210.0), (600.0, 310.0), (6000.0, 190.0), (60_000.0, 80.0))
        for burst_s in (60.0, small_burst_s(rpm))
    ),
    tokens(200_000.0, told=True),
    tokens(2_000_000.0, told=True),
    tokens(2_000_000.0, told=True, burst_s=10.0),
    tokens(2_000_000.0, told=False, headers=True),
    *(
        unknown(rpm, duration_s, headers=headers, burst_s=burst_s)
        for headers, duration_s in ((True, 300.0), (False, 600.0))
        for rpm in (600.0, 6000.0)
        for burst_s in (60.0, 1.0)
    ),
    *(changed(rpm, headers=headers, burst_s=1.0) for headers in (True, False) for rpm in (600.0, 6000.0)),
    changed(6000.0, headers=True, burst_s=60.0),
    queueing(32),
    queueing(64),
    queueing(256),
    queueing(64, slowdown=1.0),
    *outages(600.0, told=True),
    *outages(6000.0, told=True),
    *outages(6000.0, told=False),
)


def shown(value: float, asked: Asked | None) -> str:
    """A figure for people, in the unit of what is asked of it."""
    if math.isinf(value):
        return "never"
    unit = asked.unit if asked is not None else ""
    if unit == "%":
        return f"{value * 100:.2f} %"
    return f"{value:.2f} x" if unit == "x" else f"{value:,.1f} {unit}".rstrip()
