"""No spelling of the key leaves a failure; a good answer loses the key itself and nothing else."""

from __future__ import annotations

import html
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import process_time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.records import Failure, Reply, Usage
from llmbatch.rules.redact import MIN_KEY_CHARS, PLACEHOLDER, Redactor

KEY = "sk-canary/0123+456789=="
LONG_KEY = "sk-proj-" + "aB3_/x+9" * 24
FAILURE = Failure("permanent", "bad", "no")
REPLY = Reply("a", "stop", "m", Usage(), [{"function": {"arguments": "{}"}}], "r")

SPELLINGS: dict[str, Callable[[str], str]] = {
    "exact": lambda key: key,
    "json slash": lambda key: key.replace("/", "\\/"),
    "json in json": lambda key: json.dumps(json.dumps(key).replace("/", "\\/"))[3:-3],
    "unicode escapes": lambda key: "".join(f"\\u{ord(char):04X}" for char in key),
    "escaped escapes": lambda key: "".join(f"\\\\u{ord(char):04x}" for char in key),
    "some escapes": lambda key: "".join(f"\\u{ord(char):04x}" if i % 3 else char for i, char in enumerate(key)),
    "hex escapes": lambda key: "".join(f"\\x{ord(char):02x}" for char in key),
    "url": lambda key: quote(key, safe=""),
    "url plus": quote_plus,
    "url twice": lambda key: quote(quote(key, safe=""), safe=""),
    "url, all of it": lambda key: "".join(f"%{ord(char):02x}" for char in key),
    "html": lambda key: "".join(f"&#{ord(char)};" for char in key),
    "html hex": lambda key: "".join(f"&#x{ord(char):X};" for char in key),
    "html escaped": html.escape,
    "hex": lambda key: key.encode().hex(),
    "HEX": lambda key: key.encode().hex().upper(),
    "base64": lambda key: b64encode(key.encode()).decode(),
    "base64 + 1": lambda key: b64encode(b"x" + key.encode()).decode(),
    "base64 + 2": lambda key: b64encode(b"u:" + key.encode() + b"\n").decode(),
    "base64 for urls": lambda key: urlsafe_b64encode(b">?" + key.encode()).decode(),
    "base64 in json": lambda key: b64encode(key.encode()).decode().replace("/", "\\/"),
    "base64 in a url": lambda key: quote(b64encode(b"?" + key.encode()).decode(), safe=""),
}
every_spelling = pytest.mark.parametrize("spell", SPELLINGS.values(), ids=list(SPELLINGS))
KEYS = st.text(st.sampled_from("abcXYZ019-_./+=:~"), min_size=16, max_size=200)


def hidden(text: str, told: str) -> bool:
    """Whether ``told`` keeps no 8 characters of the spelling in a row (base64 may keep half a byte at the ends)."""
    return not any(text[start : start + 8] in told for start in range(len(text) - 7))


@pytest.mark.parametrize("key", [KEY, LONG_KEY], ids=["short", "long"])
@every_spelling
def test_no_spelling_of_the_key_is_left(spell: Callable[[str], str], key: str) -> None:
    text = spell(key)
    told = Redactor([key]).text(f"the key '{text}' is wrong, really: {text}")
    assert told.count(PLACEHOLDER) == 2
    assert told.startswith("the key '") and "' is wrong, really: " in told
    assert hidden(text.strip("="), told)


@every_spelling
def test_no_beginning_of_eight_characters_is_left_at_a_cut(spell: Callable[[str], str]) -> None:
    redactor = Redactor([KEY])
    text = spell(KEY)
    per_char = len(text) / len(KEY)
    for end in range(int((MIN_KEY_CHARS + 3) * per_char) + 6, len(text) + 1):
        for tail in ("", "…"):
            told = redactor.text(f"wrong key: {text[:end]}{tail}")
            assert told.startswith("wrong key: ") and told.endswith(tail), end
            assert PLACEHOLDER in told, (end, told)
            assert hidden(text[:end].strip("="), told), (end, told)


