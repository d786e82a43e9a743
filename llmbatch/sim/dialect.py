"""The seam between the provider and the APIs it speaks: a vendor's manners, and a dialect for each of its endpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

from llmbatch.sim.answer import Answer
from llmbatch.sim.ask import Ask
from llmbatch.sim.http11 import Headers, HttpRequest
from llmbatch.sim.limits import Reading, Refusal
from llmbatch.sim.problems import ApiError


class LimitHeaders(Protocol):
    """How a server tells of its limits."""

    def limit_headers(self, readings: Sequence[Reading], time_s: float) -> Headers: ...
    def wait_headers(self, wait_s: float) -> Headers:
        """When a request that was refused may come again."""


class Vendor(LimitHeaders, Protocol):
    """What all endpoints of one API have in common: keys, headers, errors.

    ``errors`` has one for every fault that is an error; the real ones of that kind are the same.
    """

    content_type: str
    errors: Mapping[str, ApiError]

    def key(self, headers: Mapping[str, str]) -> str | None:
        """The key a request carries."""

    def check_headers(self, headers: Mapping[str, str]) -> None:
        """ApiError when a header that the API demands is missing."""

    def bad_request(self, message: str) -> ApiError: ...
    def no_such_url(self, status: int, message: str) -> ApiError: ...
    def no_such_model(self, model: str) -> ApiError: ...
    def rate_limited(self, model: str, refusal: Refusal) -> ApiError: ...

    def id_headers(self, request_id: str) -> Headers: ...
    def good_headers(self, busy_s: float) -> Headers:
        """What an answer that is no error has besides."""

    def models(self, names: Sequence[str]) -> bytes:
        """The body of the list of models."""


class Stream(Protocol):
    """The events of one streamed answer, each ready to send."""

    def begin(self) -> Iterator[bytes]: ...
    def content(self, start: int, stop: int) -> Iterator[bytes]:
        """The tokens from ``start`` to before ``stop``."""

    def finish(self) -> Iterator[bytes]:
        """All that stands behind the last token, with the protocol's own end."""

    def failure(self) -> Iterator[bytes]:
        """An error in mid-stream."""

    def garbage(self) -> Iterator[bytes]:
        """An event that is no JSON, and a regular end."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One endpoint. ``parse`` gets the model that stands in the path, if the API has it there.

    ``stream`` is None where the API has none. ``failure`` is the body of an error behind a status of 200.
    """

    name: str
    vendor: Vendor
    parse: Callable[[HttpRequest, str], Ask]
    body: Callable[[Answer], bytes]
    stream: Callable[[Answer], Stream] | None
    failure: Callable[[Answer], bytes]


def data_event(document: object) -> bytes:
    """A Server-Sent Event without a name."""
    return b"data: " + orjson.dumps(document) + b"\n\n"


def named_event(name: str, document: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(document))


def json_object(body: bytes, vendor: Vendor) -> dict[str, object]:
    """The JSON object in ``body``; ApiError when it is none."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise vendor.bad_request(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(fields, dict):
        raise vendor.bad_request("The JSON body of your request must be an object.")
    return fields
