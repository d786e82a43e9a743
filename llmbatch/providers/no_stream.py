"""The stream of a dialect that has none."""

from __future__ import annotations

from llmbatch.records import Failure, Reply


class NoStream:
    """Whatever comes, it is no answer."""

    ended = False
    text = ""

    def feed(self, data: str) -> bool:
        """Nothing is a part of an answer."""
        return False

    def finish(self) -> Reply | Failure:
        """Always a Failure."""
        return Failure("unusable", "bad_stream", "this API does not stream", http_status=200, retryable=True)
