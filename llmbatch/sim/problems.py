"""The error answers of the OpenAI API, in the documented shape, and the faults that can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from llmbatch.sim.limits import Refusal, go_duration

INVALID = "invalid_request_error"


class ApiError(Exception):
    """A request that gets an error answer: its HTTP status and what stands in the ``error`` object.

    ``wait_s`` is the time after which it would be let in, where that is known.
    """

    def __init__(
        self, status: int, message: str, type: str = INVALID, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.wait_s: float | None = None
        self.error: dict[str, Any] = {"message": message, "type": type, "param": param, "code": code}

    @property
    def body(self) -> bytes:
        return orjson.dumps({"error": self.error})


def missing(param: str) -> ApiError:
    return ApiError(400, f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def wrong_type(param: str, wanted: str, value: Any) -> ApiError:
    message = f"Invalid type for '{param}': expected {wanted}, but got {_json_type(value)} instead."
    return ApiError(400, message, code="invalid_type", param=param)


def invalid_value(param: str, why: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"Invalid '{param}': {why}", code=code, param=param)


def unknown_parameter(param: str) -> ApiError:
    return ApiError(400, f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)


def invalid_key() -> ApiError:
    return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")


def model_not_found(model: str) -> ApiError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found", param="model")


def rate_limited(model: str, refusal: Refusal) -> ApiError:
    """The 429 of a limit, in OpenAI's words; one that no waiting helps says so."""
    where = f"for {model} on {refusal.unit} per min"
    if refusal.wait_s is None:
        message = f"Request too large {where}: Limit {refusal.limit:g}, Requested {refusal.needs:g}."
    else:
        message = f"Rate limit reached {where}. Please try again in {go_duration(refusal.wait_s)}."
    error = ApiError(429, message, refusal.unit, "rate_limit_exceeded")
    error.wait_s = refusal.wait_s
    return error


def overloaded() -> ApiError:
    message = "The server is currently overloaded. Please try again later."
    return ApiError(503, message, "service_unavailable_error", "server_is_overloaded")


def _json_type(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, when, and what it costs.

    ``late``: only after the time the answer would have taken. ``billed``: the answer was produced, but is lost or
    spoilt on its way.
    """

    late: bool = False
    billed: bool = False
    error: ApiError | None = None


FAULTS: dict[str, Fault] = {
    "429": Fault(error=ApiError(429, "Rate limit reached. Please try again later.", "requests", "rate_limit_exceeded")),
    "500": Fault(late=True, error=ApiError(500, "The server had an error processing your request.", "server_error")),
    "502": Fault(late=True),
    "503": Fault(error=overloaded()),
    "529": Fault(error=ApiError(529, "Overloaded", "overloaded_error")),
    "400": Fault(error=ApiError(400, "Invalid prompt.", code="invalid_prompt", param="messages")),
    "401": Fault(error=invalid_key()),
    "404": Fault(error=model_not_found("simulated")),
    "quota": Fault(
        error=ApiError(429, "Your credit balance is exhausted.", "insufficient_quota", "credit_balance_exhausted")
    ),
    "context": Fault(
        error=ApiError(
            400,
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 140212 tokens.",
            code="context_length_exceeded",
            param="messages",
        )
    ),
    "reset-before": Fault(),
    "reset-after": Fault(late=True, billed=True),
    "stall": Fault(),
    "truncate": Fault(late=True, billed=True),
    "html": Fault(late=True),
    "empty": Fault(late=True, billed=True),
    "error200": Fault(late=True),
    "garbage-json": Fault(late=True, billed=True),
}
"""Every kind of fault. Statuses and codes follow OpenAI's error table; 502 and html are what a gateway says."""
