"""What all dialects of the simulated provider have in common, each in its own shape, in both modes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sim_wire import (
    FIXTURES,
    PROMPT,
    bytes_of,
    endpoints,
    error_of,
    events_of,
    sim,
    streamed_text,
    text_of,
    tokens_of,
)

from llmbatch.sim.answers import count_tokens, expected_answer

pytestmark = pytest.mark.usefixtures("each_mode")

NAMES = list(endpoints())
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["label", "score"],
    "properties": {
        "label": {"type": "string", "enum": ["good", "bad"]},
        "score": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
}
# How each dialect asks for an answer that fits a schema, for JSON, for reasoning at low effort, and for a maximum.
SHAPED: dict[str, dict[str, Any]] = {
    "openai-chat": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}
    },
    "openai-responses": {
        "text": {"format": {"type": "json_schema", "name": "s", "strict": True, "schema": SCHEMA}},
    },
    "anthropic": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "gemini": {"generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}},
}
SHAPED["azure-chat"] = SHAPED["openai-chat"]
JSON_MODE: dict[str, dict[str, Any]] = {
    "openai-chat": {"response_format": {"type": "json_object"}},
    "openai-responses": {"text": {"format": {"type": "json_object"}}},
    "gemini": {"generationConfig": {"responseMimeType": "application/json"}},
}
REASONING: dict[str, dict[str, Any]] = {
    "openai-chat": {"reasoning_effort": "low"},
    "openai-responses": {"reasoning": {"effort": "low"}},
    "azure-chat": {"reasoning_effort": "low"},
    "anthropic": {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
    "gemini": {"generationConfig": {"thinkingConfig": {"thinkingLevel": "LOW"}}},
}
AT_MOST_3: dict[str, dict[str, Any]] = {
    "openai-chat": {"max_completion_tokens": 3},
    "openai-responses": {"max_output_tokens": 3},
    "azure-chat": {"max_tokens": 3},
    "anthropic": {"max_tokens": 3},
    "gemini": {"generationConfig": {"maxOutputTokens": 3}},
}


def stop_reason(name: str, body: Any) -> Any:
    match name:
        case "openai-chat" | "azure-chat":
            return body["choices"][0]["finish_reason"]
        case "openai-responses":
            return (body["incomplete_details"] or {}).get("reason") or body["status"]
        case "anthropic":
            return body["stop_reason"]
    return body["candidates"][0]["finishReason"]


@pytest.mark.parametrize("name", NAMES)
async def test_every_dialect_says_the_same(name: str):
    async with sim() as client:
        status, _, body = await client.ask(endpoints()[name])
    tokens = count_tokens(expected_answer(PROMPT))
    assert (status, text_of(name, body)) == (200, expected_answer(PROMPT))
    assert tokens_of(name, body) == (6, tokens, 0, 0)
    assert stop_reason(name, body) in ("stop", "completed", "end_turn", "STOP")


@pytest.mark.parametrize("name", NAMES)
async def test_a_stream_read_byte_by_byte_is_the_same_answer(name: str):
    async with sim() as client:
        endpoint = endpoints()[name]
        path, body = endpoint.streamed()
        data = await bytes_of(client, path, body, endpoint.headers)
    assert streamed_text(name, data) == expected_answer(PROMPT)
    last_name, last = events_of(data)[-1]
    match name:
        case "openai-chat" | "azure-chat":
            assert last == "[DONE]"
        case "openai-responses":
            assert (last_name, json.loads(last)["type"]) == ("response.completed", "response.completed")
            assert text_of(name, json.loads(last)["response"]) == expected_answer(PROMPT)
        case "anthropic":
            assert (last_name, json.loads(last)) == ("message_stop", {"type": "message_stop"})
        case "gemini":
            assert json.loads(last)["candidates"][0]["finishReason"] == "STOP"
            assert b"[DONE]" not in data


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_cut_at_the_maximum(name: str, stream: bool):
    endpoint = endpoints()[name]
    async with sim() as client:
        _, _, body = await client.ask(endpoint, **AT_MOST_3[name])
        text = text_of(name, body)
        if stream:
            text = streamed_text(name, await client.raw_stream(endpoint, **AT_MOST_3[name]))
    assert text == expected_answer(PROMPT)[:12]
    assert stop_reason(name, body) in ("length", "max_output_tokens", "max_tokens", "MAX_TOKENS")


@pytest.mark.parametrize("name", NAMES)
async def test_reasoning_is_counted_and_may_use_up_the_maximum(name: str):
    async with sim() as client:
        _, _, body = await client.ask(endpoints()[name], **REASONING[name])
        assert tokens_of(name, body)[1:3] == (16 + count_tokens(expected_answer(PROMPT)), 16)
        cut = dict(REASONING[name])
        if name == "gemini":
            cut = {"generationConfig": {**cut["generationConfig"], **AT_MOST_3[name]["generationConfig"]}}
        _, _, body = await client.ask(endpoints()[name], **{**AT_MOST_3[name], **cut})
        assert (text_of(name, body), tokens_of(name, body)[1:3]) == ("", (3, 3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_fits_the_schema(name: str, stream: bool):
    endpoint = endpoints()[name]
    async with sim() as client:
        if stream:
            text = streamed_text(name, await client.raw_stream(endpoint, **SHAPED[name]))
        else:
            text = text_of(name, (await client.ask(endpoint, **SHAPED[name]))[2])
    assert json.loads(text) == {"label": "good", "score": 1}


@pytest.mark.parametrize("name", JSON_MODE)
async def test_json_mode_answers_an_object(name: str):
    async with sim() as client:
        _, _, body = await client.ask(endpoints()[name], **JSON_MODE[name])
    assert json.loads(text_of(name, body)) == {"answer": expected_answer(PROMPT)}


@pytest.mark.parametrize("name", NAMES)
async def test_a_prompt_seen_before_is_cached(name: str):
    endpoint = endpoints("The same long instruction. " * 200)[name]
    more = {"cache_control": {"type": "ephemeral"}} if name == "anthropic" else {}
    async with sim() as client:
        usages = [tokens_of(name, (await client.ask(endpoint, **more))[2]) for _ in range(2)]
    assert [usage[3] for usage in usages] == [0, 1350 if name == "anthropic" else 1024]  # all that is marked
    assert usages[0][0] == usages[1][0] == 1350


async def test_requests_that_come_together_find_nothing_in_the_cache():
    endpoint = endpoints("The same long instruction. " * 200)["openai-chat"]
    async with sim(latency="0.1") as client:
        together = await asyncio.gather(*(client.ask(endpoint) for _ in range(3)))
        later = await client.ask(endpoint)
    usages = [tokens_of("openai-chat", body)[3] for _, _, body in [*together, later]]
    assert usages == [0, 0, 0, 1024]


LONG = "The same long instruction. " * 200
MARK: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}


def block(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        ([block(LONG, **MARK), block("one")], [block(LONG, **MARK), block("two")], 1350),
        ([block(LONG), block("one", **MARK)], [block(LONG), block("two", **MARK)], 0),  # nothing ends at LONG
        ([block(LONG, **MARK), block("one")], [block(LONG), block("two", **MARK)], 1350),  # looks back
        ([block(LONG), block("one")], [block(LONG), block("one")], 0),
        ([block("short", **MARK), block(LONG)], [block("short", **MARK), block(LONG)], 0),
        ([block(LONG, **MARK)], [block("x" + LONG, **MARK)], 0),
    ],
)
async def test_anthropic_caches_up_to_the_marks(first: list[Any], second: list[Any], cached: int):
    async with sim() as client:
        endpoint = endpoints()["anthropic"]
        await client.ask(endpoint, messages=[{"role": "user", "content": first}])
        body = (await client.ask(endpoint, messages=[{"role": "user", "content": second}]))[2]
    assert tokens_of("anthropic", body)[3] == cached


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("openai-chat", "oai_chat"),
        ("openai-responses", "oai_responses"),
        ("azure-chat", "oai_chat"),
        ("anthropic", "ant"),
        ("gemini", "gem"),
    ],
)
async def test_documented_requests_are_accepted_as_they_are(name: str, file: str):
    body = json.loads((FIXTURES / f"{file}_request.json").read_bytes())
    endpoint = endpoints()[name]
    async with sim() as client:
        status, _, data = await client.post(endpoint.path, body, endpoint.headers)
    assert status == 200, data
    assert isinstance(json.loads(text_of(name, json.loads(data))), dict)


@pytest.mark.parametrize(
    ("name", "path"), [("openai-embeddings", "/v1/embeddings"), ("gemini", "/v1/models/{}:batchEmbedContents")]
)
async def test_documented_embeddings_requests_are_accepted(name: str, path: str):
    file = "oai_embed" if name == "openai-embeddings" else "gem_embed"
    body = json.loads((FIXTURES / f"{file}_request.json").read_bytes())
    async with sim() as client:
        status, _, data = await client.post(path.format("gemini-embedding-2"), body)
    answer = json.loads(data)
    vectors = [item["embedding"] for item in answer["data"]] if "data" in answer else answer["embeddings"]
    assert (status, len(vectors)) == (200, 2)


ERRORS: dict[str, dict[str, tuple[int, tuple[Any, ...]]]] = {
    "openai-chat": {
        "429": (429, ("requests", "rate_limit_exceeded")),
        "500": (500, ("server_error", None)),
        "503": (503, ("service_unavailable_error", "server_is_overloaded")),
        "400": (400, ("invalid_request_error", "invalid_prompt")),
        "401": (401, ("invalid_request_error", "invalid_api_key")),
        "404": (404, ("invalid_request_error", "model_not_found")),
        "quota": (429, ("insufficient_quota", "credit_balance_exhausted")),
        "context": (400, ("invalid_request_error", "context_length_exceeded")),
    },
    "azure-chat": {
        "429": (429, ("429",)),
        "500": (500, ("InternalServerError",)),
        "503": (503, ("ServiceUnavailable",)),
        "400": (400, ("content_filter",)),
        "401": (401, ("401",)),
        "404": (404, ("DeploymentNotFound",)),
        "quota": (403, ("403",)),
        "context": (400, ("context_length_exceeded",)),
    },
    "anthropic": {
        "429": (429, ("rate_limit_error", None)),
        "500": (500, ("api_error", None)),
        "503": (503, ("api_error", None)),
        "529": (529, ("overloaded_error", None)),
        "400": (400, ("invalid_request_error", None)),
        "401": (401, ("authentication_error", None)),
        "404": (404, ("not_found_error", None)),
        "quota": (429, ("rate_limit_error", "enforced_spend_limit_reached")),
        "context": (400, ("invalid_request_error", None)),
    },
    "gemini": {
        "429": (429, (429, "RESOURCE_EXHAUSTED")),
        "500": (500, (500, "INTERNAL")),
        "503": (503, (503, "UNAVAILABLE")),
        "400": (400, (400, "INVALID_ARGUMENT")),
        "401": (400, (400, "INVALID_ARGUMENT")),
        "404": (404, (404, "NOT_FOUND")),
        "quota": (402, (402, "RESOURCE_EXHAUSTED")),
        "context": (400, (400, "INVALID_ARGUMENT")),
    },
}
ERRORS["openai-responses"] = ERRORS["openai-chat"]


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in NAMES for fault in ERRORS[name]])
async def test_error_faults_have_the_documented_shape_and_cost_nothing(name: str, fault: str):
    endpoint = endpoints()[name]
    async with sim(fault=f"{fault}=1") as client:
        got, _, body = await client.ask(endpoint)
        path, streamed = endpoint.streamed()
        in_stream = await client.post(path, streamed, endpoint.headers)
        ledger = client.server.ledger
    status, words = ERRORS[name][fault]
    assert (got, error_of(name, body)) == (status, words)
    assert (in_stream[0], error_of(name, json.loads(in_stream[2]))) == (status, words)
    assert (ledger.billed, ledger.rejected, ledger.faults) == (0, {status: 2}, {fault: 2})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("fault", "billed"), [("502", 0), ("html", 0), ("empty", 1), ("garbage-json", 1)])
async def test_spoilt_answers_are_no_json(name: str, fault: str, billed: int):
    endpoint = endpoints()[name]
    async with sim(fault=f"{fault}=1") as client:
        status, _, data = await client.post(endpoint.path, endpoint.body, endpoint.headers)
        assert client.server.ledger.billed == billed
    assert status == (502 if fault == "502" else 200)
    with pytest.raises(json.JSONDecodeError):
        json.loads(data)


@pytest.mark.parametrize("name", NAMES)
async def test_an_error_behind_a_good_status(name: str):
    async with sim(fault="error200=1") as client:
        status, _, body = await client.ask(endpoints()[name])
        assert client.server.ledger.billed == 0
    assert status == 200
    if name == "openai-responses":
        assert (body["status"], body["error"]["code"], body["usage"]) == ("failed", "server_error", None)
    else:
        assert body["error"]["message"]


@pytest.mark.parametrize("name", NAMES)
async def test_an_error_in_mid_stream(name: str):
    async with sim(fault="error200=1") as client:
        data = await client.raw_stream(endpoints()[name])
    events = events_of(data)
    match name:
        case "openai-chat" | "azure-chat":
            assert json.loads(events[-1][1])["error"]["type"] == "server_error"
        case "openai-responses":
            assert events[-1][0] == "response.failed"
            assert json.loads(events[-1][1])["response"]["error"]["code"] == "server_error"
        case "anthropic":
            assert (events[-1][0], json.loads(events[-1][1])["error"]["type"]) == ("error", "overloaded_error")
        case "gemini":
            raw = data.decode().rpartition("\r\n\r\n")[2]
            assert raw.startswith("{\n") and json.loads(raw)["error"]["status"] == "UNAVAILABLE"
    if name != "gemini":
        assert len(events) > 2


@pytest.mark.parametrize("name", NAMES)
async def test_garbage_in_mid_stream(name: str):
    async with sim(fault="garbage-json=1") as client:
        events = events_of(await client.raw_stream(endpoints()[name]))
        assert client.server.ledger.billed == 1
    broken = 0
    for _, data in events:
        try:
            json.loads(data)
        except json.JSONDecodeError:
            broken += data != "[DONE]"
    assert broken == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "billed"), [("reset-before", 0), ("reset-after", 1), ("truncate", 1)])
async def test_broken_connections(name: str, stream: bool, fault: str, billed: int):
    endpoint = endpoints()[name]
    path, body = endpoint.streamed() if stream else (endpoint.path, endpoint.body)
    async with sim(fault=f"{fault}=1") as client:
        with pytest.raises(aiohttp.ClientError):
            await client.post(path, body, endpoint.headers)
        assert client.server.ledger.billed == billed


@pytest.mark.parametrize("name", NAMES)
async def test_a_stall_says_nothing(name: str):
    endpoint = endpoints()[name]
    async with sim(fault="stall=1") as client:
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.05):
                await client.post(endpoint.path, endpoint.body, endpoint.headers)
        assert client.server.ledger.billed == 0


@pytest.mark.parametrize("name", NAMES)
async def test_script_and_ledger_know_the_dialect(name: str, tmp_path: Path):
    script, bills = tmp_path / "script.jsonl", tmp_path / "bills.jsonl"
    script.write_text('{"prompt": "parcel", "fault": "503", "times": 1}\n')
    endpoint = endpoints()[name]
    async with sim(script=str(script), ledger=str(bills)) as client:
        assert [(await client.ask(endpoint))[0] for _ in range(2)] == [503, 200]
    [line] = bills.read_text().splitlines()
    assert json.loads(line)["dialect"] == name


@pytest.mark.parametrize("name", NAMES)
async def test_a_wrong_key_and_an_unknown_model_are_refused(name: str):
    endpoint = endpoints()[name]
    keys = {
        "openai-chat": {"authorization": "Bearer right"},
        "openai-responses": {"authorization": "Bearer right"},
        "azure-chat": {"api-key": "right"},
        "anthropic": {"x-api-key": "right"},
        "gemini": {"x-goog-api-key": "right"},
    }
    async with sim(**{"api-key": "right", "models": "other"}) as client:
        wrong, _, body = await client.ask(endpoint)
        assert (wrong, error_of(name, body)) == ERRORS[name]["401"]
        status, _, data = await client.post(endpoint.path, endpoint.body, {**endpoint.headers, **keys[name]})
        assert (status, error_of(name, json.loads(data))) == ERRORS[name]["404"]


@pytest.mark.parametrize("name", NAMES)
async def test_unknown_fields_are_refused(name: str):
    async with sim() as client:
        status, _, body = await client.ask(endpoints()[name], max_token=5)
    said = {
        "openai-chat": ("invalid_request_error", "unknown_parameter"),
        "openai-responses": ("invalid_request_error", "unknown_parameter"),
        "azure-chat": ("unknown_parameter",),
        "anthropic": ("invalid_request_error", None),
        "gemini": (400, "INVALID_ARGUMENT"),
    }
    assert (status, error_of(name, body)) == (400, said[name])
    assert "max_token" in body["error"]["message"]


@pytest.mark.parametrize("name", NAMES)
async def test_limits_speak_in_their_own_family(name: str):
    endpoint = endpoints()[name]
    async with sim(rpm="1", tpm="100000") as client:
        _, good, _ = await client.ask(endpoint)
        status, headers, body = await client.ask(endpoint)
    assert (status, error_of(name, body)) == (429, ERRORS[name]["429"][1])
    families = {header for header in {**good, **headers} if "ratelimit" in header}
    match name:
        case "openai-chat" | "openai-responses":
            assert headers["x-ratelimit-reset-requests"].startswith("1m0s") or "59." in str(headers)
            assert 59 <= int(headers["retry-after"]) <= 60 and headers["x-should-retry"] == "true"
            assert headers["x-request-id"].startswith("req_")
        case "azure-chat":
            assert 59 <= int(headers["x-ratelimit-reset-requests"]) <= 60
            assert int(headers["retry-after-ms"]) > 59_000 and headers["apim-request-id"]
        case "anthropic":
            assert families == {
                f"anthropic-ratelimit-{unit}-{what}"
                for unit in ("requests", "tokens")
                for what in ("limit", "remaining", "reset")
            }
            assert headers["anthropic-ratelimit-requests-remaining"] == "0"
            assert headers["anthropic-ratelimit-requests-reset"].endswith("Z")
            assert headers["request-id"] == body["request_id"] and 59 <= int(headers["retry-after"]) <= 60
        case "gemini":
            assert not families and "retry-after" not in headers
            details = {detail["@type"].rpartition(".")[2]: detail for detail in body["error"]["details"]}
            assert 59 <= float(details["RetryInfo"]["retryDelay"].removesuffix("s")) <= 60
            [violation] = details["QuotaFailure"]["violations"]
            assert "PerMinute" in violation["quotaId"] and violation["quotaValue"] == "1"


async def test_input_and_output_tokens_are_limited_apart():
    endpoint = endpoints()["anthropic"]
    async with sim(**{"input-tpm": "1000", "output-tpm": "12"}) as client:
        status, headers, _ = await client.ask(endpoint)
        assert (status, headers["anthropic-ratelimit-input-tokens-remaining"]) == (200, "994")
        assert headers["anthropic-ratelimit-output-tokens-limit"] == "12"
        status, _, body = await client.ask(endpoint)
    assert (status, "output tokens" in body["error"]["message"]) == (429, True)


@pytest.mark.parametrize(
    ("path", "headers", "names"),
    [
        ("/v1/models", {}, lambda body: [model["id"] for model in body["data"]]),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, lambda body: [body["first_id"], body["last_id"]]),
        ("/v1beta/models", {}, lambda body: [m["name"].removeprefix("models/") for m in body["models"]]),
        ("/openai/v1/models", {}, lambda body: [model["id"] for model in body["data"]]),
    ],
)
async def test_models_are_listed_in_the_shape_of_who_asks(path: str, headers: dict[str, str], names: Any):
    async with sim(models="a,b") as client, client.session.get(client.root + path, headers=headers) as response:
        assert (response.status, names(await response.json())) == (200, ["a", "b"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1beta/models/m:nope", 404), ("GET", "/v1/messages", 405), ("POST", "/openai/v2/x", 404)],
)
async def test_where_nothing_is_spoken(method: str, path: str, status: int):
    async with sim() as client, client.session.request(method, client.root + path) as response:
        assert (response.status, "error" in await response.json(content_type=None)) == (status, True)
