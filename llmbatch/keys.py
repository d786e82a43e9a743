"""The only place that reads secrets. A Secret shows itself to nobody but the one who asks for its value."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from llmbatch.errors import OptionsError

# Longer than any key or token; headers of more than 8 KiB are refused by most servers.
MAX_KEY_FILE_BYTES = 16 * 1024
# A name of so many characters may be a key.
LONG_NAME = 20
_NOT_SHOWN = "what was given is not repeated, as it may be a key"


class Secret:
    """A key. ``repr``, ``str``, formatting and pickling never show it; ``reveal`` is the one way to the value."""

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str) -> None:
        self._value = value
        self.source = source

    def reveal(self) -> str:
        """The key itself, for the header that carries it and for nothing else."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret(from {self.source})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


def load_key(
    *, key_env: str | None, key_file: Path | None, default_env: str, environment: Mapping[str, str]
) -> Secret | None:
    """The key from where the user said it is, else from the provider's usual variable; None if there is none.

    Raises OptionsError if a place that was named holds no usable key.
    """
    if key_file is not None:
        return _checked(_read(key_file), str(key_file))
    name = key_env or default_env
    value = environment.get(name, "")
    if key_env is not None and not value.strip():
        if not _is_name(key_env):
            raise OptionsError(f"--key-env takes the name of a variable; {_NOT_SHOWN}")
        raise OptionsError(f"--key-env {key_env}: that variable is not set")
    return _checked(value, f"${name}") if value.strip() else None


def _read(path: Path) -> str:
    """The text of a key file. Never decoded strictly: a UnicodeDecodeError would carry the bytes of the file."""
    try:
        with path.open("rb") as file:
            _refuse_shared(path, os.fstat(file.fileno()))
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        if not path.suffix and len(str(path)) >= LONG_NAME and (path.name == str(path) or not path.parent.exists()):
            raise OptionsError(f"--key-file takes the name of a file; {_NOT_SHOWN}") from None
        raise OptionsError(f"--key-file {path}: {error.strerror}") from error
    text = data.decode("utf-8", "surrogateescape").strip()
    if len(data) > MAX_KEY_FILE_BYTES or any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
        raise OptionsError(f"--key-file {path} is not the text of a key")
    if (lines := len(text.splitlines())) > 1:
        raise OptionsError(f"--key-file {path} has {lines} lines; a key is one")
    return text


def _is_name(text: str) -> bool:
    """Whether it is the name of a variable, as people choose them, not a key typed in its place."""
    return text.isidentifier() and (len(text) < LONG_NAME or (text.isupper() and "_" in text))


def _refuse_shared(path: Path, status: os.stat_result) -> None:
    """Of the open file, so that a link or a rename in between changes nothing; a pipe belongs to who made it."""
    if not stat.S_ISREG(status.st_mode):
        return
    if status.st_mode & 0o077:
        raise OptionsError(f"--key-file {path} can be read by others; run: chmod 600 {shlex.quote(str(path))}")
    if status.st_uid != os.geteuid():
        raise OptionsError(f"--key-file {path} belongs to another user (uid {status.st_uid})")


def _checked(value: str, source: str) -> Secret:
    """Trimmed; zero-width spaces and smart quotes from a copied web page would be sent as they are."""
    value = value.strip()
    if not value:
        raise OptionsError(f"the key from {source} is empty")
    bad = next((position for position, char in enumerate(value, 1) if not "!" <= char <= "~"), None)
    if bad is not None:
        what = f"U+{ord(value[bad - 1]):04X}"
        raise OptionsError(
            f"the key from {source} has a character that no key has ({what}, position {bad}); copy it again"
        )
    return Secret(value, source)
