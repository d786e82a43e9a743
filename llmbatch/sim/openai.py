"""What all OpenAI endpoints have in common: headers, the error object, which models reason, strict schemas."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from llmbatch.sim.fields import Field, json_type
from llmbatch.sim.http11 import Headers
from llmbatch.sim.limits import Reading, Refusal, go_duration
from llmbatch.sim.problems import ApiError
from llmbatch.sim.schemas import ANYTHING, SchemaRules, complaint_about

INVALID = "invalid_request_error"

# The o-series, and gpt-5 and later.
_REASONING_MODEL = re.compile(r"(o\d|gpt-([5-9]|\d\d))(?![0-9])")
# gpt-5.6 and later report what they write into their cache.
_WRITES_CACHE = re.compile(r"gpt-(5\.([6-9]|\d\d)|[6-9]|\d\d)(?![0-9])")
# OpenAI guide "Structured outputs", supported schemas.
_STRICT = SchemaRules(
    refused=frozenset({"allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas"}),
    closed=True,
    all_required=True,
    object_root=True,
    lone_references=True,
)


def problem(
    status: int, message: str, type: str = INVALID, code: str | None = None, param: str | None = None
) -> ApiError:
    """An error with OpenAI's error object."""
    return ApiError(status, {"error": {"message": message, "type": type, "param": param, "code": code}})


class OpenAIWords:
    """What OpenAI says of a field that is wrong."""

    def missing(self, name: str) -> ApiError:
        return problem(400, f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)

    def unknown(self, name: str) -> ApiError:
        return problem(400, f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)

    def wrong_type(self, name: str, wanted: str, value: Any) -> ApiError:
        message = f"Invalid type for '{name}': expected {wanted}, but got {json_type(value)} instead."
        return problem(400, message, code="invalid_type", param=name)

    def out_of_range(self, name: str, field: Field, value: float) -> ApiError:
        kind = "integer" if isinstance(value, int) else "decimal"
        if value < field.low:
            bound, code = f">= {field.low:g}", f"{kind}_below_min_value"
        else:
            bound, code = f"<= {field.high:g}", f"{kind}_above_max_value"
        return self.invalid(name, f"expected a value {bound}, but got {value:g} instead.", code)

    def not_a_choice(self, name: str, field: Field, value: str) -> ApiError:
        return self.not_one_of(name, field.choices, value)

    def not_one_of(self, name: str, choices: Sequence[str], value: Any) -> ApiError:
        supported = ", ".join(f"'{choice}'" for choice in choices)
        message = f"Invalid value: '{value}'. Supported values are: {supported}."
        return problem(400, message, code="invalid_value", param=name)

    def invalid(self, name: str, why: str, code: str = "invalid_value") -> ApiError:
        return problem(400, f"Invalid '{name}': {why}", code=code, param=name)


WORDS = OpenAIWords()


