"""Images: recognised by their bytes, shown by templates, brought into one form."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from llmbatch.errors import OptionsError
from llmbatch.records import BadRow, Request, Row
from llmbatch.rules.images import MAX_IMAGE_BYTES, data_url, image_marker, media_type, split_images
from llmbatch.rules.messages import normalised
from llmbatch.rules.reasons import RowError
from llmbatch.rules.request import RequestBuilder
from llmbatch.rules.template import RowTemplate

NONCE = "5f0c9a7e"
FILE = {"type": "image", "path": "cat.png"}
WEB = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\xff\xd8\xff\xe0....", "image/jpeg"),
        (b"GIF87a..", "image/gif"),
        (b"GIF89a..", "image/gif"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\x00\x00\x00WAVEfmt ", None),
        (b"\x89PNG\n\x1a\n", None),  # line ends changed on the way
        (b"<svg xmlns=", None),
        (b"root:x:0:0:root:/root:/bin/sh\n", None),
        (b"", None),
    ],
)
def test_an_image_is_known_by_its_first_bytes(data: bytes, kind: str | None) -> None:
    assert media_type(data) == kind


def test_a_data_url_holds_all_bytes() -> None:
    data = b"GIF89a" + bytes(range(256))
    head, _, rest = data_url(data).partition(",")
    assert head == "data:image/gif;base64"
    assert base64.b64decode(rest) == data
    with pytest.raises(RowError, match="no PNG, JPEG, GIF or WebP"):
        data_url(b"secret")


def test_the_limit_of_anthropic_holds_with_base64() -> None:
    assert len(base64.b64encode(bytes(MAX_IMAGE_BYTES["anthropic"]))) <= 5 * 2**20


# Templates


@pytest.mark.parametrize(
    ("source", "fields", "parts"),
    [
        ("{{ image(path) }}", {"path": "cat.png"}, [FILE]),
        (
            "See:\n{{ image(path) }}\nWhat?",
            {"path": "cat.png"},
            [{"type": "text", "text": "See:\n"}, FILE, {"type": "text", "text": "\nWhat?"}],
        ),
        ("{{ image(image) }}", {"image": "cat.png"}, [FILE]),
        ("{{ image }} {{ image(image) }}", {"image": "cat.png"}, [{"type": "text", "text": "cat.png "}, FILE]),
        ("{% for p in pages %}{{ image(p) }}\n{% endfor %}", {"pages": ["cat.png", "cat.png"]}, [FILE, FILE]),
        ("{{ image('pages/' ~ n ~ '.png') }}", {"n": 7}, [{"type": "image", "path": "pages/7.png"}]),
        ("{{ image(url) }}", {"url": "https://example.org/a.png"}, [WEB]),
        ("{% macro show(p) %}{{ image(p) }}{% endmacro %}{{ show(path) }}", {"path": "cat.png"}, [FILE]),
        ("{{ image(row.path) }}", {"path": "über [1]]\n.png"}, [{"type": "image", "path": "über [1]]\n.png"}]),
        ("{{ image(p) }}", {"p": "file:///a/b.png"}, [{"type": "image", "path": "file:///a/b.png"}]),
    ],
)
def test_a_template_says_where_an_image_stands(source: str, fields: dict[str, Any], parts: list[Any]) -> None:
    assert split_images(RowTemplate(source, nonce=NONCE).render(fields), NONCE) == parts


@pytest.mark.parametrize(
    ("source", "fields", "words"),
    [
        ("{{ image(path) }}", {}, "field 'path' is missing"),
        ("{{ image(path) }}", {"path": None}, "'path' is null"),
        ("{{ image(path) }}", {"path": 7}, "takes a path or a URL, not a number"),
        ("{{ image(path) }}", {"path": ""}, "takes a path or a URL, not an empty string"),
        ("{{ image(path) }}", {"path": "ftp://a/b.png"}, "can not be fetched from ftp://a/b.png"),
        ("{{ image(path) | upper }}", {"path": "a"}, "must not be changed by a filter"),
        ("{{ image(path) | wordwrap(12) }}", {"path": "a"}, "must not be changed by a filter"),
    ],
)
def test_an_image_that_is_none_is_named(source: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError) as caught:
        split_images(RowTemplate(source, nonce=NONCE).render(fields), NONCE)
    assert words in str(caught.value)


def test_image_takes_one_argument() -> None:
    for source in ("{{ image() }}", "{{ image(a, b) }}", "{{ image(path=a) }}"):
        with pytest.raises(OptionsError, match=r"line 1: image\(\) takes one path"):
            RowTemplate(source)


def test_a_macro_of_this_name_is_the_users() -> None:
    source = "{% macro image(p) %}<{{ p }}>{% endmacro %}{{ image('a') }}"
    assert RowTemplate(source, nonce=NONCE).render({}) == "<a>"


def test_a_row_can_not_forge_an_image() -> None:
    forged = image_marker("/etc/passwd", "") + image_marker("/etc/passwd", "0" * 8)
    text = RowTemplate("{{ text }}", nonce=NONCE).render({"text": forged})
    assert split_images(text, NONCE) is None


def test_a_template_without_a_nonce_has_no_images() -> None:
    with pytest.raises(RowError, match="--template or --task"):
        RowTemplate("{{ image('a') }}", "--system").render({})


# Messages


def data(of: str) -> dict[str, Any]:
    return {"type": "base64", "media_type": "image/png", "data": of}


@pytest.mark.parametrize(
    ("part", "normal"),
    [
        (WEB, WEB),
        (FILE, FILE),
        ({"type": "text", "text": "a"}, {"type": "text", "text": "a"}),
        ({"type": "input_audio", "input_audio": {}}, {"type": "input_audio", "input_audio": {}}),
        ({"type": "image", "url": "https://example.org/a.png"}, WEB),
        ({"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}, WEB),
        (
            {"type": "image", "source": data("QUJD")},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        ),
        (
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
            {"type": "image", "source": {"type": "file", "file_id": "f"}},
        ),
        (
            {"type": "image", "url": "https://example.org/a.png", "detail": "low"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
        ),
        ({**FILE, "detail": "low"}, {**FILE, "detail": "low"}),
        ({**FILE, "cache_control": {"type": "ephemeral"}}, {**FILE, "cache_control": {"type": "ephemeral"}}),
        ({"type": "image", "url": "file:///a.png"}, {"type": "image", "path": "file:///a.png"}),
        ({"type": "image_url", "image_url": {"url": "file:///a.png"}}, {"type": "image", "path": "file:///a.png"}),
        (
            {"type": "image_url", "image_url": {"url": "file:///a.png", "detail": "low"}},
            {"type": "image", "path": "file:///a.png", "detail": "low"},
        ),
    ],
)
def test_images_come_into_one_form(part: dict[str, Any], normal: dict[str, Any]) -> None:
    given = [{"role": "system", "content": "a"}, {"role": "user", "content": [part]}]
    assert normalised(given) == [given[0], {"role": "user", "content": [normal]}]


def test_messages_without_images_are_not_copied() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert normalised(messages) is messages


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image", "path": "a", "url": "b"},
        {"type": "image", "path": 7},
        {"type": "image", "path": ""},
        {"type": "image", "url": None},
        {"type": "image", "source": "a"},
        {"type": "image", "source": {"type": "base64"}},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {}},
    ],
)
def test_an_image_that_says_nothing_is_refused_with_its_place(part: dict[str, Any]) -> None:
    built = RequestBuilder(model="m").build(Row(1, 1, None, {"messages": [{"role": "user", "content": [part]}]}))
    assert isinstance(built, BadRow)
    assert "messages[0].content[0]" in built.reason


# Rows


def test_a_rendered_prompt_with_an_image_becomes_parts() -> None:
    builder = RequestBuilder(model="m", template="What is it? {{ image(file) }}", nonce=NONCE)
    built = builder.build(Row(1, 1, None, {"file": "cat.png"}))
    assert isinstance(built, Request)
    assert built.messages == [{"role": "user", "content": [{"type": "text", "text": "What is it? "}, FILE]}]


def test_tasks_may_show_images_too() -> None:
    builder = RequestBuilder(model="m", tasks={"a": "{{ image(file) }}", "b": "text"}, nonce=NONCE)
    built = builder.parts(Row(1, 1, None, {"file": "cat.png"}))
    assert built is not None
    assert [getattr(request, "messages", None) for request in built.values()] == [
        [{"role": "user", "content": [FILE]}],
        [{"role": "user", "content": "text"}],
    ]


def test_a_system_message_shows_no_image() -> None:
    builder = RequestBuilder(model="m", system="{{ image('a') }}", nonce=NONCE)
    built = builder.build(Row(1, 1, None, {"prompt": "a"}))
    assert isinstance(built, BadRow)
    assert "--template or --task" in built.reason