@given(KEYS, st.sampled_from(list(SPELLINGS.values())), st.text(max_size=20), st.text(max_size=20))
def test_any_key_anywhere_in_any_spelling(key: str, spell: Callable[[str], str], before: str, after: str) -> None:
    assert PLACEHOLDER in Redactor([key]).text(f"{before}{spell(key)}{after}")


@given(st.text(st.characters(exclude_characters="cC"), max_size=300))
def test_a_text_without_the_key_stays_as_it_is(text: str) -> None:
    assert Redactor(["canarycanary"]).text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "sk-canary is how this key begins, and this goes on",  # a beginning counts only at a cut
        "sk-cana",
        "",
        "%%%%\\\\\\\\&&&&####" * 50,
    ],
)
def test_what_only_looks_like_the_key_stays(text: str) -> None:
    told = Redactor([KEY + "x" * 20]).text(text)
    assert told == text


@pytest.mark.parametrize("key", ["test", "", "none", "1234567"])
def test_a_short_dummy_key_eats_no_words(key: str) -> None:
    redactor = Redactor([key])
    assert redactor.text("a test: none of 1234567") == "a test: none of 1234567"
    assert redactor.failure(FAILURE) == FAILURE


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("", "Bearer 12345678 12345678 1"),
        ("1", "Bearer [key]2345678 12345678 1"),
        ("1234567", "Bearer [key]8 12345678 1"),
        ("12345678", "Bearer [key] [key] 1"),
    ],
)
def test_how_long_a_key_must_be(key: str, told: str) -> None:
    assert Redactor([key]).text("Bearer 12345678 12345678 1") == told


def test_a_key_that_repeats_its_beginning_is_found_all_the_same() -> None:
    key = "sk-sk-sk-sk-SECRET"
    assert Redactor([key]).text(f"sk-sk-sk-{key}!") == f"sk-sk-sk-{PLACEHOLDER}!"


def test_a_spelling_that_begins_within_what_only_looked_like_it_is_found() -> None:
    key = "aaaaaaaab/cdefgh"
    assert Redactor([key]).text("a" + key.replace("/", "\\/") + "!") == "a[key]!"


@pytest.mark.parametrize("escape", ["%41", "\\u0041", "\\x41", "&#65;", "x41", "u0041"])
@pytest.mark.parametrize("place", range(15))
def test_a_key_that_holds_what_looks_like_an_escape_is_found_at_a_cut(escape: str, place: int) -> None:
    """To be read as an escape it may take a backslash or a percent sign that stands before it."""
    key = "abcdefghijklmno"[:place] + escape + "abcdefghijklmno"[place:]
    redactor = Redactor([key])
    for end in range(MIN_KEY_CHARS, len(key)):
        for before in ("", "\\", "%"):
            told = redactor.text(f"wrong key: {before}{key[:end]}")
            assert PLACEHOLDER in told and hidden(key[:end], told), (key[:end], told)


def test_every_key_of_several_is_taken_out() -> None:
    assert Redactor(["first-key-1", "other-key-2"]).text("first-key-1, other-key-2") == "[key], [key]"


@pytest.mark.parametrize("name", ["type", "message", "body", "request_id"])
def test_no_text_of_a_failure_is_forgotten(name: str) -> None:
    told = Redactor([KEY]).failure(replace(FAILURE, **{name: f"a {quote(KEY, safe='')} b"}))
    assert told == replace(FAILURE, **{name: "a [key] b"})


def test_a_good_answer_loses_the_exact_key_wherever_it_stands() -> None:
    redactor = Redactor([KEY])
    for name, value, clean in [
        ("output", f"it is {KEY}.", "it is [key]."),
        ("reasoning", KEY, "[key]"),
        ("model", KEY, "[key]"),
        ("finish_reason", KEY, "[key]"),
        ("tool_calls", [{KEY: [f"<{KEY}>", 7, None]}], [{"[key]": ["<[key]>", 7, None]}]),
    ]:
        assert redactor.reply(replace(REPLY, **{name: value})) == replace(REPLY, **{name: clean})


