"""What the simulated API accepts and says, without a server."""

import itertools
import json
from typing import Any

import orjson
import pytest

from llmbatch.sim.answer import answer_to
from llmbatch.sim.answers import count_tokens, expected_answer, prompt_hash
from llmbatch.sim.ask import Ask
from llmbatch.sim.chat_answer import ChatStream, completion_body
from llmbatch.sim.chat_request import parse_chat
from llmbatch.sim.problems import ApiError
from llmbatch.sim.replies import stream_steps

USER = {"role": "user", "content": "The parcel came late."}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}


def chat(**fields: Any) -> Ask:
    return parse_chat(orjson.dumps({"model": "m", "messages": [USER], **fields}))


def test_documented_request_is_accepted():
    request = chat(
        messages=[{"role": "system", "content": "Classify the sentiment. One word."}, USER],
        max_completion_tokens=64,
        reasoning_effort="low",
        seed=11,
        service_tier="flex",
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "string"}}},
        temperature=None,
    )
    assert request == Ask("m", "The parcel came late.", 15, 64, reasoning_tokens=16, schema={"type": "string"})


def test_prompt_is_the_last_user_message():
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}],
    }
    answer = {"role": "assistant", "content": None, "tool_calls": []}
    request = chat(messages=[USER, parts, answer])
    assert (request.prompt, request.images, request.prompt_tokens) == ("ab", 1, 6 + 1 + 85)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", None, None),
        (b'"text"', None, None),
        (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', None, None),
        ({"messages": [USER]}, "missing_required_parameter", "model"),
        ({"model": "m"}, "missing_required_parameter", "messages"),
        ({"model": None, "messages": [USER]}, "invalid_type", "model"),
        ({"model": "m", "messages": "hi"}, "invalid_type", "messages"),
        ({"model": "m", "messages": []}, "empty_array", "messages"),
        ({"model": "m", "messages": ["hi"]}, "invalid_type", "messages[0]"),
        ({"model": "m", "messages": [{"content": "hi"}]}, "missing_required_parameter", "messages[0].role"),
        ({"model": "m", "messages": [{"role": "boss", "content": "hi"}]}, "invalid_value", "messages[0].role"),
        ({"model": "m", "messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"model": "m", "messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": "100"}, "invalid_type", "max_tokens"),
        ({"max_tokens": True}, "invalid_type", "max_tokens"),
        ({"max_completion_tokens": 0}, "integer_below_min_value", "max_completion_tokens"),
        ({"temperature": 2.5}, "decimal_above_max_value", "temperature"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"max_token": 5}, "unknown_parameter", "max_token"),
    ],
)
def test_wrong_request_gets_the_documented_error(body: Any, code: str | None, param: str | None):
    if isinstance(body, dict):
        body = orjson.dumps(
            body if "messages" in body or "model" in body else {"model": "m", "messages": [USER], **body}
        )
    with pytest.raises(ApiError) as refused:
        parse_chat(body)
    error = json.loads(refused.value.body("req_1"))["error"]
    assert refused.value.status == 400
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert error["message"]


def test_answer_names_its_prompt():
    assert (
        expected_answer(" The  parcel\ncame ") == f"{prompt_hash(' The  parcel' + chr(10) + 'came ')} The parcel came"
    )
    assert expected_answer("a") != expected_answer("b")


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 100])
def test_answer_has_the_length_asked_for(tokens: int):
    text = expected_answer("The parcel came late.", tokens)
    assert count_tokens(text) == tokens
    assert len(text) == 4 * tokens


def test_completion_has_the_documented_shape():
    answer = answer_to(chat(n=2), 1, 1795219200, None)
    body = json.loads(completion_body(answer))
    text = expected_answer(USER["content"])
    assert body["object"] == "chat.completion"
    assert (body["id"], body["created"], body["model"]) == ("chatcmpl-sim00000001", 1795219200, "m")
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": [],
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (6, 2 * count_tokens(text))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_answer_is_cut_at_the_maximum(field: str):
    answer = answer_to(chat(**{field: 3}), 1, 0, None)
    body = json.loads(completion_body(answer))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["content"] == expected_answer(USER["content"])[:12]
    assert body["usage"]["completion_tokens"] == 3


def test_answer_that_just_fits_is_not_cut():
    answer = answer_to(chat(max_tokens=4), 1, 0, 4)
    assert (answer.cut, answer.tokens) == (False, 4)


@pytest.mark.parametrize(
    ("tokens", "first_s", "total_s"),
    [(1, 0.0, 0.0), (1, 0.2, 3.0), (7, 0.0, 0.0), (7, 0.1, 0.11), (50, 0.2, 1.2), (5000, 1, 3)],
)
def test_stream_sends_every_token_once_in_time(tokens: int, first_s: float, total_s: float):
    steps = list(stream_steps(tokens, first_s, total_s))
    assert [token for _, start, stop in steps for token in range(start, stop)] == list(range(tokens))
    times = [at_s for at_s, _, _ in steps]
    assert times[0] == first_s and times == sorted(times)
    assert times[-1] == pytest.approx(total_s if len(steps) > 1 else first_s)
    assert all(start < stop for _, start, stop in steps)


@pytest.mark.parametrize("include_usage", [True, False])
def test_stream_has_the_documented_order(include_usage: bool):
    answer = answer_to(chat(stream=True, stream_options={"include_usage": include_usage}), 1, 0, None)
    events = ChatStream(answer)
    lines = b"".join(
        itertools.chain(events.begin(), events.content(0, 3), events.content(3, answer.tokens), events.finish())
    )
    *data, done, rest = lines.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in data]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    if include_usage:
        last = chunks.pop()
        assert last["choices"] == [] and last["usage"] == json.loads(completion_body(answer))["usage"]
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert not any("usage" in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == answer.text
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
