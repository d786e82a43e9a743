"""What Google's error details add to the status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from llmbatch.providers.gemini_errors import gemini_failure, unwrapped

RPC = "type.googleapis.com/google.rpc."


def failure_of(status: int, word: str, message: str = "m", *details: Any, **headers: str) -> Any:
    body = json.dumps({"error": {"code": status, "status": word, "message": message, "details": list(details)}})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return gemini_failure(status, CIMultiDict(named), body.encode())


def retry_info(delay: Any) -> dict[str, Any]:
    return {"@type": RPC + "RetryInfo", "retryDelay": delay}


def quota(*ids: Any) -> dict[str, Any]:
    return {"@type": RPC + "QuotaFailure", "violations": [{"quotaId": one} for one in ids]}


@pytest.mark.parametrize(
    ("delay", "header", "seconds"),
    [
        ("26s", None, 26.0),
        ("26.4s", None, 26.4),
        ("0.000000001s", None, 1e-9),
        ("5s", "9", 9.0),
        ("9s", "5", 9.0),
        ("0s", "5", 5.0),
        ("0s", None, None),
        ("-3s", None, None),
        ("1e9s", None, None),
        ("26", None, None),
        ("99999999999s", None, None),
        ({"seconds": 3}, None, None),
    ],
)
def test_the_delay_stands_in_the_body(delay: Any, header: str | None, seconds: float | None) -> None:
    headers = {"retry_after": header} if header else {}
    assert failure_of(429, "RESOURCE_EXHAUSTED", "m", retry_info(delay), **headers).retry_after_s == seconds


@pytest.mark.parametrize(
    ("ids", "fatal"),
    [
        (["GenerateRequestsPerMinutePerProjectPerModel"], False),
        (["GenerateContentInputTokensPerModelPerMinute", "GenerateRequestsPerDayPerProjectPerModel-FreeTier"], True),
        ([None, 7], False),
        ([], False),
    ],
)
def test_a_daily_quota_ends_the_run(ids: list[Any], fatal: bool) -> None:
    found = failure_of(429, "RESOURCE_EXHAUSTED", "m", quota(*ids), retry_info("3s"))
    assert (found.fatal, found.rate_limited, found.retryable) == (fatal, not fatal, not fatal)
    assert (found.kind, found.type, found.retry_after_s) == (
        ("permanent", "daily_quota_exceeded", None) if fatal else ("rejected", "rate_limit_exceeded", 3.0)
    )


@pytest.mark.parametrize(
    ("status", "word", "message", "named", "fatal"),
    [
        (400, "INVALID_ARGUMENT", "Unknown name", "bad_request", False),
        (400, "INVALID_ARGUMENT", "input token count (9) exceeds the maximum", "context_length_exceeded", False),
        (
            400,
            "FAILED_PRECONDITION",
            "Gemini API free tier is not available in your country. Please enable billing.",
            "country_not_supported",
            True,
        ),
        (400, "FAILED_PRECONDITION", "The File a is not in an ACTIVE state", "bad_request", False),
        (401, "UNAUTHENTICATED", "Invalid authentication credentials", "invalid_api_key", True),
        (403, "PERMISSION_DENIED", "Your API key was reported as leaked.", "permission_denied", True),
        (403, "PERMISSION_DENIED", "Blocked for safety reasons of the project", "permission_denied", True),
        (403, "PERMISSION_DENIED", "You do not have permission to access the File a", "permission_denied", False),
        (404, "NOT_FOUND", "models/a is not found for API version v1beta", "model_not_found", True),
        (404, "NOT_FOUND", "Requested entity was not found.", "not_found", True),
    ],
)
def test_permanent_errors(status: int, word: str, message: str, named: str, fatal: bool) -> None:
    found = failure_of(status, word, message)
    assert (found.kind, found.type, found.fatal, found.retryable) == ("permanent", named, fatal, False)
    assert found.message == message


@pytest.mark.parametrize("reason", ["API_KEY_INVALID", "API_KEY_EXPIRED"])
def test_a_bad_key_comes_with_400(reason: str) -> None:
    found = failure_of(400, "INVALID_ARGUMENT", "API key not valid.", {"@type": RPC + "ErrorInfo", "reason": reason})
    assert (found.type, found.fatal, found.http_status) == ("invalid_api_key", True, 400)


@pytest.mark.parametrize(
    "details", [None, 7, {}, [None], [{"@type": 7}], [{"@type": RPC + "QuotaFailure", "violations": 7}]]
)
def test_garbage_in_details_says_nothing(details: Any) -> None:
    body = json.dumps({"error": {"code": 429, "message": "m", "details": details}}).encode()
    assert gemini_failure(429, CIMultiDict(), body).type == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("body", "inner"),
    [
        (b'[{"error": {"code": 503}}]', b'{"error": {"code": 503}}'),
        (b' [\n{"error": {"code": 503}}\n]\n', b'\n{"error": {"code": 503}}\n'),
        (b'{"error": {}}', b'{"error": {}}'),
        (b"[]", b"[]"),
        (b"[1, 2]", b"[1, 2]"),
        (b'[{"error": 1}, {"error": 2}]', b'[{"error": 1}, {"error": 2}]'),
        (b"", b""),
    ],
)
def test_a_list_of_one(body: bytes, inner: bytes) -> None:
    assert unwrapped(body) == inner
