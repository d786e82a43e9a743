"""What an error answer means for its row and for all others, whoever sent it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from llmbatch.providers.openai_errors import (
    MESSAGE_KEPT_CHARS,
    WORD_KEPT,
    broken_off,
    broken_stream,
    error_fields,
    http_failure,
    parse_error,
    request_id,
    status_of,
)
from llmbatch.records import Failure

NONE: CIMultiDict[str] = CIMultiDict()


def failure(status: int, error: Any = None, **headers: str) -> Failure:
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return http_failure(status, named, b"" if error is None else json.dumps({"error": error}).encode())


@pytest.mark.parametrize(
    ("status", "kind", "word", "retryable"),
    [
        (299, "ambiguous", "http_299", True),
        (300, "permanent", "redirect_refused", False),
        (399, "permanent", "redirect_refused", False),
        (407, "permanent", "proxy_login", False),
        (408, "ambiguous", "server_timeout", True),
        (413, "permanent", "request_too_large", False),
        (424, "rejected", "http_424", True),
        (498, "rejected", "http_498", True),
        (499, "permanent", "http_499", False),
        (500, "rejected", "http_500", True),
        (502, "ambiguous", "bad_gateway", True),
        (503, "rejected", "overloaded", True),
        (504, "ambiguous", "gateway_timeout", True),
        (510, "rejected", "http_510", True),
        (519, "rejected", "http_519", True),
        (520, "ambiguous", "http_520", True),
        (524, "ambiguous", "http_524", True),
        (525, "rejected", "http_525", True),
        (529, "rejected", "overloaded", True),
        (599, "rejected", "http_599", True),
        (600, "ambiguous", "http_600", True),
    ],
)
def test_a_status_alone(status: int, kind: str, word: str, retryable: bool) -> None:
    found = failure(status)
    assert (found.kind, found.type, found.retryable, found.http_status) == (kind, word, retryable, status)


@pytest.mark.parametrize(
    ("status", "error", "word"),
    [
        (400, {"code": "context_length_exceeded"}, "context_length_exceeded"),
        (500, {"code": "context_length_exceeded"}, "context_length_exceeded"),
        (400, {"message": "This model's maximum context length is 8192"}, "context_length_exceeded"),
        (413, {"message": "This model's maximum context length is 8192"}, "context_length_exceeded"),
        (422, {"message": "m", "type": "exceed_context_size_error"}, "context_length_exceeded"),
        (503, {"message": "The context window of the pool is gone"}, "overloaded"),
        (404, {"message": "m", "code": "model_not_found"}, "model_not_found"),
        (400, {"message": "The model does not exist"}, "bad_request"),
        (400, {"message": "Input tokens exceed the configured limit of 272000 tokens."}, "context_length_exceeded"),
        (400, {"message": "Current length is 9000 while limit is 8192"}, "context_length_exceeded"),
        (413, {"message": "TPM: Limit 6000", "code": "rate_limit_exceeded"}, "request_too_large"),
        (429, {"message": "m", "code": "slow_down"}, "slow_down"),
        (400, {"message": "m", "code": "unsupported_parameter"}, "unsupported_parameter"),
        (418, {"message": "m", "type": "teapot"}, "teapot"),
        (400, {"message": "m", "type": "teapot"}, "bad_request"),
        (400, {"message": "m", "code": "17"}, "bad_request"),
    ],
)
def test_a_row_is_told_what_is_wrong_with_it(status: int, error: dict[str, str], word: str) -> None:
    assert failure(status, error).type == word


def test_an_unknown_model_stops_the_run_also_where_access_is_said_to_be_missing() -> None:
    found = failure(403, {"message": "flagged", "code": "model_not_found"})
    assert (found.type, found.fatal) == ("model_not_found", True)


@pytest.mark.parametrize(
    ("status", "error", "word"),
    [
        (402, None, "insufficient_quota"),
        (402, {"message": "m", "code": "billing_not_active"}, "billing_not_active"),
        (429, {"message": "m", "type": "insufficient_quota"}, "insufficient_quota"),
        (429, {"message": "m", "code": "credit_balance_exhausted"}, "credit_balance_exhausted"),
        (400, {"message": "m", "code": "billing_hard_limit_reached"}, "billing_hard_limit_reached"),
    ],
)
def test_without_money_no_row_can_succeed_whatever_else_is_said(status: int, error: Any, word: str) -> None:
    headers = {} if status == 402 else {"retry_after": "3"}
    found = failure(status, error, x_should_retry="true", **headers)
    assert (found.kind, found.type, found.fatal) == ("permanent", word, True)
    assert (found.retryable, found.rate_limited) == (False, False)


def test_which_bare_statuses_every_row_would_meet() -> None:
    fatal = {status for status in range(201, 1000) if failure(status).fatal}
    assert fatal == {*range(300, 400), 401, 402, 404, 407}


def test_a_budget_for_what_is_in_flight_is_a_rate_limit() -> None:
    found = failure(402, {"message": "m", "code": "insufficient_quota"}, retry_after="3")
    assert (found.kind, found.type, found.retryable) == ("rejected", "rate_limit_exceeded", True)
    assert (found.rate_limited, found.fatal, found.retry_after_s) == (True, False, 3.0)


@pytest.mark.parametrize(("location", "shown"), [(None, "nowhere"), ("https://h/" + "x" * 191, "https://h/")])
def test_a_redirect_is_refused_with_the_way_out(location: str | None, shown: str) -> None:
    headers = {"x_request_id": "r1"} | ({} if location is None else {"location": location})
    if location is not None:
        shown = location[:199] + "…"
    assert failure(308, **headers) == Failure(
        "permanent",
        "redirect_refused",
        f"the server redirects to {shown}; redirects are not followed, use --base-url with that address",
        http_status=308,
        fatal=True,
        request_id="r1",
    )


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({}, None),
        ({"X-Request-Id": "a", "X-Generation-Id": "b", "Apim-Request-Id": "c"}, "a"),
        ({"X-Request-Id": "", "X-Generation-Id": "b", "Apim-Request-Id": "c"}, "b"),
        ({"Apim-Request-Id": "c"}, "c"),
        ({"Request-Id": "d"}, "d"),
        ({"X-Amzn-RequestId": "e"}, "e"),
        ({"X-Ms-Request-Id": "f"}, "f"),
    ],
)
def test_the_servers_name_for_a_request(headers: dict[str, str], name: str | None) -> None:
    assert request_id(CIMultiDict(headers)) == name
    assert http_failure(500, CIMultiDict(headers), b"").request_id == name


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("429",), 429),
        (("", "503"), 503),
        (("399",), None),
        (("600",), None),
        (("5030",), None),
        (("", "rate_limit_error"), 429),
        (("too_many_requests", ""), 429),
        (("insufficient_quota",), 429),
        (("", "authentication_error"), 401),
        (("", "overloaded_error"), 503),
        (("server_overloaded",), 503),
        (("service_unavailable",), 503),
        (("server_error", "odd"), None),
        ((), None),
    ],
)
def test_the_status_that_an_error_names(words: tuple[str, ...], status: int | None) -> None:
    assert status_of(*words) == status


@pytest.mark.parametrize(
    ("error", "word", "message"),
    [
        ({"message": "m", "type": "odd"}, "odd", "m"),
        ({"message": "m", "type": "odd", "code": "odder"}, "odder", "m"),
        ({"message": "m", "type": "overloaded_error"}, "overloaded", "m"),
        ({"code": 418}, "http_418", "an error in mid-answer"),
        ("it broke", "stream_error", "it broke"),
        (None, "stream_error", "an error in mid-answer"),
    ],
)
def test_an_error_after_a_part_of_the_answer(error: Any, word: str, message: str) -> None:
    assert broken_off(error) == Failure("unusable", word, message, http_status=200, retryable=True)


def test_what_a_server_says_is_bounded() -> None:
    said = {"code": "c" * 9999, "type": "t" * 9999, "message": "m" * 9999}
    assert error_fields(said) == ("c" * WORD_KEPT, "t" * WORD_KEPT, "m" * MESSAGE_KEPT_CHARS)
    assert failure(500).message == "HTTP 500 without a message"
    assert http_failure(500, NONE, b" \xffx" + b"y" * 9999).message == "�x" + "y" * (MESSAGE_KEPT_CHARS - 3)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error":{"a":1}}', {"a": 1}),
        (b'{"error":"m"}', {"message": "m"}),
        (b'{"message":"m"}', {"message": "m"}),
        (b'{"error":"m","error_type":"overloaded"}', {"message": "m", "type": "overloaded"}),
        (b'{"error":"invalid_grant","error_description":"m"}', {"message": "m"}),
        (b'{"detail":"m"}', {"message": "m"}),
        (b'{"detail":[{"loc":["body",0],"msg":"m"},{"msg":"n"},7,{"msg":8}]}', {"message": "body.0: m; n"}),
        (b'{"detail":[7]}', {}),
        (b'{"error":null}', {}),
        (b'{"error":[1]}', {}),
        (b"[1]", {}),
        (b"?", {}),
    ],
)
def test_where_the_error_stands(body: bytes, error: dict[str, Any]) -> None:
    assert parse_error(body) == error


@pytest.mark.parametrize(
    ("status", "word", "retryable"),
    [(500, " FALSE ", False), (400, "true", True), (429, "false", False), (500, "", True), (401, "true", False)],
)
def test_the_servers_word_on_retrying_counts_unless_no_row_can_succeed(status: int, word: str, retryable: bool) -> None:
    assert failure(status, x_should_retry=word).retryable is retryable


@pytest.mark.parametrize(
    ("status", "error_type", "kind", "word", "retryable", "rate_limited"),
    [
        (500, "context_length_exceeded", "permanent", "context_length_exceeded", False, False),
        (429, "content_policy_violation", "permanent", "content_policy_violation", False, False),
        (400, "rate_limit_exceeded", "rejected", "rate_limit_exceeded", True, True),
        (400, "provider_overloaded", "rejected", "provider_overloaded", True, False),
        (429, "rate_limit_exceeded", "rejected", "rate_limit_exceeded", True, True),
        (400, "invalid_request", "permanent", "bad_request", False, False),
        (502, "unmapped", "ambiguous", "bad_gateway", True, False),
        (502, ["refusal"], "ambiguous", "bad_gateway", True, False),
    ],
)
def test_what_a_router_says_of_its_upstream_counts_more_than_the_status(
    status: int, error_type: Any, kind: str, word: str, retryable: bool, rate_limited: bool
) -> None:
    found = failure(status, {"message": "m", "code": status, "metadata": {"error_type": error_type}})
    assert (found.kind, found.type, found.retryable) == (kind, word, retryable)
    assert found.rate_limited is rate_limited


@pytest.mark.parametrize(("began", "kind", "status"), [(False, "rejected", 429), (True, "unusable", 200)])
def test_an_error_in_a_stream_counts_as_its_status_until_the_answer_began(began: bool, kind: str, status: int) -> None:
    error = {"message": "m", "code": 429}
    found = broken_stream(error, json.dumps({"error": error}), began=began)
    assert (found.kind, found.http_status, found.message) == (kind, status, "m")
