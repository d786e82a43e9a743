"""The key stays home: taken out of whatever a server repeats, before it reaches a file, a screen or a log.

Servers and proxies echo what they were sent: as it is, as JSON or a URL or HTML writes it, in base64 or in hex, and
all of it cut anywhere. A failure is searched for every spelling. In a good answer only the key itself is looked for:
the answer is the model's, and it is on the fast path.
"""

from __future__ import annotations

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from llmbatch.records import Failure, Reply

PLACEHOLDER = "[key]"
# A dummy key ("test", "none") must not eat words.
MIN_KEY_CHARS = 8

# How keys begin that say whose they are (``sk-proj-``, ``sk-ant-api03-``, ``gsk_``): no secret, and in many texts.
_PUBLIC = re.compile(r"(?:[a-z]{1,5}[0-9]{0,2}[-_]){0,3}")

# Half an escape may stand before the end of a cut text; excerpts end in "…".
_CUT = re.compile(r"(?i:\\{1,8}(?:u[0-9a-f]{0,3}|x[0-9a-f]?)?|%[0-9a-f]{0,5}|&#?x?[0-9a-f]{0,6}|&[a-z]{0,4})?(?=…|\Z)")
# The members of the events of a stream whose values are text.
_MEMBER = re.compile(r'"(\w{1,40})"\s{0,9}:\s{0,9}"((?:[^"\\]|\\.)*+)')


# All escapes of ASCII characters, as _any_form knows them; and what in a key would be taken for one.
_ESCAPE = re.compile(
    r"\\(?:u00|x)([2-7][0-9a-fA-F])|%(?:25)*([2-7][0-9a-fA-F])|&#(?:[xX]0*([2-7][0-9a-fA-F])|0*([0-9]{2,3}));"
    r"|&(amp|lt|gt|quot|apos);"
)
_NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_LIKE_ESCAPES = re.compile(r"[\\%&]|x[2-7][0-9a-fA-F]|u00[2-7]")


