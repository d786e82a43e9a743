"""What error answers of Anthropic's mean beyond their status: the corners that the fixtures leave."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from llmbatch.providers.anthropic import Anthropic
from llmbatch.records import Failure

MESSAGES = Anthropic()


def failure(
    status: int, word: str = "x", message: str = "m", code: Any = None, body_id: Any = None, **headers: str
) -> Failure:
    error = {"type": word, "message": message, "details": {"error_code": code}}
    raw = json.dumps({"type": "error", "error": error, "request_id": body_id}).encode()
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    found = MESSAGES.decode(status, named, raw)
    assert isinstance(found, Failure)
    return found


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (failure(429, "rate_limit_error", code="enforced_spend_limit_reached"), "insufficient_quota"),
        (failure(429, "rate_limit_error", code="contract_spend_limit_reached", retry_after="5"), "insufficient_quota"),
        (failure(429, code="enforced_spend_limit_reached", x_should_retry="true"), "insufficient_quota"),
        (failure(402, "billing_error"), "insufficient_quota"),
        (failure(402, "billing_error", retry_after="5"), "insufficient_quota"),
        (failure(402, code="linked_organization_suspended"), "insufficient_quota"),
        (failure(400, message="You have reached your specified API usage limits."), "insufficient_quota"),
        (failure(400, message="Your credit balance is too low to access the API."), "insufficient_quota"),
        (failure(400, code="organization_on_hold"), "organization_on_hold"),
    ],
)
def test_what_every_row_would_meet_until_somebody_pays_stops_the_run(found: Failure, word: str) -> None:
    assert (found.kind, found.type, found.fatal) == ("permanent", word, True)
    assert not found.retryable and not found.rate_limited


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (failure(429, "rate_limit_error", retry_after="7"), "rate_limit_exceeded"),
        (failure(429, "rate_limit_error", code="ramp_limit_exceeded", retry_after="7"), "ramp_limit_exceeded"),
        (failure(429, "rate_limit_error", code="of_tomorrow", retry_after="7"), "of_tomorrow"),
        (
            failure(429, message="You have reached your specified API usage limits.", retry_after="7"),
            "rate_limit_exceeded",
        ),
    ],
)
def test_a_rate_limit_is_waited_for(found: Failure, word: str) -> None:
    assert (found.kind, found.type, found.fatal) == ("rejected", word, False)
    assert found.retryable and found.rate_limited and found.retry_after_s == 7


@pytest.mark.parametrize(
    ("status", "message", "word"),
    [
        (400, "prompt is too long: 5 tokens > 4 maximum", "context_length_exceeded"),
        (400, "input length and `max_tokens` exceed context limit: 5 + 4 > 8", "context_length_exceeded"),
        (413, "Prompt is too long", "context_length_exceeded"),
        (400, "messages: at least one message is required", "bad_request"),
        (500, "prompt is too long", "x"),
    ],
)
def test_a_prompt_that_is_too_long(status: int, message: str, word: str) -> None:
    assert failure(status, message=message).type == word


@pytest.mark.parametrize(
    ("word", "message", "expected"),
    [
        ("not_found_error", "model: claude-nope", "model_not_found"),
        ("not_found_error", "File not found: file_1", "not_found"),
        ("", "Not Found", "not_found"),
    ],
)
def test_what_is_not_found(word: str, message: str, expected: str) -> None:
    assert failure(404, word, message).type == expected


def test_a_body_that_came_too_slowly_is_sent_again() -> None:
    found = failure(400, "invalid_request_error", code="request_body_timeout")
    assert (found.kind, found.retryable, found.fatal) == ("rejected", True, False)


@pytest.mark.parametrize(
    ("headers", "body_id", "expected"),
    [
        ({"request_id": "req_h"}, "req_b", "req_h"),
        ({}, "req_b", "req_b"),
        ({}, None, None),
        ({}, 5, None),
        ({}, "x" * 999, "x" * 100),
    ],
)
def test_the_request_id_stands_in_the_header_or_in_the_body(headers: Any, body_id: Any, expected: Any) -> None:
    assert failure(500, "api_error", body_id=body_id, **headers).request_id == expected


@pytest.mark.parametrize(
    ("word", "status", "kind"),
    [
        ("api_error", 500, "rejected"),
        ("overloaded_error", 529, "rejected"),
        ("invalid_request_error", 400, "permanent"),
        ("of_tomorrow", 200, "unusable"),
    ],
)
def test_an_error_inside_200_counts_as_the_status_of_its_type(word: str, status: int, kind: str) -> None:
    found = failure(200, word)
    assert (found.http_status, found.kind) == (status, kind)


@pytest.mark.parametrize("details", [None, "x", [1], {"error_code": 5}, {}])
def test_details_may_be_garbage(details: Any) -> None:
    raw = json.dumps({"type": "error", "error": {"type": "api_error", "message": "m", "details": details}}).encode()
    found = MESSAGES.decode(500, CIMultiDict(), raw)
    assert isinstance(found, Failure) and found.type == "api_error"
