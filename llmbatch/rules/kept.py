"""What is kept of the body of a bad answer: all of it where it may have been paid for, else enough to understand it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmbatch.records import Failure

# Of what may have been paid for. An answer of 1 MiB is some 250,000 tokens, more than any model gives at once.
KEPT_BODY_BYTES = 2**20
# Of a stream's text; a server that never ends must not fill memory and disk with it.
KEPT_TEXT_CHARS = 4 * 2**20
# Enough for any JSON error and for the title of an HTML page.
EXCERPT_BYTES = 4096


def with_body(failure: Failure, parts: Sequence[bytes], received: int) -> Failure:
    """``failure`` with the body that came: ``received`` bytes, of which ``parts`` hold at least the first
    KEPT_BODY_BYTES."""
    if not received:
        return failure
    body = _start(parts)
    if not failure.maybe_billed:
        return replace(failure, body=body[:EXCERPT_BYTES].decode("utf-8", "replace").strip() or None)
    return replace(
        failure,
        body=_text(body[:KEPT_BODY_BYTES], cut=received > KEPT_BODY_BYTES),
        body_bytes=received if received > KEPT_BODY_BYTES else None,
    )


def _start(parts: Sequence[bytes]) -> bytes:
    """At least KEPT_BODY_BYTES of what is there: of a body without end the whole would be in memory twice."""
    size, count = 0, 0
    while count < len(parts) and size < KEPT_BODY_BYTES:
        size += len(parts[count])
        count += 1
    return b"".join(parts[:count])


def _text(body: bytes, *, cut: bool) -> str | bytes:
    """As text if it is UTF-8. Where our own cut went through a character, that one is left out."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        if cut and error.reason == "unexpected end of data" and error.start >= len(body) - 3:
            return body[: error.start].decode()
        return body
