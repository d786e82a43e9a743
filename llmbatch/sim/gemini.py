"""What all Gemini endpoints have in common: keys, the error object with its details. There are no limit headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from llmbatch.sim.fields import Field
from llmbatch.sim.http11 import Headers
from llmbatch.sim.limits import Reading, Refusal
from llmbatch.sim.problems import ApiError

# What an injected 429 says, short for the sake of tests; a real limit says its real wait.
FAULT_DELAY_S = 0.25
# What a spent quota of the day says, which no wait of that length helps.
DAY_DELAY_S = 40.0
_RPC = "type.googleapis.com/google.rpc"


def problem(status: int, name: str, message: str, *details: dict[str, Any]) -> ApiError:
    """An error with Google's error object."""
    error: dict[str, Any] = {"code": status, "message": message, "status": name}
    if details:
        error["details"] = list(details)
    return ApiError(status, {"error": error})


def invalid(message: str, field: str = "") -> ApiError:
    violations = [{"field": field, "description": message}] if field else [{"description": message}]
    return problem(400, "INVALID_ARGUMENT", message, {"@type": f"{_RPC}.BadRequest", "fieldViolations": violations})


def _retry_in(wait_s: float) -> dict[str, Any]:
    return {"@type": f"{_RPC}.RetryInfo", "retryDelay": f"{wait_s:.9f}".rstrip("0").rstrip(".") + "s"}


def _quota_failure(metric: str, quota_id: str, model: str, value: str) -> dict[str, Any]:
    violation = {
        "quotaMetric": f"generativelanguage.googleapis.com/{metric}",
        "quotaId": quota_id,
        "quotaDimensions": {"model": model, "location": "global"},
        "quotaValue": value,
    }
    return {"@type": f"{_RPC}.QuotaFailure", "violations": [violation]}


class GeminiWords:
    """What Gemini says of a field that is wrong."""

    def missing(self, name: str) -> ApiError:
        return invalid(f"* GenerateContentRequest.{name}: {name.rpartition('.')[2]} is not specified", name)

    def unknown(self, name: str) -> ApiError:
        place, _, field = name.rpartition(".")
        where = f" at '{place}'" if place else ""
        return invalid(f'Invalid JSON payload received. Unknown name "{field}"{where}: Cannot find field.', place)

    def wrong_type(self, name: str, wanted: str, value: Any) -> ApiError:
        shown = orjson.dumps(value).decode()[:80]
        return invalid(f"Invalid value at '{name}' (expected {wanted}), {shown}", name)

    def out_of_range(self, name: str, field: Field, value: float) -> ApiError:
        return invalid(f"* GenerateContentRequest.{name}: {value:g} is not in [{field.low:g}, {field.high:g}]", name)

    def not_a_choice(self, name: str, field: Field, value: str) -> ApiError:
        return invalid(f"Invalid value at '{name}' (TYPE_ENUM), \"{value}\"", name)


WORDS = GeminiWords()


class Gemini:
    """Gemini API guides, "Troubleshooting" and "Rate limits"; AIP-193 for the shape of errors."""

    content_type = "application/json; charset=UTF-8"
    errors: Mapping[str, ApiError] = {
        "429": problem(
            429,
            "RESOURCE_EXHAUSTED",
            f"You exceeded your current quota. Please retry in {FAULT_DELAY_S}s.",
            _quota_failure(
                "generate_requests_per_model", "GenerateRequestsPerMinutePerProjectPerModel", "simulated", "10"
            ),
            _retry_in(FAULT_DELAY_S),
        ),
        "500": problem(500, "INTERNAL", "An internal error has occurred."),
        "503": problem(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        "529": problem(529, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        "400": problem(400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
        "401": problem(
            400,
            "INVALID_ARGUMENT",
            "API key not valid. Please pass a valid API key.",
            {
                "@type": f"{_RPC}.ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            },
        ),
        "404": problem(404, "NOT_FOUND", "models/simulated is not found for API version v1beta."),
        "quota": problem(402, "RESOURCE_EXHAUSTED", "Your prepaid credit is used up."),
        "context": problem(
            400,
            "INVALID_ARGUMENT",
            "The input token count (1140212) exceeds the maximum number of tokens allowed (1048576).",
        ),
    }

    def key(self, headers: Mapping[str, str]) -> str | None:
        return headers.get("x-goog-api-key")

    def check_headers(self, headers: Mapping[str, str]) -> None:
        """None is demanded."""

    def bad_request(self, message: str) -> ApiError:
        return problem(400, "INVALID_ARGUMENT", message)

    def no_such_url(self, status: int, message: str) -> ApiError:
        return problem(status, "NOT_FOUND" if status == 404 else "UNIMPLEMENTED", message)

    def no_such_model(self, model: str) -> ApiError:
        message = f"models/{model} is not found for API version v1beta, or is not supported for generateContent."
        return problem(404, "NOT_FOUND", message)

    def rate_limited(self, model: str, refusal: Refusal) -> ApiError:
        """The wait stands in the body. That of a day is given as short as if it were one of a minute."""
        if refusal.daily:
            return self._used_up(model, refusal)
        what = "Requests" if refusal.unit == "requests" else "InputTokens"
        details = [
            _quota_failure(
                "generate_content_paid_tier_" + ("requests" if what == "Requests" else "input_token_count"),
                f"GenerateContentPaidTier{what}PerModelPerMinute",
                model,
                f"{refusal.limit:.0f}",
            )
        ]
        message = "You exceeded your current quota."
        if refusal.wait_s is not None:
            message += f" Please retry in {refusal.wait_s:.9g}s."
            details.append(_retry_in(refusal.wait_s))
        return problem(429, "RESOURCE_EXHAUSTED", message, *details)

    def _used_up(self, model: str, refusal: Refusal) -> ApiError:
        quota = _quota_failure(
            "generate_requests_per_model_per_day",
            "GenerateRequestsPerDayPerProjectPerModel",
            model,
            f"{refusal.limit:.0f}",
        )
        message = f"You exceeded your current quota. Please retry in {DAY_DELAY_S:g}s."
        return problem(429, "RESOURCE_EXHAUSTED", message, quota, _retry_in(DAY_DELAY_S))

    def id_headers(self, request_id: str) -> Headers:
        return []

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        return []

    def wait_headers(self, wait_s: float) -> Headers:
        return []

    def good_headers(self, busy_s: float) -> Headers:
        return [("server-timing", f"gfet4t7; dur={busy_s * 1000:.0f}")]

    def models(self, names: Sequence[str]) -> bytes:
        methods = ["generateContent", "embedContent"]
        models = [{"name": f"models/{name}", "supportedGenerationMethods": methods} for name in names]
        return orjson.dumps({"models": models})


GEMINI = Gemini()
