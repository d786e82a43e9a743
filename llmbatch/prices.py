"""What tokens cost: the price list of genai-prices, looked up by the address that requests go to.

The list is a large module (its import takes some 150 ms), so it is imported by ``load`` alone, which a run calls in a
thread while its first requests are on their way. An address, a model or a tier that it does not know has no price
here, and none is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from llmbatch.records import Reply, TokenBound, Usage

_INPUT, _CACHED, _WRITTEN, _OUTPUT = "input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok"
# What an answer's usage tells; a model with another price (for requests, hours) is not priced here, and one with prices
# for sound or pictures only where the answer says that it has none.
# Searches are billed beside the tokens of an answer; an hour in the cache is chosen in requests that we do not make.
_TOLD = {_INPUT, _CACHED, _WRITTEN, _OUTPUT}
_MEDIA = ("audio", "image", "video")
_BESIDE = {"web_searches_kcount", "storage_searches_kcount", "cache_write_1h_mtok"}
_PER = 1_000_000
# What servers call the tier that the plain price is for.
_STANDARD_TIERS = (None, "default", "standard", "on_demand")


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per token, for requests of more than ``above_input_tokens``; the cache is part of the input."""

    above_input_tokens: int
    input_usd: float
    cached_usd: float
    written_usd: float
    output_usd: float


class Prices:
    """Prices at ``url``, the address that requests go to. None is a server that nobody is paid for."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._loaded = url is None
        self._lock = Lock()
        self._library: Any = None
        self._rates: dict[tuple[str, str | None], tuple[Rates, ...] | None] = {}
        self._media: dict[tuple[str, str | None], frozenset[str]] = {}
        self._dearest: dict[str, tuple[float, float] | None] = {}

    @property
    def loaded(self) -> bool:
        return self._loaded

    def load(self) -> None:
        """Import the price list, once; from any thread. Whoever needs a price meanwhile waits for it."""
        with self._lock:
            if not self._loaded:
                try:
                    import genai_prices

                    self._library = genai_prices
                except Exception:  # whatever is wrong with a price list, answers are worth more than their price
                    self._library = None
                self._loaded = True

    def cost_usd(self, reply: Reply, asked_model: str) -> float | None:
        """The price of one answer by its reported usage; None if usage or price are not known exactly."""
        rates = self._rates_for(reply, asked_model)
        return None if rates is None else _cost(rates, reply.usage)

    def cache_saved_usd(self, reply: Reply, asked_model: str) -> float | None:
        """How much more the answer would cost without the provider's cache. Negative if writing to it cost more than
        reading from it saved; None if it has no part in the answer, or as in ``cost_usd``."""
        usage = reply.usage
        if not usage.cached_input_tokens and not usage.cache_write_tokens:
            return None
        rates = self._rates_for(reply, asked_model)
        return None if rates is None else _cache_saved(rates, usage)

    def _rates_for(self, reply: Reply, asked_model: str) -> tuple[Rates, ...] | None:
        """None if usage or price are not known exactly."""
        usage = reply.usage
        if self._url is None or usage.input_tokens is None or usage.output_tokens is None:
            return None
        if usage.cache_write_1h_tokens:
            return None  # dearer than what is written for minutes
        key = (reply.model or asked_model, reply.service_tier)
        try:
            rates = self._rates[key]
        except KeyError:
            rates = self._rates[key] = self._rates_of(*key)
        return rates if rates is not None and _is_text(usage, self._media.get(key, ())) else None

    def at_most_usd(self, bound: TokenBound | None) -> float | None:
        """What a request with this bound costs at most: no discount, the dearest tier and hour."""
        if self._url is None or bound is None or bound.input_tokens is None or bound.output_tokens is None:
            return None
        model = bound.model or ""
        if model not in self._dearest:
            self._dearest[model] = self._dearest_of(model)
        dearest = self._dearest[model]
        if dearest is None:
            return None
        input_usd, output_usd = dearest
        # A step up, so that rounding can not put it below the truth.
        return math.nextafter(bound.input_tokens * input_usd + bound.output_tokens * output_usd, math.inf)

    def _rates_of(self, model: str, tier: str | None) -> tuple[Rates, ...] | None:
        found = self._look_up(model, tier)
        if found is None or not _is_simple(found.model_price) or _changes_by_the_hour(found.model):
            return None
        self._media[model, tier] = frozenset(_media_priced(found.model_price))
        return tuple(_all_rates(found.model_price))

    def _dearest_of(self, model: str) -> tuple[float, float] | None:
        """USD per token of input and of output, whatever tier is charged."""
        found = self._look_up(model, None)
        if found is None or not _is_simple(found.model_price) or _speaks_or_draws(found.model_price):
            return None
        prices = _possible_prices(found.model)
        read = max(
            _highest(price, name) for price in prices for name in (_INPUT, _CACHED, _WRITTEN, "cache_write_1h_mtok")
        )
        return read, max(_highest(price, _OUTPUT) for price in prices)

    def _look_up(self, model: str, tier: str | None) -> Any:
        """The library's PriceCalculation of nothing; None if it does not know the server, the model or the tier."""
        if not self._loaded:
            self.load()
        if self._library is None:
            return None
        context = {"service_tier": tier} if tier else None
        try:
            found = self._library.calc_price(
                self._library.Usage(input_tokens=0, output_tokens=0),
                model_ref=model,
                provider_api_url=self._url,
                price_context=context,
            )
        except (LookupError, ValueError):
            return None
        return found if tier in _STANDARD_TIERS or _has_variant(found.model, tier) else None


