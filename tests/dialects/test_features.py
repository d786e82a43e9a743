"""Each cell of the table in the README: a dialect, and what it can do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

import llmbatch
from llmbatch.errors import ProviderStopped
from llmbatch.identity import target_of
from llmbatch.options import RunOptions
from llmbatch.records import Request, Result
from llmbatch.sim.options import sim_options_from
from llmbatch.sim.server import SimServer

from .features import DIALECTS, FEATURES, LIMITS, PROMPT, Ask, Dialect, cells, table

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
async def ask(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ask]:
    """Sends rows in the dialect of the test to a simulated provider of their own."""
    dialect: Dialect = request.getfixturevalue("dialect")

    async def send(rows: list[Any], sim: Mapping[str, str] | None = None, **settings: Any) -> list[Result]:
        options = dict(sim or {})
        if "script" in options:
            script = tmp_path / "script.jsonl"
            script.write_text(options["script"] + "\n")
            options["script"] = str(script)
        settings = {**dialect.settings, **settings}
        if dialect.model.startswith("sim/"):
            settings |= {"api": dialect.api, "sim": options}
            return await collected(rows, dialect, settings)
        async with SimServer(sim_options_from(options)) as server:
            for name, value in located(dialect, server).items():
                monkeypatch.setenv(name, value)
            return await collected(rows, dialect, settings)

    yield send


def located(dialect: Dialect, server: SimServer) -> dict[str, str]:
    here = urlsplit(server.base_url)
    origin = f"{here.scheme}://{here.netloc}"
    return {name: value.replace("{origin}", origin) for name, value in dialect.environment.items()}


async def collected(rows: list[Any], dialect: Dialect, settings: Mapping[str, Any]) -> list[Result]:
    results = []
    with contextlib.suppress(ProviderStopped):  # a lone row that meets what all rows would meet
        async for result in llmbatch.stream(rows, model=dialect.model, **settings):
            results.append(result)
    return sorted(results, key=lambda result: result.row)


CELLS = [
    pytest.param(dialect, feature, id=f"{dialect.title}-{feature}".replace(" ", "_"))
    for dialect, feature in cells()
    if feature != LIMITS
]


@pytest.mark.parametrize(("dialect", "feature"), CELLS)
async def test_a_dialect_can(dialect: Dialect, feature: str, ask: Ask) -> None:
    await FEATURES[feature](dialect, ask)


@pytest.mark.parametrize("dialect", [one for one, feature in cells() if feature == LIMITS], ids=lambda one: one.title)
async def test_limit_headers_are_understood(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        SimServer(sim_options_from({"rpm": "600", "tpm": "120000"})) as server,
        aiohttp.ClientSession() as session,
    ):
        for name, value in located(dialect, server).items():
            monkeypatch.setenv(name, value)
        options = RunOptions(input="-", model=dialect.model, api=dialect.api or None, **dialect.settings)
        target = target_of(options)
        request = (
            Request("demo", [{"role": "user", "content": PROMPT}]) if dialect.chat else Request("demo", input=PROMPT)
        )
        provider = target.dialect(request)
        here, there = urlsplit(server.base_url), urlsplit(target.base_url + provider.path(request.model))
        url = there._replace(scheme=here.scheme, netloc=here.netloc).geturl()
        headers = {**provider.headers, **target.key_headers("test-key")}
        async with session.post(url, json=dict(provider.encode(request)), headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            limits = provider.limits(answer.headers, 1_800_000_000.0)
    assert limits.requests.limit == 600 and limits.requests.remaining is not None
    tokens = limits.tokens if limits.tokens.limit is not None else limits.input_tokens
    assert tokens.limit == 120_000 and tokens.remaining is not None and tokens.remaining < 120_000


def test_the_table_in_the_readme_is_this_one() -> None:
    assert table() in README.read_text(encoding="utf-8")


def test_every_dialect_has_its_column() -> None:
    from llmbatch.providers.services import APIS

    asked = {dialect.api for dialect in DIALECTS}
    assert set(APIS) <= asked and re.fullmatch(r"\|.*\|", table().splitlines()[0])
