"""The known models: columns for people and pipes, JSON for scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmbatch.prices import ListedModel
from llmbatch.views.safe import safe
from llmbatch.views.words import short

_HEADS = ("MODEL", "CONTEXT", "IN", "CACHED", "OUT", "API")
# What most names need; a longer one pushes the rest of its own line.
_LEAST_NAME_CELLS = 30


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model as ``-m`` takes it, the dialect it is asked in, and what the price list says of it."""

    model: str
    api: str
    listed: ListedModel


def models_json(models: Sequence[KnownModel], prices: str) -> dict[str, Any]:
    """``*_usd`` are USD per million tokens; ``varies``: long requests, or some hours, have another price."""
    return {
        "prices": prices,
        "models": [
            {"model": one.model, "api": one.api} | {k: v for k, v in asdict(one.listed).items() if k != "name"}
            for one in models
        ],
    }


def render_models(models: Sequence[KnownModel], prices: str, width: int = 80) -> str:
    """Columns that line up within ``width``, but for very long names; ends in a newline."""
    return "\n".join(_lines(models, prices, width)) + "\n"


def _lines(models: Sequence[KnownModel], prices: str, width: int) -> Iterator[str]:
    rows = [_HEADS, *map(_cells, models)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    widths[0] = min(widths[0], max(_LEAST_NAME_CELLS, width - sum(widths[1:]) - 2 * len(widths[1:])))
    for name, *numbers, api in rows:
        cells = (number.rjust(room) for number, room in zip(numbers, widths[1:-1], strict=True))
        yield "  ".join((name.ljust(widths[0]), *cells, api))
    yield ""
    yield f"{len(models):,} of them; USD per million tokens, standard tier, as of {prices}."
    if any(one.listed.varies for one in models):
        yield "+ long requests, or some hours, have another price"
    if any(one.listed.deprecated for one in models):
        yield "! deprecated by its provider"


def _cells(one: KnownModel) -> tuple[str, ...]:
    listed = one.listed
    return (
        safe(one.model) + (" !" if listed.deprecated else ""),
        short(listed.context_tokens) if listed.context_tokens else "-",
        _usd(listed.input_usd) + ("+" if listed.varies else ""),
        _usd(listed.cached_usd),
        _usd(listed.output_usd),
        one.api,
    )


def _usd(value: float | None) -> str:
    """``2.50``, ``0.075``: cents, or as many digits as there are."""
    if value is None:
        return "-"
    digits = f"{value:.6f}".rstrip("0")
    return digits if len(digits.partition(".")[2]) > 2 else f"{value:.2f}"