def _cost(rates: tuple[Rates, ...], usage: Usage) -> float | None:
    parts = _input_parts(usage)
    if parts is None:
        return None
    (fresh, cached, written), rate = parts, _rate_at(rates, sum(parts))
    usd = fresh * rate.input_usd + cached * rate.cached_usd + written * rate.written_usd
    return round(usd + (usage.output_tokens or 0) * rate.output_usd, 12)


def _cache_saved(rates: tuple[Rates, ...], usage: Usage) -> float | None:
    parts = _input_parts(usage)
    if parts is None:
        return None
    (_, cached, written), rate = parts, _rate_at(rates, sum(parts))
    saved = cached * (rate.input_usd - rate.cached_usd) - written * (rate.written_usd - rate.input_usd)
    return round(saved, 12)


def _input_parts(usage: Usage) -> tuple[int, int, int] | None:
    """Tokens read afresh, from the cache, and written to it; None if they do not add up."""
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    fresh = (usage.input_tokens or 0) - cached - written
    return None if fresh < 0 else (fresh, cached, written)


def _rate_at(rates: tuple[Rates, ...], input_tokens: int) -> Rates:
    return next((rate for rate in rates if input_tokens > rate.above_input_tokens), rates[-1])


def _is_simple(price: Any) -> bool:
    """Whether tokens in and out are all that is paid for."""
    named = {name for name, value in vars(price).items() if value is not None}
    return {_INPUT, _OUTPUT} <= named and all(name in _TOLD | _BESIDE or _kind_of(name) for name in named)


def _kind_of(name: str) -> str | None:
    """What kind of tokens that are no text a price is for, if it is one of tokens."""
    return next((kind for kind in _MEDIA if f"_{kind}_" in name and name.endswith("_mtok")), None)


def _media_priced(price: Any) -> set[str]:
    """Kinds of tokens that have prices of their own."""
    named = (name for name, value in vars(price).items() if value is not None)
    return {kind for name in named if (kind := _kind_of(name))}


def _speaks_or_draws(price: Any) -> bool:
    """Whether an answer may have tokens that are no text, and dearer."""
    named = (name for name, value in vars(price).items() if value is not None)
    return any(name.startswith("output_") and _kind_of(name) for name in named)


