"""``llmbatch.toml``: where it is, whether it is to be trusted, and what it says for each option.

Names at the top are options of ``run``; ``[profiles.NAME]`` has the same names for ``--profile NAME``. ``params``,
``tasks`` and ``sim`` may be tables. Paths are relative to the file.

A file that nobody named, found in the working directory, may have come with a cloned repository or an unpacked
archive. It may not do what a stranger must not do to who runs llmbatch there: run code, loosen how a key is guarded,
or read and write files elsewhere. ``cli/settings.py`` sees to it that it sends no key to an address of its own.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmbatch.cli.options_table import Option, looks_like_key
from llmbatch.errors import OptionsError

NAME = "llmbatch.toml"
MAX_FILE_BYTES = 1 << 20
# The uid of root, who can do everything anyway.
ADMINISTRATOR = 0

# A table in the file -> the repeatable option of NAME=VALUE pairs that it stands for.
TABLES = {"params": "param", "tasks": "task", "sim": "sim"}
# Options of the simulated provider that name files.
_SIM_FILES = ("ledger", "script")
# Options of one run, not of all runs: what is read and written, what starts over or asks again for money, where
# settings come from.
OF_ONE_RUN = frozenset(
    ("output", "restart", "on_change", "generation", "dry_run", "config", "profile", "env_file", "input", "input_")
)
# What a file that nobody named may not say, and why.
_NOT_OF_STRANGERS = {
    "allow_http": "lets a key go unencrypted",
    "ca_file": "trusts further certificates",
}
_KEY_NAME = re.compile(r"(?:.*[_-])?(?:api[_-]?key|key|token|secret|password|authorization)", re.IGNORECASE)
_BODY_KEY_NAME = re.compile(r"(?:api[_-]?key|authorization)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A settings file as it was read. ``named``: the user said which file, it was not just found."""

    path: Path
    named: bool
    document: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The file as people may type it."""
        return str(self.path) if self.named or self.path.is_absolute() else f"./{self.path}"

    @property
    def is_strange(self) -> bool:
        """True for a file of the working directory that nobody named."""
        return not self.named and not self.path.is_absolute()


def find(config: str | None, environment: Mapping[str, str]) -> SettingsFile | None:
    """The file named ``config``, else that of the working directory, else that of the user's configuration.

    Raises OptionsError if it can not be read, or if others may write it.
    """
    if config is not None:
        return SettingsFile(Path(config), True, _read(Path(config), named=True))
    for path in (Path(NAME), *user_files(environment)):
        if path.is_file():
            return SettingsFile(path, False, _read(path, named=False))
    return None


def user_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where the user's own file may be (XDG Base Directory Specification); nowhere for a user without a home."""
    base = environment.get("XDG_CONFIG_HOME", "")
    if Path(base).is_absolute():
        yield Path(base) / "llmbatch" / NAME
    elif home := environment.get("HOME"):
        yield Path(home).absolute() / ".config" / "llmbatch" / NAME


def profiles_of(document: Mapping[str, Any]) -> list[str]:
    """The names of its profiles."""
    profiles = document.get("profiles")
    return list(profiles) if isinstance(profiles, dict) else []


def settings_of(file: SettingsFile, options: Mapping[str, Option], profile: str | None) -> list[dict[str, Any]]:
    """What it says for each option, of the profile first, as the command line takes it.

    The whole file is checked, the other profiles too. Raises OptionsError.
    """
    document = dict(file.document)
    profiles = document.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(one, dict) for one in profiles.values()):
        raise OptionsError(f"{file.label}: profiles are tables: [profiles.NAME]")
    reader = _Reader(file, options)
    common = reader.read(document, "")
    of_profile = {name: reader.read(table, f"[profiles.{name}] ") for name, table in profiles.items()}
    if profile is None:
        return [common]
    if profile not in of_profile:
        raise OptionsError(f"--profile {profile}: {file.label} has no such profile{_instead(profile, of_profile)}")
    return [of_profile[profile], common]


