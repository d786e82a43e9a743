"""Google's error answers: what ``error.status`` and ``error.details`` say beyond the HTTP status.

Source: Gemini API guide, "Troubleshooting" and "Rate limits"; google.rpc ``error_details.proto`` (ErrorInfo, RetryInfo,
QuotaFailure); the official SDK's ``errors.py`` (a body may be a list of one).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from llmbatch.providers.answer import document_of
from llmbatch.providers.openai_errors import http_failure, parse_error, request_id
from llmbatch.records import Failure, Reply

# google/rpc/code.proto; what is not here says nothing of a request of ours.
_STATUS_OF_WORD = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# A protobuf Duration as JSON.
_DURATION = re.compile(r"([0-9]{1,10}(?:\.[0-9]{1,9})?)s", re.ASCII)
_TOO_LONG = re.compile(r"exceeds the maximum number of (?:input )?tokens|token count.{0,80}exceeds", re.I | re.S)
_COUNTRY = re.compile(r"location|country|countries|region|billing", re.I)
# A file of one row; PERMISSION_DENIED is also what Gemini says of a file that is not there.
_ONE_FILE = re.compile(r"\bfiles?\b[ /]", re.I)
_MODEL = re.compile(r"\b(?:models|tunedModels)/|\bmodel\b", re.I)


def unwrapped(body: bytes) -> bytes:
    """``body`` without the list of one in which Google sometimes puts an error."""
    stripped = body.strip()
    if stripped.startswith(b"[") and stripped.endswith(b"]") and parse_error(inner := stripped[1:-1]):
        return inner
    return body


def decoded(
    status: int, headers: Mapping[str, str], body: bytes, reply_of: Callable[[Any], Reply | Failure]
) -> Reply | Failure:
    """A whole answer of Gemini, whatever ``reply_of`` makes of a good document."""
    body = unwrapped(body)
    document = document_of(status, headers, body)
    if isinstance(document, Failure):
        return with_details(document, headers, body)
    reply = reply_of(document)
    if isinstance(reply, Failure):
        return replace(reply, http_status=status, request_id=request_id(headers))
    return reply


def gemini_failure(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """The Failure of a complete answer, or of an error in a stream, with ``status``."""
    body = unwrapped(body)
    return with_details(http_failure(status, headers, body), headers, body)


def status_in(error: Mapping[str, Any]) -> int | None:
    """The HTTP status that an error object names, by its ``code`` or its ``status``."""
    code, word = error.get("code"), error.get("status")
    if type(code) is int and 400 <= code < 600:
        return code
    return _STATUS_OF_WORD.get(word) if isinstance(word, str) else None


def with_details(failure: Failure, headers: Mapping[str, str], body: bytes) -> Failure:
    """``failure``, as the HTTP status alone has it, with what the error says. ``body`` is unwrapped."""
    error = parse_error(body)
    if failure.http_status == 200 and (status := status_in(error)) is not None:
        failure = http_failure(status, headers, body)
    delay_s = _retry_delay_s(error)
    if delay_s is not None and failure.retryable:
        failure = replace(failure, retry_after_s=max(delay_s, failure.retry_after_s or 0.0))
    word, reasons = error.get("status"), set(_reasons(error))
    if reasons & {"API_KEY_INVALID", "API_KEY_EXPIRED"}:
        return _hopeless(failure, "invalid_api_key")
    match failure.http_status:
        case 400:
            return _bad_request(failure, word)
        case 402:
            return _hopeless(failure, "insufficient_quota")
        case 403 if word == "PERMISSION_DENIED":
            return replace(failure, type="permission_denied", fatal=_ONE_FILE.search(failure.message) is None)
        case 404 if word == "NOT_FOUND" and _MODEL.search(failure.message):
            return replace(failure, type="model_not_found", fatal=True)
        case 429 if any("PerDay" in quota for quota in _quotas(error)):
            return _hopeless(failure, "daily_quota_exceeded")
        case 499:
            return replace(failure, kind="ambiguous", type="cancelled", retryable=True)
    return failure


def _bad_request(failure: Failure, word: Any) -> Failure:
    if _TOO_LONG.search(failure.message):
        return replace(failure, type="context_length_exceeded")
    if word == "FAILED_PRECONDITION" and _COUNTRY.search(failure.message):
        return _hopeless(failure, "country_not_supported")
    return failure


def _hopeless(failure: Failure, word: str) -> Failure:
    """No row will fare better. The delay that comes with a daily quota is not to be believed: it is some seconds."""
    return replace(
        failure,
        kind="permanent",
        type=word,
        retryable=False,
        fatal=True,
        rate_limited=False,
        retry_after_s=None,
    )


def _details(error: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and str(detail.get("@type")).endswith(f"google.rpc.{kind}"):
            yield detail


def _reasons(error: Mapping[str, Any]) -> Iterator[str]:
    for info in _details(error, "ErrorInfo"):
        if isinstance(reason := info.get("reason"), str):
            yield reason


def _quotas(error: Mapping[str, Any]) -> Iterator[str]:
    for failure in _details(error, "QuotaFailure"):
        violations = failure.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict):
                yield str(violation.get("quotaId"))


def _retry_delay_s(error: Mapping[str, Any]) -> float | None:
    """The longest wait that was asked for; zero and garbage are nothing said."""
    found = (_DURATION.fullmatch(str(info.get("retryDelay"))) for info in _details(error, "RetryInfo"))
    return max((float(match[1]) for match in found if match), default=0.0) or None
