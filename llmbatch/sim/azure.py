"""Azure OpenAI: the OpenAI bodies behind other keys, headers and errors (Azure OpenAI REST reference)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from llmbatch.sim.answer import Answer
from llmbatch.sim.chat_answer import ChatStream, completion
from llmbatch.sim.dialect import data_event
from llmbatch.sim.http11 import Headers
from llmbatch.sim.limits import Reading, Refusal
from llmbatch.sim.openai import OpenAI, bearer
from llmbatch.sim.problems import ApiError

_SAFE = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}
_PROMPT_FILTER = {
    "prompt_filter_results": [
        {"prompt_index": 0, "content_filter_results": {**_SAFE, "jailbreak": {"filtered": False, "detected": False}}}
    ]
}


def _problem(http_status: int, code: str, message: str, **more: Any) -> ApiError:
    return ApiError(http_status, {"error": {"code": code, "message": message, **more}})


class Azure(OpenAI):
    """Its 429s never mean money; what its content filter stops is a 400."""

    errors: Mapping[str, ApiError] = {
        **OpenAI.errors,
        "429": _problem(429, "429", "Requests have exceeded the rate limit of your deployment."),
        "500": _problem(500, "InternalServerError", "Internal server error"),
        "503": _problem(503, "ServiceUnavailable", "The service is temporarily unable to process your request."),
        "400": _problem(
            400,
            "content_filter",
            "The response was filtered due to the prompt triggering the content management policy.",
            type=None,
            param="prompt",
            status=400,
            innererror={
                "code": "ResponsibleAIPolicyViolation",
                "content_filter_result": {**_SAFE, "violence": {"filtered": True, "severity": "high"}},
            },
        ),
        "401": _problem(401, "401", "Access denied due to invalid subscription key or wrong API endpoint."),
        "404": _problem(404, "DeploymentNotFound", "The API deployment for this resource does not exist."),
        "quota": _problem(403, "403", "Access denied: the subscription is disabled."),
    }

    def key(self, headers: Mapping[str, str]) -> str | None:
        return headers.get("api-key") or bearer(headers)

    def no_such_url(self, status: int, message: str) -> ApiError:
        return _problem(status, str(status), message)

    def no_such_model(self, model: str) -> ApiError:
        return self.errors["404"]

    def rate_limited(self, model: str, refusal: Refusal) -> ApiError:
        message = "Requests have exceeded the rate limit of your deployment."
        if refusal.wait_s is not None:
            message += f" Please retry after {math.ceil(refusal.wait_s)} seconds."
        error = _problem(429, "429", message)
        error.wait_s = refusal.wait_s
        return error

    def id_headers(self, request_id: str) -> Headers:
        return [("x-request-id", request_id), ("apim-request-id", request_id), ("x-ms-region", "Simulated")]

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers:
        """Resets are whole seconds."""
        return [header for reading in readings if not reading.daily for header in _limit_headers(reading)]

    def wait_headers(self, wait_s: float) -> Headers:
        return [("retry-after", f"{max(1, math.ceil(wait_s))}"), ("retry-after-ms", f"{math.ceil(wait_s * 1000)}")]

    def good_headers(self, busy_s: float) -> Headers:
        return []


AZURE = Azure()


def _limit_headers(reading: Reading) -> Headers:
    if reading.unit not in ("requests", "tokens"):
        return []
    return [
        (f"x-ratelimit-limit-{reading.unit}", f"{reading.limit:.0f}"),
        (f"x-ratelimit-remaining-{reading.unit}", str(reading.remaining)),
        (f"x-ratelimit-reset-{reading.unit}", f"{math.ceil(reading.reset_s)}"),
    ]


def filtered_body(answer: Answer) -> bytes:
    """A completion with what the content filter says of it."""
    document = completion(answer)
    for choice in document["choices"]:
        choice["content_filter_results"] = _SAFE
    return orjson.dumps({**document, **_PROMPT_FILTER})


class FilteredStream(ChatStream):
    """A first chunk without choices says what the content filter thinks of the prompt."""

    def begin(self) -> Iterator[bytes]:
        yield data_event({"id": "", "object": "", "created": 0, "model": "", "choices": [], **_PROMPT_FILTER})
        yield from super().begin()
