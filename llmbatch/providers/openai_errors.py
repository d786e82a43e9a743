"""Error answers of OpenAI and of the servers that imitate it, as our Failure.

Shapes and codes: OpenAI API reference, "Error codes"; the official SDK's ``_base_client.py`` (which statuses
are retried, ``x-should-retry``); vLLM, Ollama, llama.cpp and OpenRouter documentation for the imitations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from llmbatch.records import Failure, FailureClass, Usage
from llmbatch.rules.headers import retry_after_s
from llmbatch.rules.reasons import excerpt

# Of what a server says of an error; the whole body is kept apart (rules/kept.py).
MESSAGE_KEPT_CHARS = 4096
# Codes and types are words; a server may send anything.
WORD_KEPT = 100

_STATUS_CODE = re.compile(r"[45][0-9]{2}")

NO_MONEY_CODES = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
        "billing_not_active",
    }
)

# status -> (class, retryable). Proxies answer 502, 504 and 520 to 524 when the origin may have done the work.
_STATUS: dict[int, tuple[FailureClass, bool]] = {
    408: ("ambiguous", True),
    409: ("rejected", True),
    424: ("rejected", True),  # TGI: the generation failed
    425: ("rejected", True),
    429: ("rejected", True),
    498: ("rejected", True),
    500: ("rejected", True),
    501: ("permanent", False),
    502: ("ambiguous", True),
    503: ("rejected", True),
    504: ("ambiguous", True),
    **dict.fromkeys(range(520, 525), ("ambiguous", True)),
    529: ("rejected", True),
}

_TYPE = {
    400: "bad_request",
    401: "invalid_api_key",
    402: "insufficient_quota",
    403: "permission_denied",
    404: "not_found",
    407: "proxy_login",
    408: "server_timeout",
    413: "request_too_large",
    422: "bad_request",
    429: "rate_limit_exceeded",
    502: "bad_gateway",
    503: "overloaded",
    504: "gateway_timeout",
    529: "overloaded",
}

# OpenAI and most, Anthropic, OpenRouter, Bedrock, Azure.
_REQUEST_IDS = (
    "x-request-id",
    "request-id",
    "x-generation-id",
    "x-amzn-requestid",
    "apim-request-id",
    "x-ms-request-id",
)

# What gateways say inside an answer that began with 200, where no status can say it any more.
_STATUS_WORDS = {
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "too_many_requests", "insufficient_quota"), 429),
    **dict.fromkeys(("invalid_api_key", "authentication_error"), 401),
    **dict.fromkeys(("overloaded_error", "server_overloaded", "service_unavailable"), 503),
}

_CONTEXT_PHRASES = (
    "maximum context length",
    "context length",
    "context window",
    "exceed_context_size",
    "max_new_tokens` must be",
    "input tokens exceed",
    "exceed model maximum",
    "available context size",
    "while limit is",
)
# OpenRouter, "Errors and Debugging", ``metadata.error_type``: what it says of trying again, whatever the status is.
_WORTH_ANOTHER_TRY = frozenset(
    {"rate_limit_exceeded", "provider_overloaded", "provider_unavailable", "server", "timeout"}
)
_FINAL = frozenset(
    {"context_length_exceeded", "max_tokens_exceeded", "token_limit_exceeded", "string_too_long", "invalid_request"}
    | {"invalid_prompt", "precondition_failed", "payload_too_large", "unprocessable", "content_policy_violation"}
    | {"refusal"}
)
# A 403 for what stands in the row (OpenRouter's moderation, gateways with guardrails) ...
_CONTENT = re.compile(
    r"moderat|flagged|content[ _-]?(?:policy|filter|management)|usage polic|safety|guardrail|harmful|inappropriate"
)
# ... and one that every row would meet. What says neither, or is a web page, may be a firewall's, of one text.
_NO_ENTRY = re.compile(
    r"(?<![a-z])(?:api)?keys?(?![a-z])|permi(?:ssion|tted)|not allowed|authenti|authori[sz]|credential|access|account"
    r"|organi[sz]ation|country|countries|region|territor|billing|subscription"
)
_MODEL_PHRASES = ("model_not_found", "does not exist", "try pulling it first")


def http_failure(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """The Failure of a complete HTTP answer whose status is not 2xx."""
    error = parse_error(body)
    code, kind_word, message = error_fields(error)
    text = message or _plain(body) or f"HTTP {status} without a message"
    if 300 <= status < 400:
        return _redirect(status, headers)
    kind, retryable = _class_of(status)
    failure = Failure(
        kind=kind,
        type=_type_of(status, code, kind_word, text),
        message=text,
        http_status=status,
        retry_after_s=retry_after_s(headers),
        retryable=retryable,
        rate_limited=status == 429,
        request_id=request_id(headers),
    )
    return _obey(_as_routed(_with_fatality(failure, code, kind_word), error), headers)


def request_id(headers: Mapping[str, str]) -> str | None:
    """The server's name for this request: the user's only proof in a billing dispute."""
    return next((value for name in _REQUEST_IDS if (value := headers.get(name))), None)


def parse_error(body: bytes) -> Mapping[str, Any]:
    """The error object of a body; empty if there is none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(document, dict):
        return {}
    error = document.get("error", document.get("detail", document))
    if isinstance(error, str):
        said = {"message": document.get("error_description") or error, "type": document.get("error_type")}
        return {name: value for name, value in said.items() if value}
    if isinstance(error, list):
        complaints = "; ".join(filter(None, map(_complaint, error)))
        return {"message": complaints} if complaints else {}
    return error if isinstance(error, dict) else {}


