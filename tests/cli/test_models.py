"""`llmbatch models`: what is known, as -m takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llmbatch.cli.app import app
from llmbatch.prices import ListedModel, price_list
from llmbatch.providers.target import resolve
from llmbatch.views.models import KnownModel, models_json, render_models


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def models(*args: str) -> Result:
    return CliRunner().invoke(app, ["models", *args])


def listed(**values: object) -> ListedModel:
    plain = {"name": "x", "context_tokens": 128_000, "input_usd": 2.5, "cached_usd": None, "output_usd": 10.0}
    return ListedModel(**{**plain, "varies": False, "deprecated": False, **values})  # type: ignore[arg-type]


def test_every_name_is_one_that_m_takes_with_the_dialect_it_is_asked_in() -> None:
    known = json.loads(models("--json").stdout)["models"]
    assert len(known) > 100 and len({one["model"] for one in known}) == len(known)
    for one in known:
        provider, _, name = one["model"].partition("/")
        if provider in ("azure", "bedrock"):
            continue  # where they are, only the environment knows
        target = resolve(one["model"], None)
        assert (target.model, target.provider.name) == (name, one["api"])


@pytest.mark.parametrize(
    ("model", "api"),
    [
        ("openai/gpt-4.1-mini", "openai-chat"),
        ("openai/text-embedding-3-small", "openai-embeddings"),
        ("anthropic/claude-sonnet-4-5", "anthropic"),
        ("gemini/gemini-2.5-flash", "gemini"),
    ],
)
def test_what_everybody_asks_for_is_there(model: str, api: str) -> None:
    found = {one["model"]: one for one in json.loads(models(model, "--json").stdout)["models"]}[model]
    assert found["api"] == api and found["input_usd"] > 0


def test_the_prices_are_those_that_a_run_reckons_with() -> None:
    (mini,) = [one for one in price_list("https://api.openai.com/v1") if one.name == "gpt-4.1-mini"]
    assert (mini.input_usd, mini.cached_usd, mini.output_usd) == (0.4, 0.1, 1.6)
    assert price_list("https://nobody.example/v1") == []


@pytest.mark.parametrize("name", ["openai/gpt-image-1", "openai/gpt-4o-mini-tts", "openai/ft:gpt-4o", "gemini/claude-"])
def test_what_can_not_be_asked_there_is_not_listed(name: str) -> None:
    assert name not in models().stdout


def test_a_filter_keeps_the_names_that_have_it_in_any_case() -> None:
    lines = models("GPT-4.1").stdout.split("\n\n")[0].splitlines()[1:]
    assert len(lines) >= 3 and all("gpt-4.1" in line for line in lines)


def test_nothing_found_is_1_with_what_is_close() -> None:
    done = models("gpt-41-mini")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "openai/gpt-4.1-mini" in done.stderr
    done = models("zzzzzzzzzz", "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["models"] == []
    assert "without a filter" in done.stderr


def test_columns_line_up_and_say_what_there_is_to_say() -> None:
    shown = render_models(
        [
            KnownModel("openai/plain", "openai-chat", listed()),
            KnownModel("openai/steps", "openai-chat", listed(input_usd=1.25, cached_usd=0.125, varies=True)),
            KnownModel("gemini/old", "gemini", listed(context_tokens=None, output_usd=None, deprecated=True)),
        ],
        "the list of today",
    )
    assert shown.splitlines() == [
        "MODEL         CONTEXT     IN  CACHED    OUT  API",
        "openai/plain     128k   2.50       -  10.00  openai-chat",
        "openai/steps     128k  1.25+   0.125  10.00  openai-chat",
        "gemini/old !        -   2.50       -      -  gemini",
        "",
        "3 of them; USD per million tokens, standard tier, as of the list of today.",
        "+ long requests, or some hours, have another price",
        "! deprecated by its provider",
    ]


def test_json_has_the_numbers() -> None:
    assert models_json([KnownModel("openai/x", "openai-chat", listed(varies=True))], "today") == {
        "prices": "today",
        "models": [
            {
                "model": "openai/x",
                "api": "openai-chat",
                "context_tokens": 128_000,
                "input_usd": 2.5,
                "cached_usd": None,
                "output_usd": 10.0,
                "varies": True,
                "deprecated": False,
            }
        ],
    }


def test_a_very_long_name_pushes_its_own_line_only() -> None:
    long = KnownModel("openrouter/" + "x" * 60, "openai-chat", listed())
    usual = KnownModel("openai/" + "x" * 30, "openai-chat", listed())
    head, first, second = render_models([long, usual], "today", 80).splitlines()[:3]
    assert len(first) > 80 >= max(len(head), len(second))
    assert max(map(len, render_models([long, usual], "today", 200).splitlines()[:3])) == len(first)