def test_a_good_answer_is_otherwise_left_alone() -> None:
    reply = replace(REPLY, output=f"{KEY[:-1]} {quote(KEY, safe='')}")
    assert Redactor([KEY]).reply(reply) is reply


def test_of_a_short_key_only_its_header_is_taken_out() -> None:
    """A dummy key must not eat words; but who echoes the header gives the key away."""
    redactor = Redactor(["test"])
    assert redactor.text("a test of Bearer test") == "a test of Bearer [key]"
    failure = Failure("permanent", "invalid_api_key", "nope Bearer test")
    assert redactor.failure(failure).message == "nope Bearer [key]"


@given(st.data())
def test_the_quick_look_misses_nothing_that_the_search_finds(data: st.DataObject) -> None:
    """Escapes of any kind, cut or whole, stand around and inside the key and its other spellings."""
    noise = st.sampled_from(["%", "%2", "%25", "\\", "\\u00", "\\x", "\\x4", "&#", "&#1", "&#x", "5", "a", " ", '"'])
    forms = st.sampled_from([lambda c: c, *(partial(_in_form, n) for n in range(7))])
    spelling = data.draw(st.sampled_from([KEY, KEY.encode().hex(), b64encode(KEY.encode()).decode()]))
    told = "".join(data.draw(forms)(char) for char in spelling)
    text = "".join(data.draw(st.lists(noise, max_size=3))) + told + "".join(data.draw(st.lists(noise, max_size=3)))
    redactor = Redactor([KEY])
    searched = redactor.exact(text)
    for one in redactor._spellings:
        searched = one.removed_from(searched)
    assert redactor.text(text) == searched


def _in_form(form: int, char: str) -> str:
    code = ord(char)
    return (
        f"\\u{code:04x}",
        f"\\\\x{code:02X}",
        f"%{code:02x}",
        f"%25{code:02X}",
        f"&#{code};",
        f"&#x{code:04x};",
        f"\\{char}",
    )[form]


def test_bytes_that_are_no_text_lose_the_key_and_nothing_else() -> None:
    assert Redactor([KEY]).data(b"\xff\xfe" + KEY.encode() + b"\x80") == b"\xff\xfe[key]\x80"
    failure = replace(FAILURE, body=b"\xff" + KEY.encode(), output_so_far=f"a {KEY}")
    cleaned = Redactor([KEY]).failure(failure)
    assert (cleaned.body, cleaned.output_so_far) == (b"\xff[key]", "a [key]")


def test_a_key_in_pieces_takes_the_events_of_its_stream_with_it() -> None:
    events = f'data: {{"content":"{KEY[:9]}"}}\n\ndata: {{"content":"{KEY[9:]}"}}\n\n'
    cleaned = Redactor([KEY]).failure(replace(FAILURE, body=events, output_so_far=f"a {KEY}"))
    assert (cleaned.body, cleaned.output_so_far) == (None, "a [key]")


def test_a_key_in_pieces_takes_the_body_with_it() -> None:
    """Each event of a stream has a few characters; only the text that was joined of them shows the key."""
    pieces = "".join(f'data: {{"delta":"{KEY[start : start + 4]}"}}\n\n' for start in range(0, len(KEY), 4))
    cut = replace(FAILURE, kind="unusable", body=pieces, output_so_far=f"a {KEY} b")
    assert Redactor([KEY]).failure(cut) == replace(cut, body=None, output_so_far="a [key] b")
    assert Redactor([KEY]).failure(replace(cut, body=f"{pieces}{KEY}")).body is None
    whole = replace(cut, body=f'data: {{"delta":"{KEY}"}}')
    assert Redactor([KEY]).failure(whole).body == 'data: {"delta":"[key]"}'
    harmless = replace(cut, body=pieces[:40], output_so_far="a b")
    assert Redactor([KEY]).failure(harmless) == harmless