def error_fields(error: Mapping[str, Any]) -> tuple[str, str, str]:
    """``code``, ``type`` and ``message`` of an error object as text, empty where absent."""
    code, word, message = (error.get(name) for name in ("code", "type", "message"))
    return (
        str(code)[:WORD_KEPT] if isinstance(code, str | int | float) else "",
        word[:WORD_KEPT] if isinstance(word, str) else "",
        message[:MESSAGE_KEPT_CHARS] if isinstance(message, str) else "",
    )


def status_of(*words: str) -> int | None:
    """The HTTP status that an error's ``code`` or ``type`` names, as a number (vLLM, llama.cpp and OpenRouter) or in
    words; else None."""
    for word in words:
        if _STATUS_CODE.fullmatch(word):
            return int(word)
        if word in _STATUS_WORDS:
            return _STATUS_WORDS[word]
    return None


def broken_off(error: Any) -> Failure:
    """An error that came after a part of the answer, which may have been billed."""
    code, word, message = error_fields(error if isinstance(error, dict) else {"message": error})
    status = status_of(code, word)
    named = code or word or "stream_error" if status is None else _TYPE.get(status, f"http_{status}")
    return Failure("unusable", named, message or "an error in mid-answer", http_status=200, retryable=True)


def filtered(usage: Usage) -> Failure:
    """An answer of which the provider's filter left nothing; it is paid for."""
    message = "the provider's content filter left nothing of the answer"
    return Failure("permanent", "content_filter", message, http_status=200, usage=usage)


def broken_stream(error: Any, data: str, *, began: bool) -> Failure:
    """An error event in a stream, ``data``. Before any answer it counts as its own status; once the answer ``began``,
    that part may have been billed."""
    code, word, _ = error_fields(error if isinstance(error, dict) else {})
    status = status_of(code, word)
    if status is not None and not began:
        return http_failure(status, {}, data.encode("utf-8", "replace"))
    return broken_off(error)


def _complaint(item: Any) -> str:
    """One of FastAPI's: ``{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}``."""
    if not isinstance(item, dict) or not isinstance(item.get("msg"), str):
        return ""
    place = item.get("loc")
    where = ".".join(map(str, place)) if isinstance(place, list) else ""
    return f"{where}: {item['msg']}".removeprefix(": ")


