"""Keys: found where the user said, refused when they can not be right, shown to nobody."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path

import orjson
import pytest

from llmbatch.errors import OptionsError
from llmbatch.keys import MAX_KEY_FILE_BYTES, Secret, load_key

KEY = "sk-canary-0123456789"


def load(key_env: str | None = None, key_file: Path | None = None, **environment: str) -> Secret | None:
    return load_key(key_env=key_env, key_file=key_file, default_env="OPENAI_API_KEY", environment=environment)


def key_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_usual_variable() -> None:
    secret = load(OPENAI_API_KEY=KEY)
    assert secret is not None and secret.reveal() == KEY and secret.source == "$OPENAI_API_KEY"


@pytest.mark.parametrize("environment", [{}, {"OPENAI_API_KEY": ""}, {"OPENAI_API_KEY": "  \n"}])
def test_no_key_is_none(environment: dict[str, str]) -> None:
    assert load(**environment) is None


def test_a_named_variable_wins_and_must_be_set() -> None:
    secret = load("OTHER", OTHER=KEY, OPENAI_API_KEY="sk-wrong")
    assert secret is not None and secret.reveal() == KEY
    with pytest.raises(OptionsError, match="OTHER"):
        load("OTHER", OPENAI_API_KEY=KEY)


@pytest.mark.parametrize("content", [KEY.encode(), KEY.encode() + b"\n", b" " + KEY.encode() + b"\r\n\n"])
def test_a_key_file(tmp_path: Path, content: bytes) -> None:
    secret = load(key_file=key_file(tmp_path, content), OPENAI_API_KEY="sk-wrong")
    assert secret is not None and secret.reveal() == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(OptionsError, match="chmod 600"):
        load(key_file=key_file(tmp_path, KEY.encode(), mode))


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_file_for_its_owner_alone_is_read(tmp_path: Path, mode: int) -> None:
    assert load(key_file=key_file(tmp_path, KEY.encode(), mode)) is not None


def test_the_mode_that_counts_is_that_of_the_file_behind_a_link(tmp_path: Path) -> None:
    path, link = key_file(tmp_path, KEY.encode(), 0o640), tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OptionsError, match="chmod 600"):
        load(key_file=link)
    path.chmod(0o600)
    assert load(key_file=link) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path, KEY.encode())
    os.chown(path, 65534, -1)
    with pytest.raises(OptionsError, match="another user"):
        load(key_file=path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe\x00", "not the text of a key"),
        (b"a\x00b", "not the text of a key"),
        (b"sk-canary\xff", "not the text of a key"),
        (b"k" * 100_000, "not the text of a key"),
        (KEY.encode() + b"\n# the old one\n" + KEY.encode(), "has 3 lines"),
        (KEY.encode() + b"\r\nmore", "has 2 lines"),
        ("sk-\u200bcanary".encode(), r"U\+200B, position 4"),
    ],
)
def test_a_key_file_without_a_key_is_refused_without_showing_it(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(OptionsError, match=words) as error:
        load(key_file=key_file(tmp_path, content))
    seen: list[str] = []
    cause: BaseException | None = error.value
    while cause is not None:
        seen.append(repr(cause))
        cause = cause.__cause__ or cause.__context__
    assert not [text for text in seen if "canary" in text or "kkkk" in text]


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(OptionsError, match=str(path)):
            load(key_file=path)


def test_a_key_from_a_pipe(tmp_path: Path) -> None:
    """``--key-file <(pass show openai)``"""
    reader, writer = os.pipe()
    os.write(writer, KEY.encode() + b"\n")
    os.close(writer)
    try:
        secret = load(key_file=Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
    assert secret is not None and secret.reveal() == KEY


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("sk-\u200bcanary", "U\\+200B, position 4"),
        ("\ufeffsk-canary", "U\\+FEFF, position 1"),
        ("\u201csk-canary\u201d", "U\\+201C, position 1"),
        ("sk-can ary", "U\\+0020"),
        ("sk-can\nary", "U\\+000A"),
        ("sk-can\r\nX-Evil: 1", "U\\+000D"),
        ("sk-canäry", "U\\+00E4"),
        ("sk-\x7f", "U\\+007F"),
    ],
)
def test_a_character_that_no_key_has_is_named_without_showing_the_key(value: str, what: str) -> None:
    with pytest.raises(OptionsError, match=what) as error:
        load(OPENAI_API_KEY=value)
    assert "canary" not in str(error.value) and "can" not in str(error.value).replace("a character", "")


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = load(OPENAI_API_KEY=KEY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", f"{secret:>99}", "%s %r" % (secret, secret)]  # noqa: UP031
    assert not [text for text in shown if "canary" in text]
    leaks = (pickle.dumps, copy.deepcopy, copy.copy, json.dumps, orjson.dumps, Secret.__getstate__, vars)
    for leak in leaks:
        with pytest.raises(TypeError) as error:
            leak(secret)  # type: ignore[operator]
        assert "canary" not in str(error.value)
    assert not hasattr(secret, "__dict__")


def test_a_secret_says_where_it_came_from(tmp_path: Path) -> None:
    path = key_file(tmp_path, KEY.encode())
    for secret, source in ((load(OPENAI_API_KEY=KEY), "$OPENAI_API_KEY"), (load(key_file=path), str(path))):
        assert secret is not None and secret.source == source
        assert {repr(secret), str(secret), f"{secret}", f"{secret:>99}"} == {f"Secret(from {source})"}
        for copied in (pickle.dumps, copy.copy, Secret.__getstate__):
            with pytest.raises(TypeError, match=r"^a Secret is not pickled$"):
                copied(secret)


def test_every_printable_character_may_be_in_a_key() -> None:
    key = "".join(map(chr, range(0x21, 0x7F)))
    secret = load(OPENAI_API_KEY=key)
    assert secret is not None and secret.reveal() == key


def test_the_command_that_mends_a_shared_key_file_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "my keys").mkdir()
    path = key_file(tmp_path / "my keys", KEY.encode(), 0o644)
    with pytest.raises(OptionsError) as error:
        load(key_file=path)
    assert str(error.value) == f"--key-file {path} can be read by others; run: chmod 600 '{path}'"


def test_of_what_never_ends_no_more_is_read_than_a_key_can_have(tmp_path: Path) -> None:
    secret = load(key_file=key_file(tmp_path, b"k" * MAX_KEY_FILE_BYTES))
    assert secret is not None and len(secret.reveal()) == 16 * 1024
    reader, writer = os.pipe()
    os.write(writer, b"k" * (MAX_KEY_FILE_BYTES + 1))  # and the other end stays open
    try:
        with pytest.raises(OptionsError, match="is not the text of a key"):
            load(key_file=Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    "typed", [KEY, "gsk_X1Dp4xsem7kaLgmi6prS", "AKIAIOSFODNN7EXAMPLE", "k/a+b==", "JqpzMzJmqg7afiQeSwfl"]
)
def test_a_key_typed_where_a_name_belongs_is_not_repeated(typed: str) -> None:
    with pytest.raises(OptionsError, match="may be a key") as error:
        load(typed)
    assert typed not in str(error.value)


@pytest.mark.parametrize("name", ["MY_KEY", "my_key", "Key2", "ANTHROPIC_API_KEY_OF_2026"])
def test_the_name_of_a_variable_that_is_not_set_is_told(name: str) -> None:
    with pytest.raises(OptionsError, match=name):
        load(name)


@pytest.mark.parametrize("typed", [KEY, "sk-proj-" + "aB3_" * 39, "gsk_X1Dp4xs/em7kaLgmi6prS=="])
def test_a_key_typed_where_a_file_belongs_is_not_repeated(typed: str) -> None:
    with pytest.raises(OptionsError, match="may be a key") as error:
        load(key_file=Path(typed))
    assert typed not in str(error.value)
