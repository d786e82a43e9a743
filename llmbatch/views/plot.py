"""A comparison as a picture in a file. Needs matplotlib, which is an extra."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmbatch.errors import OptionsError, StorageError
from llmbatch.rules.comparison import Compared, Comparison, Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")
_BY_KIND = {"sequential": "#9aa0a6", "threads": "#f29900", "processes": "#d93025", "loop": "#1a73e8"}
_INCHES = (6.4, 3.6)


def check_plot(path: Path, parts: Collection[Part]) -> None:
    """Raises OptionsError if no picture of ``parts`` could be made there."""
    if not _PANELS.keys() & parts:
        raise OptionsError(f"--plot shows the parts {', '.join(_PANELS)}: none of them is compared")
    if path.suffix.lower() not in SUFFIXES:
        raise OptionsError(f"--plot {path}: give it a name in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise OptionsError(f"--plot {path}: there is no directory {path.parent}")
    if find_spec("matplotlib") is None:
        raise OptionsError("--plot needs matplotlib: pip install 'llmbatch[plot]'")


def save_plot(found: Comparison, path: Path) -> None:
    """A panel for each part that has one and was measured; without any, no picture. Raises StorageError."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "llmbatch"  # the same figures give the same file
    from matplotlib import pyplot

    shown = [(part, [one for one in found.of(part) if one.runs]) for part in _PANELS]
    shown = [(part, compared) for part, compared in shown if compared]
    # Memory with one size is a point, for which nobody makes room beside others.
    shown = [one for one in shown if one[0] != "memory" or _grows(one[1])] or shown
    if not shown:
        return
    width, height = _INCHES
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(width, height * len(shown)), squeeze=False)
    for (part, compared), axis in zip(shown, axes.flat, strict=True):
        _PANELS[part](axis, compared)
    figure.tight_layout()
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise StorageError(f"--plot {path}: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def _grows(compared: list[Compared]) -> bool:
    """Whether there is more than a point to draw."""
    return len({one.case.in_flight for one in compared}) > 1


def _speed(axis: Axes, compared: list[Compared]) -> None:
    latency_s = compared[0].case.server.latency_s
    title = "Requests per second" + (f", calls of {latency_s:g} s" if latency_s is not None else "")
    _bars(axis, compared, [one.per_s.median for one in compared], title)
    axis.set_xscale("log")


def _computing(axis: Axes, compared: list[Compared]) -> None:
    _bars(axis, compared, [one.wall_s.median for one in compared], "Seconds for rows that compute")


def _overhead(axis: Axes, compared: list[Compared]) -> None:
    _bars(
        axis, compared, [one.cpu_ms_per_request.median for one in compared], "CPU ms per request, calls without delay"
    )


def _bars(axis: Axes, compared: list[Compared], values: list[float], title: str) -> None:
    names = [
        one.case.driver.name + (" + processes" if one.case.variant == "hook in processes" else "") for one in compared
    ]
    drawn = axis.barh(names, values, color=[_BY_KIND[one.case.driver.kind] for one in compared])
    axis.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_title(title)


def _memory(axis: Axes, compared: list[Compared]) -> None:
    lines: dict[tuple[str, bool], list[tuple[int, float]]] = {}
    for one in compared:
        if one.peak_mb is not None:
            line = lines.setdefault((one.case.driver.kind, one.case.server.tls), [])
            line.append((one.case.in_flight, one.peak_mb.median))
    for (kind, tls), points in lines.items():
        at: Any = list(zip(*sorted(points), strict=True))
        label = f"{kind}, {'https' if tls else 'http'}"
        axis.plot(*at, marker="o", color=_BY_KIND[kind], linestyle="--" if tls else "-", label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlabel("requests in flight")
    axis.set_title("Peak memory, MB")
    axis.legend()


_PANELS: dict[Part, Callable[[Any, list[Compared]], None]] = {
    "drivers": _speed,
    "overhead": _overhead,
    "cpu": _computing,
    "memory": _memory,
}
