"""What the provider says of its limits: in its own words, and as its imitations do (their documentation)."""

import re

import pytest
from sim_wire import endpoints, sim

from llmbatch.sim.limit_headers import IMITATIONS
from llmbatch.sim.limits import Limiter, Reading
from llmbatch.sim.options import sim_options_from

ENDPOINTS = endpoints()
CHAT = ENDPOINTS["openai-chat"]
READINGS = [
    Reading("requests", 600.0, 598, 0.2),
    Reading("tokens", 60_000.0, 59_400, 0.6),
    Reading("input-tokens", 5.0, 5, 0.0),
    Reading("requests", 14_400.0, 14_370, 179.56, 86_400.0),
]


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        (
            "openai",
            {
                "x-ratelimit-limit-requests": "600",
                "x-ratelimit-remaining-requests": "598",
                "x-ratelimit-reset-requests": "200ms",
                "x-ratelimit-limit-tokens": "60000",
                "x-ratelimit-remaining-tokens": "59400",
                "x-ratelimit-reset-tokens": "600ms",
            },
        ),
        (
            "groq",
            {
                "x-ratelimit-limit-requests": "14400",
                "x-ratelimit-remaining-requests": "14370",
                "x-ratelimit-reset-requests": "2m59.56s",
                "x-ratelimit-limit-tokens": "60000",
                "x-ratelimit-remaining-tokens": "59400",
                "x-ratelimit-reset-tokens": "600ms",
            },
        ),
        (
            "azure",
            {
                "x-ratelimit-limit-requests": "600",
                "x-ratelimit-remaining-requests": "598",
                "x-ratelimit-reset-requests": "1",
                "x-ratelimit-limit-tokens": "60000",
                "x-ratelimit-remaining-tokens": "59400",
                "x-ratelimit-reset-tokens": "1",
            },
        ),
        (
            "mistral",
            {
                "x-ratelimit-limit-req-minute": "600",
                "x-ratelimit-remaining-req-minute": "598",
                "x-ratelimit-limit-tokens-minute": "60000",
                "x-ratelimit-remaining-tokens-minute": "59400",
            },
        ),
        (
            "together",
            {
                "x-ratelimit-limit": "10",
                "x-ratelimit-remaining": "10",
                "x-ratelimit-reset": "0.200",
                "x-tokenlimit-limit": "1000",
                "x-tokenlimit-remaining": "1000",
                "x-tokenlimit-reset": "0.600",
            },
        ),
        ("openrouter", {}),
        ("none", {}),
    ],
)
def test_each_imitation_has_its_own_names_and_values(name: str, headers: dict[str, str]):
    assert dict(IMITATIONS[name].limit_headers(READINGS, 1_800_000_000.0)) == headers


def test_openrouter_tells_of_a_limit_that_is_used_up():
    used_up = [Reading("requests", 20.0, 0, 45.0), Reading("tokens", 10.0, 0, 60.0)]
    assert dict(IMITATIONS["openrouter"].limit_headers(used_up, 1_800_000_000.0)) == {
        "x-ratelimit-limit": "20",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "1800000045000",
    }


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("openai", {"retry-after", "retry-after-ms", "x-should-retry"}),
        ("azure", {"retry-after", "retry-after-ms"}),
        ("groq", {"retry-after"}),
        ("mistral", {"retry-after"}),
        ("together", {"retry-after"}),
        ("openrouter", {"retry-after"}),
        ("none", set()),
    ],
)
async def test_a_refusal_waits_as_the_imitation_does(name: str, waits: set[str]):
    async with sim(**{"rpm": "2", "limit-headers": name}) as client:
        answers = [await client.ask(CHAT) for _ in range(3)]
        azure = await client.ask(ENDPOINTS["azure-chat"])
    assert [status for status, _, _ in answers] == [200, 200, 429]
    _, good, _ = answers[0]
    _, refused, _ = answers[2]
    assert not any("retry" in header for header in good)
    assert {header for header in refused if "retry" in header} == waits
    assert any("ratelimit" in header for header in refused) == (name not in ("none", "groq"))
    assert "retry-after-ms" in azure[1], "only OpenAI has imitations"


async def test_no_headers_hides_those_of_imitations_too():
    async with sim(**{"rpm": "1", "limit-headers": "mistral", "no-headers": "true"}) as client:
        answers = [await client.ask(CHAT) for _ in range(2)]
    assert not any("ratelimit" in name or "retry" in name for _, headers, _ in answers for name in headers)


def test_an_unknown_imitation_is_refused():
    with pytest.raises(ValueError, match="limit-headers: must be one of openai, groq, azure"):
        sim_options_from({"limit-headers": "acme"})


def test_what_a_day_allows_may_come_at_once_and_then_a_request_at_a_time():
    limiter = Limiter(rpm=None, tpm=None, burst_s=1.0, rpd=100)
    assert [limiter.admit(0.0, 1, 1) for _ in range(100)] == [None] * 100
    refusal = limiter.admit(0.0, 1, 1)
    assert refusal is not None and refusal.daily
    assert refusal.wait_s == pytest.approx(864.0)
    assert limiter.admit(864.0, 1, 1) is None


async def test_openai_says_that_the_day_is_used_up():
    async with sim(rpd="2", rpm="600") as client:
        *_, (status, headers, body) = [await client.ask(CHAT) for _ in range(3)]
    assert status == 429
    error = body["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    words = r"Rate limit reached for m on requests per day \(RPD\): Limit 2, Used 2, Requested 1\."
    assert re.fullmatch(words + r" Please try again in (12h0m0s|11h59m[0-9.]+s)\.", error["message"])
    assert 43_190 <= int(headers["retry-after"]) <= 43_200
    assert headers["x-ratelimit-limit-requests"] == "600"


async def test_groq_tells_of_its_day_with_each_answer():
    async with sim(**{"rpd": "1000", "tpm": "6000", "limit-headers": "groq"}) as client:
        _, good, _ = await client.ask(CHAT)
    assert (good["x-ratelimit-limit-requests"], good["x-ratelimit-remaining-requests"]) == ("1000", "999")
    assert good["x-ratelimit-reset-requests"] == "1m26.4s"
    async with sim(**{"rpd": "1", "limit-headers": "groq"}) as client:
        *_, (status, refused, _) = [await client.ask(CHAT) for _ in range(2)]
    assert status == 429 and int(refused["retry-after"]) > 86_000
    assert refused["x-ratelimit-remaining-requests"] == "0"


async def test_gemini_names_the_quota_of_the_day_and_a_wait_that_does_not_help():
    async with sim(rpd="1") as client:
        *_, (status, _, body) = [await client.ask(ENDPOINTS["gemini"]) for _ in range(2)]
    quota, retry = body["error"]["details"]
    assert (status, body["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert quota["violations"][0]["quotaId"] == "GenerateRequestsPerDayPerProjectPerModel"
    assert (quota["violations"][0]["quotaValue"], retry["retryDelay"]) == ("1", "40s")


async def test_anthropic_and_azure_tell_of_minutes_only():
    async with sim(rpd="1") as client:
        for name in ("anthropic", "azure-chat"):
            _, headers, _ = await client.ask(ENDPOINTS[name])
            assert not any("ratelimit" in header for header in headers)
        status, _, body = await client.ask(ENDPOINTS["anthropic"])
    assert status == 429 and "1 requests per day" in body["error"]["message"]
