"""Images in prompts: what is one, how large may it be, and how a template says where it stands.

Until its bytes are wanted, an image is a part ``{"type": "image", "path": …}`` of a message; files/images.py reads it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from llmbatch.rules.reasons import RowError, excerpt, kind_of

Part = dict[str, Any]

# The first bytes of a file. Sources: PNG (RFC 2083, 3.1), JPEG (ITU T.81, B.1.1.3), GIF (GIF89a, 17), WebP (RFC 9649).
_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)

# The largest file that an API takes. OpenAI: guide "Images and vision", 50 MB for all images of a request. Anthropic:
# guide "Vision", 5 MB as Base64. Gemini: guide "Image understanding", 20 MB for a request, with Base64 in it.
MAX_IMAGE_BYTES: Mapping[str, int] = {
    "openai-chat": 50_000_000,
    "openai-responses": 50_000_000,
    "anthropic": 5 * 2**20 * 3 // 4,
    "gemini": 20_000_000 * 3 // 4,
}


def media_type(data: bytes) -> str | None:
    """What kind of image begins like this; None if it is none of the four that all models read."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((name for beginning, name in _BEGINNINGS if data.startswith(beginning)), None)


def data_url(data: bytes) -> str:
    """A whole image as a URL. Raises RowError if it is none: a row must not be able to send any file there is."""
    kind = media_type(data)
    if kind is None:
        raise RowError("it is no PNG, JPEG, GIF or WebP image")
    return f"data:{kind};base64,{b64encode(data).decode('ascii')}"


def image_marker(source: object, nonce: str) -> str:
    """What ``image(source)`` renders to; a row that does not know ``nonce`` can not write it. Raises RowError."""
    if type(source) is not str or not source:
        given = "an empty string" if source == "" else kind_of(source)
        raise RowError(f"image() takes a path or a URL, not {given}")
    return f"[[image {nonce} {source.encode().hex()}]]"


def split_images(text: str, nonce: str) -> list[Part] | None:
    """The texts and images of a rendered text, in order; None if no image stands in it.

    Raises RowError for a marker that a filter has changed, and for a URL that is none.
    """
    if not nonce or nonce.casefold() not in text.casefold():
        return None
    parts: list[Part] = []
    pieces = re.split(rf"\[\[image {re.escape(nonce)} ([0-9a-f]+)\]\]", text)
    for number, piece in enumerate(pieces):
        if number % 2:
            parts.append(image_part(bytes.fromhex(piece).decode()))
        elif nonce.casefold() in piece.casefold():
            raise RowError("what image() gives must not be changed by a filter or cut into pieces")
        elif piece and not piece.isspace():
            parts.append({"type": "text", "text": piece})
    return parts


def image_part(source: str) -> Part:
    """The part for a path, or for a URL of http, https, data or file. Raises RowError for another URL."""
    scheme = source.partition(":")[0].lower()
    if scheme in ("http", "https", "data"):
        return {"type": "image_url", "image_url": {"url": source}}
    if scheme == "file" or "://" not in source:
        return {"type": "image", "path": source}
    raise RowError(f"an image can not be fetched from {excerpt(source)}: give a path, or a URL of http or https")


def with_image_urls(parts: list[Any], where: str) -> list[Any]:
    """``parts`` of a message, its images in one form: ``image_url``, or ``image`` with a ``path`` for a file.

    Takes also ``{"type": "image"}`` with ``url`` or with Anthropic's ``source`` (Messages API, "Image content"), of
    which a file at the provider stays as it is. Raises RowError, naming ``where``, for an image that says nothing.
    """
    return [_normalised(part, f"{where}[{number}]") for number, part in enumerate(parts)]


def _normalised(part: Part, where: str) -> Part:
    if part["type"] == "image_url":
        return _of_image_url(part, where)
    if part["type"] != "image":
        return part
    given = [name for name in ("path", "url", "source") if name in part]
    if len(given) != 1:
        raise RowError(f"{where} is an image: give it one of 'path', 'url' or 'source'")
    others = {name: value for name, value in part.items() if name not in ("type", "detail", *given)}
    return {**_image(part, given[0], where), **others}


def _of_image_url(part: Part, where: str) -> Part:
    image = part.get("image_url")
    named = image if type(image) is dict else {"url": image}
    url = named.get("url")
    if type(url) is not str or not url:
        raise RowError(f'{where} must say {{"type": "image_url", "image_url": {{"url": "…"}}}}')
    if url[:5].lower() != "file:":
        return part
    others = {name: value for name, value in part.items() if name not in ("type", "image_url")}
    return {**_with_detail({"type": "image", "path": url}, named), **others}


def _image(part: Part, given: str, where: str) -> Part:
    value = part[given]
    if given == "source":
        return _of_source(part, value, where)
    if type(value) is not str or not value:
        raise RowError(f"the {given} of {where} must be a string that is not empty, not {kind_of(value)}")
    found = image_part(value) if given == "url" else {"type": "image", "path": value}
    return _with_detail(found, part)


def _of_source(part: Part, source: Any, where: str) -> Part:
    if type(source) is dict:
        if source.get("type") == "base64" and {"media_type", "data"} <= source.keys():
            found = image_part(f"data:{source['media_type']};base64,{source['data']}")
            return _with_detail(found, part)
        if source.get("type") == "url" and type(source.get("url")) is str:
            return _with_detail(image_part(source["url"]), part)
        if source.get("type") == "file":
            return {"type": "image", "source": source}
    raise RowError(f"the source of {where} must be of the type base64, url or file, with what belongs to it")


def _with_detail(found: Part, part: Part) -> Part:
    if "detail" not in part:
        return found
    if found["type"] == "image":
        return {**found, "detail": part["detail"]}
    return {**found, "image_url": {**found["image_url"], "detail": part["detail"]}}
