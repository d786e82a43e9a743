"""Prices by the list of genai-prices: exact for an answer, never too low for a bound, and none where none is known."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import date, time, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import genai_prices
import pytest
from genai_prices.types import (
    ConditionalPrice,
    ModelPrice,
    PriceVariant,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)

from llmbatch.prices import Prices
from llmbatch.records import Reply, TokenBound, Usage

URL = "https://api.openai.com/v1/chat/completions"
ANTHROPIC = "https://api.anthropic.com/v1/messages"


def reply(model: str | None, usage: Usage, tier: str | None = None) -> Reply:
    return Reply("x", "stop", model, usage, service_tier=tier)


@pytest.mark.parametrize(
    ("model", "usage", "tier"),
    [
        ("gpt-4o", Usage(1000, 100), None),
        ("gpt-4o", Usage(0, 0), None),
        ("gpt-4o-2024-08-06", Usage(1000, 100, 400), "default"),
        ("gpt-4.1-mini", Usage(31, 2, 0, 0), None),
        ("gpt-4.1-mini", Usage(31, 2, 0, 0), "priority"),
        ("o3", Usage(10, 1000, 5, 900), "flex"),
        ("gpt-5.4", Usage(272_000, 10, 7), None),
        ("gpt-5.4", Usage(272_001, 10, 7), None),
        ("gpt-5.6-luna", Usage(2000, 10, 500, 0, 1000), None),
    ],
)
def test_a_cost_is_the_librarys_own(model: str, usage: Usage, tier: str | None) -> None:
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cached_input_tokens or 0,
            cache_write_tokens=usage.cache_write_tokens or 0,
        ),
        model,
        provider_api_url=URL,
        price_context={"service_tier": tier} if tier else None,
    )
    assert Prices(URL).cost_usd(reply(model, usage, tier), "?") == pytest.approx(float(theirs.total_price), rel=1e-12)
    assert Prices(URL).cost_usd(reply(None, usage, tier), model) is not None


@pytest.mark.parametrize(
    ("url", "model", "usage"),
    [
        (URL, "gpt-4o", Usage(1000, 100, 400)),
        (URL, "gpt-5.4", Usage(272_001, 10, 272_000)),
        (URL, "gpt-5.6-luna", Usage(2000, 10, 500, 0, 1000)),
        (ANTHROPIC, "claude-sonnet-4-5", Usage(3000, 10, 2000, 0, 500)),
        (ANTHROPIC, "claude-sonnet-4-5", Usage(3000, 10, 0, 0, 2500)),
    ],
)
def test_what_the_cache_saves_is_the_price_without_it_less_the_price(url: str, model: str, usage: Usage) -> None:
    prices = Prices(url)
    without = prices.cost_usd(reply(model, Usage(usage.input_tokens, usage.output_tokens)), "?")
    cost, saved = prices.cost_usd(reply(model, usage), "?"), prices.cache_saved_usd(reply(model, usage), "?")
    assert without is not None and cost is not None
    assert saved == pytest.approx(without - cost, abs=1e-11)
    assert saved < 0 if not usage.cached_input_tokens else saved > 0


@pytest.mark.parametrize(
    ("url", "model", "usage"),
    [
        (None, "gpt-4o", Usage(1000, 1, 500)),
        (URL, "gpt-unheard-of", Usage(1000, 1, 500)),
        (URL, "gpt-4o", Usage(1000, 1)),
        (URL, "gpt-4o", Usage(1000, 1, 0, 0, 0)),
        (URL, "gpt-4o", Usage(1000, 1, 1001)),
        (URL, "gpt-4o", Usage(None, 1, 5)),
        (ANTHROPIC, "claude-sonnet-4-5", Usage(3000, 10, 500, 0, 1000, None, 1000)),
    ],
)
def test_nothing_is_said_of_savings_that_are_not_known(url: str | None, model: str, usage: Usage) -> None:
    assert Prices(url).cache_saved_usd(reply(model, usage), model) is None


@pytest.mark.parametrize(
    ("url", "model", "usage", "tier"),
    [
        (None, "gpt-4o", Usage(1, 1), None),
        ("https://example.com/v1/chat/completions", "gpt-4o", Usage(1, 1), None),
        ("http://10.0.0.7:8000/v1/chat/completions", "gpt-4o", Usage(1, 1), None),
        (URL, "gpt-unheard-of", Usage(1, 1), None),
        (URL, "ft:gpt-4o:acme", Usage(1, 1), None),
        (URL, "gpt-audio", Usage(1, 1), None),  # how much of it was audio is not told
        (URL, "", Usage(1, 1), None),
        (URL, "gpt-4o", Usage(1, 1), "scale"),
        (URL, "gpt-4o", Usage(None, 1), None),
        (URL, "gpt-4o", Usage(1, None), None),
        (URL, "gpt-4o", Usage(1, 1, 2), None),
    ],
)
def test_what_is_not_known_exactly_has_no_cost(url: str | None, model: str, usage: Usage, tier: str | None) -> None:
    assert Prices(url).cost_usd(reply(model, usage, tier), model) is None


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1-mini", "gpt-5", "gpt-5.4", "o3", "gpt-5.6-luna"])
@pytest.mark.parametrize("tier", [None, "default", "flex", "priority"])
@pytest.mark.parametrize("tokens", [(1, 1), (1000, 50), (300_000, 10_000)])
def test_no_tier_costs_more_than_the_bound(model: str, tier: str | None, tokens: tuple[int, int]) -> None:
    prices, (tokens_in, tokens_out) = Prices(URL), tokens
    most = prices.at_most_usd(TokenBound(model, tokens_in, tokens_out))
    assert most is not None
    for cached, written in ((0, 0), (tokens_in, 0), (0, tokens_in)):
        cost = prices.cost_usd(reply(model, Usage(tokens_in, tokens_out, cached, 0, written), tier), "?")
        assert cost is None or 0 < cost <= most


@pytest.mark.parametrize(
    "bound",
    [
        None,
        TokenBound("gpt-4o", None, 1),
        TokenBound("gpt-4o", 1, None),
        TokenBound("gpt-unheard-of", 1, 1),
        TokenBound("gpt-audio", 1, 1),
        TokenBound(None, 1, 1),
    ],
)
def test_what_is_not_known_has_no_bound(bound: TokenBound | None) -> None:
    assert Prices(URL).at_most_usd(bound) is None
    assert Prices(None).at_most_usd(TokenBound("gpt-4o", 1, 1)) is None


def listed(prices: Any, variants: list[PriceVariant] | None = None) -> Any:
    """A library whose list has one model."""
    model = SimpleNamespace(prices=prices, price_variants=variants)
    now = prices if isinstance(prices, ModelPrice) else prices[-1].prices
    found = SimpleNamespace(model=model, model_price=now)
    return SimpleNamespace(Usage=SimpleNamespace, calc_price=lambda usage, **where: found)


def mtok(read: int, out: int, **more: Any) -> ModelPrice:
    return ModelPrice(input_mtok=Decimal(read), output_mtok=Decimal(out), **more)


YESTERDAY, IN_A_MONTH = (StartDateConstraint(date.today() + timedelta(days=days)) for days in (-1, 30))


@pytest.mark.parametrize(
    ("library", "usd"),
    [
        (listed(mtok(2, 8)), 10.0),
        (listed(mtok(2, 8, cache_write_mtok=Decimal(3))), 11.0),
        (listed(ModelPrice(input_mtok=TieredPrices(Decimal(2), [Tier(10, Decimal(4))]), output_mtok=Decimal(8))), 12.0),
        (listed(mtok(2, 8), [PriceVariant({"service_tier": "priority"}, mtok(5, 20))]), 25.0),
        # What was dearer once does not count; what will be may.
        (listed([ConditionalPrice(prices=mtok(9, 90)), ConditionalPrice(YESTERDAY, prices=mtok(2, 8))]), 10.0),
        (listed([ConditionalPrice(prices=mtok(2, 8)), ConditionalPrice(IN_A_MONTH, prices=mtok(9, 90))]), 99.0),
        (listed(ModelPrice(input_mtok=Decimal(2))), None),
        (listed(mtok(2, 8, requests_kcount=Decimal(5))), None),
    ],
)
def test_the_bound_takes_the_dearest_of_what_may_be_charged(library: Any, usd: float | None) -> None:
    prices = Prices(URL)
    prices._library, prices._loaded = library, True
    assert prices.at_most_usd(TokenBound("m", 10**6, 10**6)) == (None if usd is None else pytest.approx(usd))


def test_the_hour_of_a_price_is_not_guessed_and_the_bound_takes_the_dearest() -> None:
    """Off-peak prices: which hour the server counts is not told."""
    night = TimeOfDateConstraint(time(0, 0), time(8, 0))
    prices = Prices(URL)
    prices._library = listed([ConditionalPrice(prices=mtok(2, 8)), ConditionalPrice(night, prices=mtok(1, 4))])
    prices._loaded = True
    assert prices.cost_usd(reply("m", Usage(1, 1)), "") is None
    assert prices.at_most_usd(TokenBound("m", 10**6, 10**6)) == pytest.approx(10.0)


def test_a_price_list_that_can_not_be_imported_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    prices = Prices(URL)
    prices.load()
    assert prices.loaded and prices.cost_usd(reply("gpt-4o", Usage(1, 1)), "") is None


def test_whoever_needs_a_price_while_the_list_is_being_loaded_waits_for_it() -> None:
    prices = Prices(URL)
    threads = [threading.Thread(target=prices.load) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert prices.cost_usd(reply("gpt-4o", Usage(1000, 100)), "") == 0.0035
    for thread in threads:
        thread.join()


def test_nothing_imports_the_list_before_there_is_something_to_price() -> None:
    code = "import sys, llmbatch.runner, llmbatch.cli.app; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"


@pytest.mark.parametrize(
    ("media", "known"),
    [({}, True), ({"image": 258}, True), ({"audio": 0}, True), ({"audio": 32}, False), (None, False)],
)
def test_a_model_with_a_price_for_sound_is_priced_where_there_is_none(
    media: dict[str, int] | None, known: bool
) -> None:
    cost = Prices(GEMINI).cost_usd(reply("gemini-2.5-flash", Usage(1000, 100, media=media)), "?")
    assert (cost is not None) is known
    if known:
        theirs = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1000, output_tokens=100), "gemini-2.5-flash", provider_api_url=GEMINI
        )
        assert cost == pytest.approx(float(theirs.total_price))
    assert Prices(GEMINI).at_most_usd(TokenBound("gemini-2.5-flash", 1000, 100)) is not None


def test_what_is_written_for_an_hour_has_another_price() -> None:
    url = "https://api.anthropic.com/v1/messages"
    minutes, hour = Usage(1000, 1, 0, 0, 900), Usage(1000, 1, 0, 0, 900, cache_write_1h_tokens=900)
    assert Prices(url).cost_usd(reply("claude-haiku-4-5", minutes), "?") is not None
    assert Prices(url).cost_usd(reply("claude-haiku-4-5", hour), "?") is None