def _is_text(usage: Usage, priced_apart: Collection[str]) -> bool:
    """Whether an answer is known to have none of the tokens that are priced apart."""
    if not priced_apart:
        return True
    return usage.media is not None and not any(usage.media.get(kind, 0) for kind in priced_apart)


def _changes_by_the_hour(model: Any) -> bool:
    listed = model.prices if isinstance(model.prices, list) else ()
    return any(hasattr(one.constraint, "start_time") for one in (*listed, *(model.price_variants or ())))


def _has_variant(model: Any, tier: str | None) -> bool:
    return any(variant.when.get("service_tier") == tier for variant in model.price_variants or ())


def _possible_prices(model: Any) -> list[Any]:
    """All that may be charged from now on, whatever the hour and the tier."""
    if not isinstance(model.prices, list):
        possible = [model.prices]
    else:
        possible, now = [], datetime.now(UTC)
        for one in model.prices:
            if hasattr(one.constraint, "start_date") and one.constraint.active(now):
                possible.clear()  # a later price takes precedence: what stands before it is history
            possible.append(one.prices)
    return possible + [variant.prices for variant in model.price_variants or ()]


def _all_rates(price: Any) -> Iterator[Rates]:
    """The dearest step first: a tier holds for all tokens of a request with more input than it begins with."""
    starts = {tier.start for name in _TOLD for tier in getattr(getattr(price, name), "tiers", ())}
    for start in sorted(starts | {-1}, reverse=True):
        read = _usd_at(price, _INPUT, start)
        assert read is not None, "a simple price has one for input"
        cached, written, output = (_usd_at(price, name, start) for name in (_CACHED, _WRITTEN, _OUTPUT))
        yield Rates(
            start, read, read if cached is None else cached, read if written is None else written, output or 0.0
        )


def _usd_at(price: Any, name: str, start: int) -> float | None:
    """USD per token in a request just above ``start`` tokens; None if there is no such price."""
    value = getattr(price, name)
    if value is None:
        return None
    for tier in reversed(getattr(value, "tiers", ())):
        if start >= tier.start:
            return float(tier.price) / _PER
    return float(getattr(value, "base", value)) / _PER


def _highest(price: Any, name: str) -> float:
    value = getattr(price, name)
    if value is None:
        return 0.0
    return (
        max(float(one) for one in (getattr(value, "base", value), *(t.price for t in getattr(value, "tiers", ()))))
        / _PER
    )


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model of the price list. Prices are USD per million tokens, None where the list has none.

    ``varies``: long requests, or some hours, have another price.
    """

    name: str
    context_tokens: int | None
    input_usd: float
    cached_usd: float | None
    output_usd: float | None
    varies: bool
    deprecated: bool


def price_list(url: str) -> list[ListedModel]:
    """The models that are priced by the token at ``url``; none for an address that the list does not know."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        models = get_snapshot().find_provider(None, None, url).models
    except LookupError:
        return []
    now = datetime.now(UTC)
    return [_listed(model, model.get_prices(now)) for model in models if model.get_prices(now).input_mtok is not None]


def price_list_version() -> str:
    """Which list it is; it carries no date."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


def _listed(model: Any, price: Any) -> ListedModel:
    read, cached, output = (_plain_usd(getattr(price, name)) for name in (_INPUT, _CACHED, _OUTPUT))
    assert read is not None, "only models with a price for input are asked for"
    steps = any(getattr(getattr(price, name), "tiers", ()) for name in _TOLD)
    return ListedModel(
        model.id,
        model.context_window,
        read,
        cached,
        output,
        varies=steps or _changes_by_the_hour(model),
        deprecated=bool(model.deprecated),
    )


def _plain_usd(value: Any) -> float | None:
    """USD per million tokens of a request below all steps."""
    return None if value is None else float(getattr(value, "base", value))