class _Reader:
    def __init__(self, file: SettingsFile, options: Mapping[str, Option]) -> None:
        self._file = file
        self._options = options
        self._folder = Path(os.path.realpath(file.path.parent))

    def read(self, table: Mapping[str, Any], place: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            where = f"{self._file.label}: {place}{key}"
            name = key.replace("-", "_")
            name, values = self._setting(name, value, where)
            found[name] = found.get(name, []) + values if isinstance(values, list) else values
        return found

    def _setting(self, name: str, value: Any, where: str) -> tuple[str, Any]:
        if name in TABLES and isinstance(value, dict):
            self._refuse_secrets(value, where)
            option = TABLES[name]
            return option, list(self._pairs(option, value, where))
        option_of = self._options.get(name)
        if option_of is None or name in OF_ONE_RUN:
            self._refuse_name(name, where)
        assert option_of is not None, "an unknown name is refused"
        why_not = "runs code" if option_of.of_code else _NOT_OF_STRANGERS.get(name)
        if self._file.is_strange and why_not is not None:
            raise OptionsError(f"{where} {why_not}: {self._way_out}")
        self._refuse_secrets(value, where)
        read = option_of.from_toml(value, where)
        if option_of.of_path and read != "-":
            return name, self._inside(read, where)
        if name in TABLES.values():
            split = (one.partition("=") for one in read)
            return name, [self._pair(name, key, text, where) if equals else key for key, equals, text in split]
        return name, self._text(read, where) if isinstance(read, str) else read

    def _pairs(self, option: str, table: Mapping[str, Any], where: str) -> Iterator[str]:
        for name, value in table.items():
            here = f"{where}.{name}"
            if not name or "=" in name or name != name.strip():
                raise OptionsError(f"{here}: a name has no = in it and no blanks around it")
            if option == "param":
                yield f"{name}={self._json(value, here)}"
            elif isinstance(value, str) or (option == "sim" and isinstance(value, bool | int | float)):
                yield self._pair(option, name, str(value), here)
            else:
                raise OptionsError(f"{here} takes text in quotes{', or @FILE' if option == 'task' else ' or a number'}")

    def _pair(self, option: str, name: str, text: str, where: str) -> str:
        """``name=text``, with the place of a file that is meant by it."""
        if option == "task":
            text = self._text(text, where)
        elif option == "sim" and name.strip() in _SIM_FILES:
            text = self._inside(text, where)
        return f"{name}={text}"

    def _json(self, value: Any, where: str) -> str:
        try:
            return json.dumps(value, ensure_ascii=False)
        except TypeError:
            raise OptionsError(f"{where}: dates and times are not JSON; write it as text in quotes") from None

    def _text(self, text: str, where: str) -> str:
        return f"@{self._inside(text[1:], where)}" if text.startswith("@") else text

    def _inside(self, text: str, where: str) -> str:
        path = str(self._folder / os.path.expanduser(text))  # noqa: PTH111  it may not be a path at all
        if self._file.is_strange and not Path(os.path.realpath(path)).is_relative_to(self._folder):
            raise OptionsError(f"{where}: {text} is outside of the directory of the file: {self._way_out}")
        return path

    @property
    def _way_out(self) -> str:
        return f"refused in a file that was only found here; if you trust it, name it: --config {self._file.path}"

    def _refuse_name(self, name: str, where: str) -> None:
        if name in OF_ONE_RUN:
            raise OptionsError(f"{where} is of one run, not of all: give it on the command line")
        if _KEY_NAME.fullmatch(name):
            raise OptionsError(f"{where}: keys do not stand in a settings file; {KEY_PLACES}")
        raise OptionsError(f"{where} is no setting{_instead(name, [*self._options, *TABLES, 'profiles'])}")

    def _refuse_secrets(self, value: Any, where: str) -> None:
        """Of any depth: names that are those of keys, and values that look like keys; none is repeated."""
        if isinstance(value, dict):
            for name, member in value.items():
                if not where.endswith("sim") and _BODY_KEY_NAME.fullmatch(name):
                    raise OptionsError(f"{where}.{name}: keys do not stand in a settings file; {KEY_PLACES}")
                self._refuse_secrets(member, f"{where}.{name}")
        elif isinstance(value, list):
            for member in value:
                self._refuse_secrets(member, where)
        elif isinstance(value, str) and looks_like_key(value):
            raise OptionsError(f"{where} looks like a key, which does not stand in a settings file; {KEY_PLACES}")


KEY_PLACES = 'write key_env = "NAME OF THE VARIABLE", or key_file = "FILE"'


def _instead(name: str, known: Any) -> str:
    """`` (did you mean …?)``, or all that is known if that is short."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; it has {', '.join(known)}" if 0 < len(known) <= 10 else ""


def _read(path: Path, *, named: bool) -> Mapping[str, Any]:
    """The document. Of the open file is asked who may write it, so that a rename in between changes nothing."""
    import tomllib

    try:
        with path.open("rb") as file:
            _refuse_shared(path, os.fstat(file.fileno()), named=named)
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise OptionsError(f"settings file {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise OptionsError(f"settings file {path} is longer than {MAX_FILE_BYTES:,} bytes")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise OptionsError(f"settings file {path} is not UTF-8 text") from None
    except RecursionError:
        raise OptionsError(f"settings file {path} is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise OptionsError(f"settings file {path} is not TOML: {error}") from None


def _refuse_shared(path: Path, status: os.stat_result, *, named: bool) -> None:
    """Who writes it decides where prompts go. As with ssh -F, who names a file answers for its owner."""
    if not stat.S_ISREG(status.st_mode):
        return
    if status.st_mode & stat.S_IWOTH:
        raise OptionsError(f"settings file {path} can be written by everybody; run: chmod o-w {path}")
    if not named and status.st_uid not in (ADMINISTRATOR, os.geteuid()):
        raise OptionsError(
            f"settings file {path} belongs to another user (uid {status.st_uid}); "
            f"if you trust it, name it: --config {path}"
        )
