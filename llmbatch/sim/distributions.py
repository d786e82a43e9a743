"""How long, how much: distributions written as `0.4` or `lognormal:median=1.2,sigma=0.6,tail=0.01x20`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

SYNTAX = "NUMBER, fixed:value=V, uniform:low=A,high=B or lognormal:median=M,sigma=S, each with ,tail=RATExFACTOR"

_NORMAL = NormalDist()


def _fixed(_chance: float, value: float) -> float:
    return value


def _uniform(chance: float, low: float, high: float) -> float:
    return low + chance * (high - low)


def _lognormal(chance: float, median: float, sigma: float) -> float:
    return median * math.exp(sigma * _NORMAL.inv_cdf(chance))


# kind -> its parameters in order, and its value at a chance between 0 and 1.
_KINDS: dict[str, tuple[tuple[str, ...], Callable[..., float]]] = {
    "fixed": (("value",), _fixed),
    "uniform": (("low", "high"), _uniform),
    "lognormal": (("median", "sigma"), _lognormal),
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of a quantity that is never negative.

    ``tail_rate`` of the values are ``tail_factor`` times larger: the heavy tail that real providers have.
    """

    kind: str
    values: tuple[float, ...]
    tail_rate: float = 0.0
    tail_factor: float = 1.0

    def at(self, chance: float, tail_chance: float) -> float:
        """The value for two random numbers, both above 0 and below 1."""
        value = _KINDS[self.kind][1](chance, *self.values)
        return value * self.tail_factor if tail_chance < self.tail_rate else value


def fixed(value: float) -> Distribution:
    """The distribution that always says ``value``."""
    return Distribution("fixed", (value,))


def parse_distribution(text: str) -> Distribution:
    """Read the syntax above. ValueError says what is wrong with it."""
    kind, colon, rest = text.strip().partition(":")
    if not colon:
        return fixed(_amount(text, text))
    if kind not in _KINDS:
        raise ValueError(f"{text!r}: no distribution is called {kind!r}; write {SYNTAX}")
    given = dict(_pair(text, item) for item in rest.split(","))
    tail_rate, tail_factor = _tail(text, given.pop("tail", "0x1"))
    names = _KINDS[kind][0]
    if set(given) != set(names):
        raise ValueError(f"{text!r}: {kind} takes {' and '.join(names)}; write {SYNTAX}")
    values = tuple(_amount(text, given[name]) for name in names)
    if kind == "uniform" and values[0] > values[1]:
        raise ValueError(f"{text!r}: low is above high")
    return Distribution(kind, values, tail_rate, tail_factor)


def _pair(text: str, item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals:
        raise ValueError(f"{text!r}: {item!r} is not name=value; write {SYNTAX}")
    return name.strip(), value.strip()


def _tail(text: str, value: str) -> tuple[float, float]:
    rate, _, factor = value.partition("x")
    if not 0 <= _amount(text, rate) <= 1:
        raise ValueError(f"{text!r}: the rate of a tail lies between 0 and 1")
    return _amount(text, rate), _amount(text, factor)


def _amount(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{text!r}: {value!r} is not a number; write {SYNTAX}") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"{text!r}: {value} must be 0 or more, and finite")
    return number