class OpenAI:
    """OpenAI API reference, "Debugging requests" and "Error codes"; guide "Rate limits"."""

    content_type = "application/json"
    errors: Mapping[str, ApiError] = {
        "429": problem(429, "Rate limit reached. Please try again later.", "requests", "rate_limit_exceeded"),
        "500": problem(500, "The server had an error processing your request.", "server_error"),
        "503": problem(
            503,
            "The server is currently overloaded. Please try again later.",
            "service_unavailable_error",
            "server_is_overloaded",
        ),
        "529": problem(529, "Overloaded", "overloaded_error"),
        "400": problem(400, "Invalid prompt.", code="invalid_prompt", param="messages"),
        "401": problem(401, "Incorrect API key provided.", code="invalid_api_key"),
        "404": problem(
            404,
            "The model `simulated` does not exist or you do not have access to it.",
            code="model_not_found",
            param="model",
        ),
        "quota": problem(429, "Your credit balance is exhausted.", "insufficient_quota", "credit_balance_exhausted"),
        "context": problem(
            400,
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 140212 tokens.",
            code="context_length_exceeded",
            param="messages",
        ),
    }

    def key(self, headers: Mapping[str, str]) -> str | None:
        return bearer(headers)

    def check_headers(self, headers: Mapping[str, str]) -> None:
        """None is demanded."""

    def bad_request(self, message: str) -> ApiError:
        return problem(400, message)

    def no_such_url(self, status: int, message: str) -> ApiError:
        return problem(status, message)

    def no_such_model(self, model: str) -> ApiError:
        message = f"The model `{model}` does not exist or you do not have access to it."
        return problem(404, message, code="model_not_found", param="model")

    def rate_limited(self, model: str, refusal: Refusal) -> ApiError:
        """One that no waiting helps says so; that of the day is told with its numbers."""
        where = f"for {model} on {refusal.unit} per {'day (RPD)' if refusal.daily else 'min'}"
        if refusal.wait_s is None:
            message = f"Request too large {where}: Limit {refusal.limit:g}, Requested {refusal.needs:g}."
        elif refusal.daily:
            numbers = f"Limit {refusal.limit:g}, Used {refusal.limit:g}, Requested {refusal.needs:g}"
            message = f"Rate limit reached {where}: {numbers}. Please try again in {go_duration(refusal.wait_s)}."
        else:
            message = f"Rate limit reached {where}. Please try again in {go_duration(refusal.wait_s)}."
        error = problem(429, message, refusal.unit, "rate_limit_exceeded")
        error.wait_s = refusal.wait_s
        return error

    def id_headers(self, request_id: str) -> Headers:
        return [("x-request-id", request_id)]

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        """Requests and tokens per minute; resets are Go durations."""
        return [header for reading in readings if not reading.daily for header in go_limit_headers(reading)]

    def wait_headers(self, wait_s: float) -> Headers:
        return [
            ("retry-after", f"{max(1, math.ceil(wait_s))}"),
            ("retry-after-ms", f"{math.ceil(wait_s * 1000)}"),
            ("x-should-retry", "true"),
        ]

    def good_headers(self, busy_s: float) -> Headers:
        # For a stream OpenAI counts the time to its beginning.
        return [("openai-processing-ms", f"{busy_s * 1000:.0f}"), ("openai-version", "2020-10-01")]

    def models(self, names: Sequence[str]) -> bytes:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "llmbatch"} for name in names]
        return orjson.dumps({"object": "list", "data": models})


OPENAI = OpenAI()


def go_limit_headers(reading: Reading) -> Headers:
    """OpenAI's three headers of one limit, if it is one of requests or of tokens."""
    if reading.unit not in ("requests", "tokens"):
        return []
    return [
        (f"x-ratelimit-limit-{reading.unit}", f"{reading.limit:.0f}"),
        (f"x-ratelimit-remaining-{reading.unit}", str(reading.remaining)),
        (f"x-ratelimit-reset-{reading.unit}", go_duration(reading.reset_s)),
    ]


def bearer(headers: Mapping[str, str]) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key if scheme == "Bearer" else None


def reasons(model: str) -> bool:
    return _REASONING_MODEL.match(model) is not None


def writes_cache(model: str) -> bool:
    return _WRITES_CACHE.match(model) is not None


def check_reasoning_model(fields: Mapping[str, Any], effort: str | None, unsupported: Mapping[str, str]) -> None:
    """ApiError for what a reasoning model does not take; ``unsupported`` maps parameters to what is said of them."""
    if not reasons(fields["model"]):
        return
    for name, hint in unsupported.items():
        if fields.get(name) is not None:
            message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
            raise problem(400, message, code="unsupported_parameter", param=name)
    for name in ("temperature", "top_p"):
        if effort != "none" and fields.get(name) not in (None, 1):
            message = f"Unsupported value: '{name}' does not support {fields[name]} with this model, only 1."
            raise problem(400, message, code="unsupported_value", param=name)


def check_schema(schema: Any, strict: bool, what: str, name: str) -> None:
    """ApiError when the schema of ``what``, which stands in the field ``name``, is not what strict mode takes."""
    if schema is not None and not isinstance(schema, dict):
        raise WORDS.wrong_type(name, "an object", schema)
    why = None if schema is None else complaint_about(schema, _STRICT if strict else ANYTHING)
    if why:
        raise problem(400, f"Invalid schema for {what}: {why}", code="invalid_json_schema", param=name)


def failure_in_200(_answer: object) -> bytes:
    """A gateway that failed behind a status of 200 (OpenRouter API reference, "Errors")."""
    return orjson.dumps({"error": {"code": 502, "message": "Provider returned error"}})