class Redactor:
    """Takes ``keys`` out of texts. Of keys of fewer than MIN_KEY_CHARS characters only ``Bearer KEY`` is looked for."""

    def __init__(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        self._short = [f"Bearer {key}" for key in keys if 0 < len(key) < MIN_KEY_CHARS]
        self._keys = [key for key in dict.fromkeys(keys) if len(key) >= MIN_KEY_CHARS]
        self._spellings = [spelling for key in self._keys for spelling in _spellings(key)]

    def text(self, text: str) -> str:
        """``text`` without any key, in any spelling, nor a beginning of one.

        At a cut that is 8 characters or more, elsewhere 8 or more after those that only say whose key it is.
        """
        text = self.exact(text)
        for header in self._short:
            text = text.replace(header, f"Bearer {PLACEHOLDER}")
        plain = _unescaped(text).lower() if self._spellings else ""
        for spelling in self._spellings:
            if spelling.may_be_in(plain):
                text = spelling.removed_from(text)
        return text

    def data(self, data: bytes) -> bytes:
        """``data``, which need not be text, without any key."""
        return self.text(data.decode("latin-1")).encode("latin-1")

    def failure(self, failure: Failure) -> Failure:
        """``failure`` with no key in any of its texts."""
        if not self._keys and not self._short:
            return failure
        body, so_far = self._body(failure.body), failure.output_so_far and self.text(failure.output_so_far)
        in_pieces = so_far != failure.output_so_far and body == failure.body
        return replace(
            failure,
            type=self.text(failure.type),
            message=self.text(failure.message),
            body=None if in_pieces or self._in_pieces(failure.body, body) else body,
            request_id=failure.request_id and self.text(failure.request_id),
            output_so_far=so_far,
        )

    def _body(self, body: str | bytes | None) -> str | bytes | None:
        return self.data(body) if isinstance(body, bytes) else body and self.text(body)

    def _in_pieces(self, body: str | bytes | None, cleaned: str | bytes | None) -> bool:
        """Whether a key, or a beginning of one, is spread over the events of a stream: joined, they show it."""
        before, after = _joined(body), _joined(cleaned)
        return any(self.text(text) != after.get(name) for name, text in before.items())

    def reply(self, reply: Reply) -> Reply:
        """``reply`` without the exact key; all but always it is ``reply`` itself."""
        parts = (reply.output, reply.tool_calls, reply.reasoning, reply.model, reply.finish_reason)
        for key in self._keys:
            for part in parts:
                if part is not None and _holds(part, key):
                    return self._without_key(reply)
        return reply

    def exact(self, value: Any) -> Any:
        """A JSON value without the exact key in any of its strings."""
        if isinstance(value, str):
            for key in self._keys:
                value = value.replace(key, PLACEHOLDER)
            return value
        if isinstance(value, dict):
            return {self.exact(name): self.exact(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.exact(member) for member in value]
        return value

    def _without_key(self, reply: Reply) -> Reply:
        return replace(
            reply,
            output=self.exact(reply.output),
            tool_calls=self.exact(reply.tool_calls),
            reasoning=self.exact(reply.reasoning),
            model=self.exact(reply.model),
            finish_reason=self.exact(reply.finish_reason),
        )


class _Spelling:
    """One way to write a key, each character of it as it is or escaped, in capitals or not.

    ``fewest`` characters betray it at a cut, ``enough`` anywhere.
    """

    def __init__(self, text: str, fewest: int, enough: int) -> None:
        # What stands before the key may look like the start of an escape, and take two of its characters.
        self._core = text[2:fewest].lower()
        self._more = enough - fewest
        self._looks_escaped = _LIKE_ESCAPES.search(text[: fewest + 4]) is not None
        self._start = re.compile("".join(map(_any_form, text[:fewest])), re.IGNORECASE)
        self._rest = [_compiled(char) for char in text[fewest:]]

    def may_be_in(self, plain: str) -> bool:
        """False if it can not be in the text whose escapes and capitals ``plain`` undid: the search is slow."""
        return self._looks_escaped or self._core in plain

    def removed_from(self, text: str) -> str:
        """First all of it; a beginning may be that of the whole that begins a little later."""
        return self._removed(self._removed(text, beginnings=False), beginnings=True)

    def _removed(self, text: str, *, beginnings: bool) -> str:
        kept, done, position = [], 0, 0
        while (found := self._start.search(text, position)) is not None:
            end = self._end(text, found.end(), beginnings)
            position = found.start() + 1 if end is None else end
            if end is not None:
                kept += [text[done : found.start()], PLACEHOLDER]
                done = end
        return "".join([*kept, text[done:]]) if kept else text

    def _end(self, text: str, position: int, beginnings: bool) -> int | None:
        """Where the key ends, or its beginning, that begins before ``position``; None if it is another text."""
        for more, char in enumerate(self._rest):
            found = char.match(text, position)
            if found is None:
                if cut := _CUT.match(text, position):
                    return cut.end()
                return position if beginnings and more >= self._more else None
            position = found.end()
        return position


def _joined(body: str | bytes | None) -> dict[str, str]:
    """Of a stream: what the values of each member are together."""
    events = body.decode("latin-1") if isinstance(body, bytes) else body or ""
    joined: dict[str, list[str]] = {}
    for name, value in _MEMBER.findall(events) if "data:" in events else ():
        joined.setdefault(name, []).append(value)
    return {name: "".join(values) for name, values in joined.items()}


def _unescaped(text: str) -> str:
    """``text`` with the escapes of ASCII characters undone, and without backslashes."""
    if "\\" not in text and "%" not in text and "&" not in text:
        return text
    return _ESCAPE.sub(_escaped_char, text).replace("\\", "")


def _escaped_char(escape: re.Match[str]) -> str:
    behind_slash, percent, html_hex, html, named = escape.groups()
    if named:
        return _NAMED[named]
    return chr(int(html)) if html else chr(int(behind_slash or percent or html_hex, 16))


def _holds(value: Any, key: str) -> bool:
    if isinstance(value, str):
        return key in value
    if isinstance(value, dict):
        return any(_holds(name, key) or _holds(member, key) for name, member in value.items())
    return isinstance(value, list) and any(_holds(member, key) for member in value)


def _spellings(key: str) -> Iterator[_Spelling]:
    raw = key.encode()
    texts = [key, raw.hex()]
    for offset in range(3):  # base64 depends on where in its text the key begins
        texts += [_core(encode(bytes(offset) + raw), offset, len(raw)) for encode in (b64encode, urlsafe_b64encode)]
    public = _PUBLIC.match(key)
    enough = MIN_KEY_CHARS + (0 if public is None else public.end())
    for text in dict.fromkeys(texts):
        yield _Spelling(text, *(-(-chars * len(text) // len(key)) for chars in (MIN_KEY_CHARS, enough)))


def _core(encoded: bytes, offset: int, length: int) -> str:
    """The characters of a base64 text that hold bits of the key and no others."""
    return encoded[-(-offset * 8 // 6) : (offset + length) * 8 // 6].decode()


def _any_form(char: str) -> str:
    r"""A pattern: ``/``, ``\/``, ``\u002f``, ``\x2f``, ``%2F``, ``&#47;``, ``&#x2f;``; escapes may be escaped again.

    Of what HTML has a name for, that too.
    """
    code = f"(?i:{ord(char):02x})"
    named = "".join(f"|&{name};" for name, meant in _NAMED.items() if meant == char)
    return (
        rf"(?:\\{{1,8}}(?:u00|x){code}|%(?:25){{0,2}}{code}|&#(?:[xX]0{{0,4}}{code}|0{{0,4}}{ord(char)});"
        rf"{named}|\\{{0,8}}{re.escape(char)})"
    )


@lru_cache(maxsize=128)
def _compiled(char: str) -> re.Pattern[str]:
    return re.compile(_any_form(char), re.IGNORECASE)
