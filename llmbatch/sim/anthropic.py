"""What all Anthropic endpoints have in common: keys, versions, headers, the error object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from llmbatch.sim.fields import Field
from llmbatch.sim.http11 import Headers
from llmbatch.sim.limits import Reading, Refusal
from llmbatch.sim.openai import bearer
from llmbatch.sim.problems import ApiError

VERSIONS = ("2023-06-01", "2026-10-21")
INVALID = "invalid_request_error"
_UNITS = ("requests", "tokens", "input-tokens", "output-tokens")


def problem(status: int, type: str, message: str, error_code: str | None = None) -> ApiError:
    """An error with Anthropic's error object."""
    error: dict[str, Any] = {"type": type, "message": message}
    if error_code:
        error["details"] = {"error_code": error_code}
    return ApiError(status, {"type": "error", "error": error, "request_id": None})


def invalid(message: str) -> ApiError:
    return problem(400, INVALID, message)


class AnthropicWords:
    """What Anthropic says of a field that is wrong."""

    def missing(self, name: str) -> ApiError:
        return invalid(f"{name}: Field required")

    def unknown(self, name: str) -> ApiError:
        return invalid(f"{name}: Extra inputs are not permitted")

    def wrong_type(self, name: str, wanted: str, value: Any) -> ApiError:
        return invalid(f"{name}: Input should be {wanted}")

    def out_of_range(self, name: str, field: Field, value: float) -> ApiError:
        if value < field.low:
            return invalid(f"{name}: Input should be greater than or equal to {field.low:g}")
        return invalid(f"{name}: Input should be less than or equal to {field.high:g}")

    def not_a_choice(self, name: str, field: Field, value: str) -> ApiError:
        return invalid(f"{name}: Input should be {' or '.join(repr(choice) for choice in field.choices)}")


WORDS = AnthropicWords()


class Anthropic:
    """Anthropic API reference, "Errors", "Rate limits" and "Versions"."""

    content_type = "application/json"
    errors: Mapping[str, ApiError] = {
        "429": problem(429, "rate_limit_error", "This request would exceed your organization's rate limit."),
        "500": problem(500, "api_error", "Internal server error"),
        "503": problem(503, "api_error", "Service unavailable"),
        "529": problem(529, "overloaded_error", "Overloaded"),
        "400": invalid("messages: invalid prompt"),
        "401": problem(401, "authentication_error", "invalid x-api-key"),
        "404": problem(404, "not_found_error", "model: simulated"),
        "quota": problem(429, "rate_limit_error", "Spend limit reached.", "enforced_spend_limit_reached"),
        "context": invalid("prompt is too long: 212345 tokens > 200000 maximum"),
    }

    def key(self, headers: Mapping[str, str]) -> str | None:
        return headers.get("x-api-key") or bearer(headers)

    def check_headers(self, headers: Mapping[str, str]) -> None:
        version = headers.get("anthropic-version")
        if version is None:
            raise invalid("anthropic-version: header is required")
        if version not in VERSIONS:
            raise invalid(f'anthropic-version: "{version}" is not a valid version')

    def bad_request(self, message: str) -> ApiError:
        return invalid(message)

    def no_such_url(self, status: int, message: str) -> ApiError:
        return problem(status, "not_found_error" if status == 404 else INVALID, message)

    def no_such_model(self, model: str) -> ApiError:
        return problem(404, "not_found_error", f"model: {model}")

    def rate_limited(self, model: str, refusal: Refusal) -> ApiError:
        what = f"{refusal.limit:g} {refusal.unit.replace('-', ' ')} per {'day' if refusal.daily else 'minute'}"
        error = problem(
            429, "rate_limit_error", f"This request would exceed your organization's rate limit of {what} ({model})."
        )
        error.wait_s = refusal.wait_s
        return error

    def id_headers(self, request_id: str) -> Headers:
        return [("request-id", request_id), ("anthropic-organization-id", "00000000-0000-0000-0000-000000000000")]

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        """Resets are RFC 3339 times, of a second."""
        headers: Headers = []
        for reading in readings:
            if reading.unit in _UNITS and not reading.daily:
                name = f"anthropic-ratelimit-{reading.unit}"
                headers += [
                    (f"{name}-limit", f"{reading.limit:.0f}"),
                    (f"{name}-remaining", str(reading.remaining)),
                    (f"{name}-reset", _rfc3339(math.ceil(time_s + reading.reset_s))),
                ]
        return headers

    def wait_headers(self, wait_s: float) -> Headers:
        return [("retry-after", f"{max(1, math.ceil(wait_s))}"), ("x-should-retry", "true")]

    def good_headers(self, busy_s: float) -> Headers:
        return []

    def models(self, names: Sequence[str]) -> bytes:
        models = [
            {"type": "model", "id": name, "display_name": name, "created_at": _rfc3339(0), "lifecycle": "active"}
            for name in names
        ]
        ends = {"first_id": names[0], "last_id": names[-1], "has_more": False}
        return orjson.dumps({"data": models, **ends})


ANTHROPIC = Anthropic()


def _rfc3339(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
