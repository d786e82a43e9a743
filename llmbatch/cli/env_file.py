"""``--env-file``: variables from a file, as if the environment had them; those that it has already stay."""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from llmbatch.errors import OptionsError

MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def load_env_file(path: Path, environment: MutableMapping[str, str]) -> None:
    """Put its variables where the environment has none of that name. No value is ever part of an error.

    ``KEY=VALUE`` lines as dotenv files have them: ``export``, quotes and # comments; nothing is interpolated. A file
    with a variable whose name ends like that of a key is to be its owner's alone, as a ``--key-file`` is.
    Raises OptionsError.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise OptionsError(f"--env-file {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise OptionsError(f"--env-file {path} is longer than {MAX_FILE_BYTES:,} bytes")
    variables = dict(_variables(path, data))
    if any(name.upper().endswith(_SECRET) for name in variables):
        _refuse_shared(path, status)
    for name, value in variables.items():
        environment.setdefault(name, value)


def _variables(path: Path, data: bytes) -> Iterator[tuple[str, str]]:
    from dotenv.parser import parse_stream

    text = data.decode("utf-8-sig", "surrogateescape")  # a UnicodeDecodeError would carry the bytes of the file
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise OptionsError(f"--env-file {path} is not UTF-8 text")
    for binding in parse_stream(io.StringIO(text)):
        skipped = binding.original.string[: -len(binding.original.string.lstrip())].count("\n")
        where = f"--env-file {path}, line {binding.original.line + skipped}"
        if binding.error or (binding.key is not None and binding.value is None):
            raise OptionsError(f"{where}: write NAME=VALUE; what stands there is not repeated, as it may be a key")
        if binding.key is None or binding.value is None:
            continue  # a comment
        if _NAME.fullmatch(binding.key) is None:
            raise OptionsError(f"{where}: that is no name of a variable; it is not repeated, as it may be a key")
        if "\0" in binding.value:
            raise OptionsError(f"{where}: {binding.key} has a NUL, which no variable can hold")
        yield binding.key, binding.value


def _refuse_shared(path: Path, status: os.stat_result) -> None:
    """Of the open file; a pipe belongs to who made it."""
    if not stat.S_ISREG(status.st_mode):
        return
    if status.st_mode & 0o077:
        raise OptionsError(
            f"--env-file {path} holds a key and can be read by others; run: chmod 600 {shlex.quote(str(path))}"
        )
    if status.st_uid != os.geteuid():
        raise OptionsError(f"--env-file {path} holds a key and belongs to another user (uid {status.st_uid})")