@pytest.mark.parametrize("member", [{KEY: 1}, {"a": KEY}, {"a": [{"b": f"<{KEY}>"}]}, [{KEY: None}]])
def test_a_key_at_any_place_of_a_tool_call_is_seen(member: object) -> None:
    cleaned = Redactor([KEY]).reply(replace(REPLY, tool_calls=[{"function": member}]))
    assert KEY not in json.dumps(cleaned.tool_calls) and "[key]" in json.dumps(cleaned.tool_calls)


@pytest.mark.parametrize("part", ['{"text": "some words\\n"}, ', "\\u00e9t\u00e9 ", "\x00\xff", "x", "\\"])
def test_a_mebibyte_without_the_key_costs_little(part: str) -> None:
    """Measured at 3 to 20 ms; the search of every spelling took 300 to 700."""
    text = (part * (2**20 // len(part) + 1))[: 2**20]
    redactor = Redactor(["sk-proj-" + "aB3_" * 37])
    begun_s = process_time()
    assert redactor.text(text) == text
    assert process_time() - begun_s < 0.15


@every_spelling
@pytest.mark.parametrize("after", ["***", '"}}', "... (truncated)", "\u2026 and more", " is wrong"])
def test_no_beginning_of_the_secret_part_is_left_anywhere(spell: Callable[[str], str], after: str) -> None:
    """What says whose key it is ("sk-") is no secret; what follows it is, from 8 characters on."""
    text = spell(LONG_KEY)
    per_char = len(text) / len(LONG_KEY)
    for end in range(int(19 * per_char) + 6, len(text), 41):
        told = Redactor([LONG_KEY]).text(f"wrong key: {text[:end]}{after}")
        assert told.startswith("wrong key: ") and PLACEHOLDER in told and told.endswith(after[-4:]), (end, told)
        assert hidden(text[int(8 * per_char) : end].strip("="), told), (end, told)


@pytest.mark.parametrize(
    "spell",
    [html.escape, lambda key: json.dumps(json.dumps(json.dumps(key)))[5:-5], str.lower, str.upper, repr],
    ids=["html", "json in json in json", "lower", "upper", "repr"],
)
def test_a_key_of_all_marks_that_are_escaped_is_taken_out(spell: Callable[[str], str]) -> None:
    key = "k5X'Ob'iW+P8\"XP>mk\\T5&SY/hk%zq<hi\\pj"
    told = Redactor([key]).text(f"<{spell(key)}>")
    assert PLACEHOLDER in told and hidden(spell(key), told), told


@pytest.mark.parametrize("name", ["content", "reasoning_content", "arguments"])
@pytest.mark.parametrize("size", [1, 9, 13])
@pytest.mark.parametrize("kept", [1.0, 0.7])
def test_a_key_in_pieces_of_any_member_takes_the_events_with_it(name: str, size: int, kept: float) -> None:
    """Only the text of an answer is told apart; its reasoning and its tools are in the events alone."""
    pieces = [KEY[start : start + size] for start in range(0, int(len(KEY) * kept), size)]
    events = "".join(f"data: {json.dumps({name: piece})}\n\n" for piece in pieces)
    for comment in ("", f": {KEY}\n\n"):
        failure = replace(FAILURE, kind="unusable", body=f"{comment}{events}", output_so_far="a")
        assert Redactor([KEY]).failure(failure).body is None
    harmless = replace(FAILURE, body=f"data: {json.dumps({name: KEY[:6]})}\n\n" * 2 + f": {KEY}\n\n")
    assert Redactor([KEY]).failure(harmless).body == str(harmless.body).replace(KEY, PLACEHOLDER)