def _class_of(status: int) -> tuple[FailureClass, bool]:
    if status in _STATUS:
        return _STATUS[status]
    if 500 <= status < 600:
        return "rejected", True
    if 400 <= status < 500:
        return "permanent", False
    return "ambiguous", True


def _type_of(status: int, code: str, word: str, message: str) -> str:
    lowered = message.lower()
    if code == "context_length_exceeded" or (
        status in (400, 413, 422) and any(phrase in lowered or phrase in word for phrase in _CONTEXT_PHRASES)
    ):
        return "context_length_exceeded"
    if status == 404 and any(phrase in lowered or phrase in code for phrase in _MODEL_PHRASES):
        return "model_not_found"
    if status == 413 and code == _TYPE[429]:
        return _TYPE[413]  # Groq: more than a whole minute's tokens in one request
    if code and not code.isdigit():
        return code
    if status == 403 and _CONTENT.search(f"{word} {lowered}"):
        return "content_filter"
    return _TYPE.get(status) or word or f"http_{status}"


def _with_fatality(failure: Failure, code: str, word: str) -> Failure:
    """Bad key, no money, unknown model: asking for other rows can not help either."""
    no_money = failure.http_status == 402 or word == "insufficient_quota" or code in NO_MONEY_CODES
    if no_money:
        temporary = failure.http_status == 402 and failure.retry_after_s is not None  # OpenRouter's in-flight budget
        if temporary:
            return replace(failure, kind="rejected", type=_TYPE[429], retryable=True, rate_limited=True)
        named = failure.type if failure.type in NO_MONEY_CODES else _TYPE[402]
        return replace(failure, kind="permanent", type=named, retryable=False, rate_limited=False, fatal=True)
    if failure.http_status == 403 and failure.type != "model_not_found":
        return replace(failure, fatal=_locks_out(f"{code} {word} {failure.message}".lower()))
    if failure.http_status in (401, 404, 407) or failure.type == "model_not_found":
        return replace(failure, fatal=True)
    return failure


def _locks_out(said: str) -> bool:
    """Whether a 403 that says this would meet every row."""
    return _CONTENT.search(said) is None and _NO_ENTRY.search(said) is not None and not said.lstrip().startswith("<")


def _as_routed(failure: Failure, error: Mapping[str, Any]) -> Failure:
    """What OpenRouter makes of its upstream's error, which may have another status."""
    metadata = error.get("metadata")
    word = metadata.get("error_type") if isinstance(metadata, dict) else None
    if failure.fatal or not isinstance(word, str):
        return failure
    if word in _WORTH_ANOTHER_TRY and not failure.retryable:
        return replace(failure, kind="rejected", type=word, retryable=True, rate_limited=word == _TYPE[429])
    if word in _FINAL and failure.retryable:
        return replace(failure, kind="permanent", type=word, retryable=False, rate_limited=False)
    return failure


def _obey(failure: Failure, headers: Mapping[str, str]) -> Failure:
    """``x-should-retry`` is the server's own word on it (OpenAI, Anthropic, Groq, Together)."""
    word = headers.get("x-should-retry", "").strip().lower()
    if failure.fatal or word not in ("true", "false"):
        return failure
    return replace(failure, retryable=word == "true")


def _redirect(status: int, headers: Mapping[str, str]) -> Failure:
    """A redirect is never followed: keys and prompts would go to a host nobody named."""
    target = excerpt(headers.get("location", "nowhere"), 200)
    return Failure(
        kind="permanent",
        type="redirect_refused",
        message=f"the server redirects to {target}; redirects are not followed, use --base-url with that address",
        http_status=status,
        fatal=True,
        request_id=request_id(headers),
    )


def _plain(body: bytes) -> str | None:
    text = body[:MESSAGE_KEPT_CHARS].decode("utf-8", "replace").strip()
    return text or None
