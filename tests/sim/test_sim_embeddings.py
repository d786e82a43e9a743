"""Embeddings in both dialects, and the addresses of Azure."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from sim_wire import FIXTURES, PROMPT, endpoints, sim

from llmbatch.sim.answers import expected_answer, expected_vector, prompt_hash


async def test_vectors_have_length_one_and_name_their_text():
    body = json.loads((FIXTURES / "oai_embed_request.json").read_bytes())
    async with sim() as client:
        _, _, data = await client.post("/v1/embeddings", body)
        ledger = client.server.ledger
    answer = json.loads(data)
    assert (answer["object"], answer["model"]) == ("list", "text-embedding-3-small")
    assert [item["index"] for item in answer["data"]] == [0, 1]
    vectors = [item["embedding"] for item in answer["data"]]
    assert vectors == [expected_vector("red apple", 4), expected_vector("green pear", 4)]
    assert all(math.hypot(*vector) == pytest.approx(1) for vector in vectors)
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert ledger.billed_by_prompt == {prompt_hash("red apple\ngreen pear"): 1}


async def test_base64_is_little_endian_floats():
    async with sim() as client:
        body = {"model": "m", "input": "red apple", "encoding_format": "base64"}
        _, _, data = await client.post("/v1/embeddings", body)
    [item] = json.loads(data)["data"]
    assert struct.unpack("<8f", base64.b64decode(item["embedding"])) == pytest.approx(expected_vector("red apple", 8))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": "a" * 4 * 8193}, "input", "invalid_value"),
        ({"input": [[1] * 8000] * 38}, "input", "max_tokens_per_request"),
        ({"input": [{}]}, "input[0]", "invalid_type"),
        ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
async def test_openai_refusals(fields: dict[str, Any], param: str, code: str):
    async with sim() as client:
        status, _, data = await client.post("/v1/embeddings", {"model": "m", "input": "a", **fields})
    error = json.loads(data)["error"]
    assert (status, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize(("given", "tokens"), [([1, 2, 3], 3), ([[1, 2], [3]], 3)])
async def test_token_ids_are_embedded(given: Any, tokens: int):
    async with sim() as client:
        status, _, data = await client.post("/v1/embeddings", {"model": "m", "input": given})
    assert (status, json.loads(data)["usage"]["prompt_tokens"]) == (200, tokens)


def wanted(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "models/m", "content": {"parts": [{"text": text}]}, **more}


@pytest.mark.parametrize("version", ["v1", "v1beta"])
async def test_gemini_embeds_one_and_many(version: str):
    async with sim() as client:
        root = f"/{version}/models/m"
        _, _, one = await client.post(f"{root}:embedContent", wanted("a", outputDimensionality=3))
        _, _, many = await client.post(f"{root}:batchEmbedContents", {"requests": [wanted("a"), wanted("b")]})
    assert json.loads(one) == {"embedding": {"values": expected_vector("a", 3)}}
    assert [item["values"] for item in json.loads(many)["embeddings"]] == [
        expected_vector("a", 8),
        expected_vector("b", 8),
    ]


@pytest.mark.parametrize(
    ("method", "body", "says"),
    [
        ("batchEmbedContents", {"requests": []}, "at most 100"),
        ("batchEmbedContents", {"requests": [wanted("a")] * 101}, "at most 100"),
        ("batchEmbedContents", {"requests": [{"content": {"parts": [{"text": "a"}]}}]}, "model"),
        ("batchEmbedContents", {"requests": [{**wanted("a"), "model": "models/other"}]}, "models/other"),
        ("embedContent", {"input": "a"}, "content"),
        ("embedContent", wanted("a", taskType="GUESS"), "GUESS"),
        ("embedContent", wanted(""), "not be empty"),
    ],
)
async def test_gemini_refusals(method: str, body: Any, says: str):
    async with sim() as client:
        status, _, data = await client.post(f"/v1beta/models/m:{method}", body)
    error = json.loads(data)["error"]
    assert (status, error["status"]) == (400, "INVALID_ARGUMENT")
    assert says in error["message"]


@pytest.mark.parametrize("fault", ["429", "error200", "garbage-json", "empty", "html"])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/embeddings", {"model": "m", "input": "a"}), ("/v1/models/m:embedContent", wanted("a"))]
)
async def test_faults_strike_embeddings(fault: str, path: str, body: Any):
    async with sim(fault=f"{fault}=1") as client:
        status, _, data = await client.post(path, body)
        assert client.server.ledger.faults == {fault: 1}
    assert status == (429 if fault == "429" else 200)
    assert (b'"error"' in data) == (fault in ("429", "error200"))


async def test_a_gemini_stream_that_is_not_asked_for_as_events_is_an_array():
    async with sim() as client:
        _, headers, data = await client.post(
            "/v1/models/m:streamGenerateContent", {"contents": [{"parts": [{"text": PROMPT}]}]}
        )
    [body] = json.loads(data)
    assert headers["content-type"] == "application/json; charset=UTF-8"
    assert body["candidates"][0]["content"]["parts"][0]["text"] == expected_answer(PROMPT)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/openai/deployments/mine/chat/completions?api-version=2024-10-21", 200),
        ("/openai/deployments/mine/chat/completions?api-version=2025-04-01-preview", 200),
        ("/openai/deployments/mine/chat/completions", 404),
        ("/openai/deployments/mine/chat/completions?api-version=latest", 404),
    ],
)
async def test_azure_demands_its_version_and_takes_the_model_from_the_path(path: str, status: int):
    body = {"messages": endpoints()["openai-chat"].body["messages"]}
    async with sim() as client:
        got, _, data = await client.post(path, body, {"api-key": "k"})
    answer = json.loads(data)
    assert got == status
    if status == 200:
        assert answer["model"] == "mine"
        assert answer["prompt_filter_results"][0]["content_filter_results"]["hate"] == {
            "filtered": False,
            "severity": "safe",
        }
    else:
        assert "api-version" in answer["error"]["message"]


async def test_azure_embeds_and_responds():
    async with sim() as client:
        version = "api-version=2024-10-21"
        embedded = await client.post(f"/openai/deployments/e/embeddings?{version}", {"input": "a"})
        responded = await client.post(f"/openai/responses?{version}", {"model": "m", "input": "a"})
        first = await client.post("/openai/v1/embeddings", {"model": "e", "input": "a"})
    assert [status for status, _, _ in (embedded, responded, first)] == [200, 200, 200]


async def test_azure_filters_and_says_why():
    async with sim(fault="400=1") as client:
        _, _, body = await client.ask(endpoints()["azure-chat"])
    inner = body["error"]["innererror"]
    assert inner["code"] == "ResponsibleAIPolicyViolation"
    assert inner["content_filter_result"]["violence"]["filtered"] is True


async def test_first_chunk_of_an_azure_stream_has_no_choices():
    async with sim() as client:
        data = await client.raw_stream(endpoints()["azure-chat"])
    first = json.loads(data.split(b"\n\n")[0].removeprefix(b"data: "))
    assert first["choices"] == [] and first["prompt_filter_results"]


@pytest.mark.parametrize("name", ["openai-chat", "openai-responses", "anthropic", "gemini"])
async def test_images_are_counted_and_mentioned(name: str):
    data = "data:image/png;base64,AAAA"
    inline = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    shown: dict[str, dict[str, Any]] = {
        "openai-chat": {
            "messages": _said({"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": data}})
        },
        "openai-responses": {
            "input": _said({"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": data})
        },
        "anthropic": {"messages": _said({"type": "text", "text": "a"}, {"type": "image", "source": source})},
        "gemini": {"contents": [{"role": "user", "parts": [{"text": "a"}, inline]}]},
    }
    async with sim() as client:
        status, _, body = await client.ask(endpoints()[name], **shown[name])
        ledger = client.server.ledger
    assert (status, f"{prompt_hash('a')} a [1 image]" in json.dumps(body)) == (200, True)
    assert ledger.billed_prompt_tokens == 86


def _said(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]
