"""Which requests begin alike, and are long enough to be cached by a provider."""

from __future__ import annotations

from typing import Any

import pytest

from llmbatch.records import Request
from llmbatch.rules.prefix import PREFIX_CHARS, prefix_of

LONG = "A long instruction that all rows share. " * 200
HALF = "x" * (PREFIX_CHARS // 2)
TOOL = {"type": "function", "function": {"name": "track", "description": LONG}}


def asked(*said: Any, model: str = "m", **more: Any) -> Request:
    """One turn of the user, or after the first, which is the system's, the others."""
    roles = ["user"] if len(said) == 1 else ["system", *["user"] * (len(said) - 1)]
    return Request(model, [{"role": role, "content": one} for role, one in zip(roles, said, strict=True)], **more)


def body(api: str, **said: Any) -> Request:
    return Request("m", body={"model": "m", **said}, api=api)


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    "request_",
    [
        asked("a prompt"),
        asked("x" * (PREFIX_CHARS - 1)),
        asked(HALF, "short"),
        asked(parts("short", "ones")),
        asked("short", params={"temperature": 0.5}),
        asked("short", params={"tools": [{"type": "function", "function": {"name": "t"}}]}),
        body("openai-chat", messages=[{"role": "user", "content": "short"}]),
        body("anthropic", system="short", messages=[{"role": "user", "content": "short"}]),
        body("openai-responses", input="short"),
        Request("m", input=LONG),
        Request("m", input=[LONG, LONG]),
        body("openai-embeddings", input=LONG),
        Request(""),
    ],
)
def test_short_requests_and_texts_to_embed_have_none(request_: Request) -> None:
    assert prefix_of(request_) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked(LONG, "a"), asked(LONG, "b")),
        (asked(LONG + "a"), asked(LONG + "b")),
        (asked("x" * PREFIX_CHARS), asked("x" * PREFIX_CHARS)),
        (asked(HALF, HALF, "a"), asked(HALF, HALF, "b")),
        (asked(parts(LONG, "a")), asked(parts(LONG, "b"))),
        (asked("a", params={"tools": [TOOL]}), asked("b", params={"tools": [TOOL]})),
        (asked("a", extra={"tools": [TOOL]}), asked("b", extra={"tools": [TOOL]})),
        (asked(LONG, "a", params={"seed": 1}), asked(LONG, "a", params={"seed": 2})),
        (body("anthropic", system=LONG, messages=["a"]), body("anthropic", system=LONG, messages=["b"])),
        (body("openai-responses", instructions=LONG, input="a"),
         body("openai-responses", instructions=LONG, input="b")),
        (body("openai-chat", messages=[{"role": "user", "content": LONG + "a"}]),
         body("openai-chat", messages=[{"role": "user", "content": LONG + "b"}])),
        (asked({LONG}), asked({LONG})),
    ],
)  # fmt: skip
def test_the_same_beginning_is_one_prefix(one: Request, other: Request) -> None:
    assert prefix_of(one) is not None
    assert prefix_of(one) == prefix_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asked(LONG, "a"), asked(LONG, "a", model="n")),
        (asked("a" + LONG), asked("b" + LONG)),
        (asked(HALF, HALF + "a"), asked(HALF + HALF + "a")),
        (asked("x" * (PREFIX_CHARS - 20) + "a" * 99), asked("x" * (PREFIX_CHARS - 20) + "b" * 99)),
        (asked(LONG, params={"tools": [TOOL]}), asked(LONG)),
        (body("anthropic", system="a" + LONG), body("anthropic", system="b" + LONG)),
    ],
)
def test_another_beginning_or_model_is_another_prefix(one: Request, other: Request) -> None:
    assert prefix_of(one) is not None
    assert prefix_of(one) != prefix_of(other)
