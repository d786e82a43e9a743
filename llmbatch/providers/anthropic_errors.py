"""Error answers of Anthropic's, as our Failure: what they say beyond their status.

Sources: Anthropic, "Errors" and "Rate limits"; the official SDK 2.11 (``_exceptions.py``, ``_error_classes.py``), which
says to look at ``details.error_code`` and not at the message; some things stand only in the message all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from llmbatch.providers.openai_errors import WORD_KEPT, broken_off, error_fields, http_failure, parse_error
from llmbatch.records import Failure

# In a stream, and inside HTTP 200, the type is all there is.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

# Spent until the month ends (429), and accounts that were closed (402): no other row gets an answer either.
_NO_MONEY = re.compile(r"(?:enforced|contract)_spend_limit_reached|linked_organization_.*")
_ON_HOLD = "organization_on_hold"
# Limits that the user has set come as 400, without a code of their own.
_NO_MONEY_SAID = re.compile(r"reached your specified (?:workspace )?api usage limits|credit balance is too low")
_TOO_LONG_SAID = re.compile(r"prompt is too long|exceeds? (?:the )?context limit")
# The body came too slowly. Nothing was done, and it may come faster.
_SLOW_BODY = "request_body_timeout"


def understood(failure: Failure, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """``failure``, which is what every dialect makes of such an answer, with what this one's errors mean.

    An error inside HTTP 200 counts as the status of its type.
    """
    error = parse_error(body)
    _, word, message = error_fields(error)
    if status == 200:
        if word not in _STATUS:
            return failure
        failure = http_failure(_STATUS[word], headers, body)
    failure = replace(failure, request_id=failure.request_id or _request_id(body))
    return _classified(failure, word, _error_code(error), message.lower())


def stream_failure(event: Mapping[str, Any], data: str, *, begun: bool) -> Failure:
    """An ``error`` event. Before any part of the answer it counts as its own status; after it, that part may have been
    billed."""
    error = event.get("error")
    _, word, _ = error_fields(error if isinstance(error, dict) else {})
    body = data.encode("utf-8", "replace")
    if word in _STATUS and not begun:
        return understood(http_failure(_STATUS[word], {}, body), _STATUS[word], {}, body)
    return replace(broken_off(error), request_id=_request_id(body))


def _classified(failure: Failure, word: str, code: str, said: str) -> Failure:
    status = failure.http_status
    if _NO_MONEY.fullmatch(code) or word == "billing_error" or (status == 400 and _NO_MONEY_SAID.search(said)):
        return _ends_the_run(failure, "insufficient_quota")
    if code == _ON_HOLD:
        return _ends_the_run(failure, _ON_HOLD)
    if status in (400, 413) and _TOO_LONG_SAID.search(said):
        return replace(failure, type="context_length_exceeded")
    if status == 404 and word == "not_found_error" and "model" in said:
        return replace(failure, type="model_not_found")
    if code == _SLOW_BODY:
        return replace(failure, kind="rejected", type=code, retryable=True)
    return replace(failure, type=code) if code and failure.type != "context_length_exceeded" else failure


def _ends_the_run(failure: Failure, word: str) -> Failure:
    return replace(failure, kind="permanent", type=word, retryable=False, rate_limited=False, fatal=True)


def _error_code(error: Mapping[str, Any]) -> str:
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    return code[:WORD_KEPT] if isinstance(code, str) else ""


def _request_id(body: bytes) -> str | None:
    """What stands in the body too, for answers without their header."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    found = document.get("request_id") if isinstance(document, dict) else None
    return found[:WORD_KEPT] if isinstance(found, str) and found else None
