"""What all dialects do first with a whole answer: is it HTTP 200 with one JSON document that is no error?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmbatch.providers.json_text import loads
from llmbatch.providers.openai_errors import error_fields, http_failure, parse_error, request_id, status_of
from llmbatch.records import Failure
from llmbatch.rules.nesting import MAX_NESTING, nests_too_deeply

# A byte order mark, and the blank and comment lines by which DeepSeek and OpenRouter keep a connection alive.
_PREFACE = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s|:[^\n]*\n)*+")


def document_of(status: int, headers: Mapping[str, str], body: bytes) -> Any | Failure:
    """The JSON of a good answer (of any shape, though mostly an object), or why it is none.

    An error inside HTTP 200 (OpenRouter and other gateways) counts as its own ``code``.
    """
    if status != 200:
        if 200 < status < 300 or status == 304:  # 304 answers a condition that was not set
            return unusable("no_content", f"HTTP {status} is no answer to a request for one", status, headers)
        return http_failure(status, headers, body)
    if not body.startswith(b"{"):
        body = _PREFACE.sub(b"", body, count=1)
    try:
        document = loads(body)
    except (ValueError, RecursionError):
        return _not_json(status, headers, body)
    if isinstance(document, dict) and (document.get("error") or document.get("object") == "error"):
        return _error_with_200(headers, body)
    if nests_too_deeply(document, body):
        return unusable("bad_answer", f"the answer nests deeper than {MAX_NESTING} levels", status, headers)
    return document


def bad_answer(message: str) -> Failure:
    """An answer with HTTP 200 that has another shape than its dialect's."""
    return Failure("unusable", "bad_answer", message, http_status=200, retryable=True)


def unusable(word: str, message: str, status: int, headers: Mapping[str, str]) -> Failure:
    """An answer that was probably billed, and is none."""
    return Failure(
        kind="unusable",
        type=word,
        message=message,
        http_status=status,
        retryable=True,
        request_id=request_id(headers),
    )


def _error_with_200(headers: Mapping[str, str], body: bytes) -> Failure:
    code, word, message = error_fields(parse_error(body))
    inner_status = status_of(code, word)
    if inner_status is not None:
        return http_failure(inner_status, headers, body)
    return unusable(code or word or "error_in_answer", message or "an error with HTTP 200", 200, headers)


def _not_json(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    if not body.strip():
        return unusable("empty_answer", "the answer is empty", status, headers)
    start = body[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return unusable("html_answer", "the answer is a web page, not JSON: is the base URL right?", status, headers)
    return unusable("bad_json", "the answer is not valid JSON, or was cut short", status, headers)
