"""Flag, then environment, then profile, then file, then default; and what a settings file may not say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llmbatch.cli import execute
from llmbatch.cli.app import app
from llmbatch.options import RunOptions

KEY = "sk-canary-3f1c9d7e2b5a6c8d"
Ran = Callable[..., RunOptions]


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, ["run", "in.jsonl", *args])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user with a home of their own, and no key."""
    for name in [name for name in os.environ if name.startswith("LLMBATCH_") or name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "in.jsonl").write_text('"prompt"\n')
    return work


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """What a run would be started with."""
    seen: list[RunOptions] = []

    def note(options: RunOptions, _: object) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(execute, "run_command", note)

    def run(*args: str) -> RunOptions:
        done = invoke(*args)
        assert done.exit_code == 0, done.output
        return seen[-1]

    return run


def refused(*args: str) -> str:
    done = invoke(*args)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    return done.stderr


def write(text: str, path: Path = Path("llmbatch.toml")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def users_file(text: str) -> Path:
    return write(text, Path(os.environ["HOME"]) / ".config" / "llmbatch" / "llmbatch.toml")


def test_each_place_wins_over_the_ones_below_it(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ran("-m", "m").rpm is None
    write('model = "sim/x"\nrpm = 1\n[profiles.fast]\nrpm = 2\n')
    assert ran().rpm == 1
    assert ran("--profile", "fast").rpm == 2
    monkeypatch.setenv("LLMBATCH_PROFILE", "fast")
    assert ran().rpm == 2
    monkeypatch.setenv("LLMBATCH_RPM", "3")
    assert ran().rpm == 3
    assert ran("--rpm", "4").rpm == 4
    monkeypatch.setenv("LLMBATCH_RPM", "")
    assert ran().rpm == 2


@pytest.mark.parametrize(
    ("toml", "field", "value"),
    [
        ("concurrency = 7", "concurrency", 7),
        ('concurrency = "auto"', "concurrency", None),
        ("row-deadline = 90", "row_deadline_s", 90.0),
        ('row_deadline = "1.5m"', "row_deadline_s", 90.0),
        ("rpm = 10", "rpm", 10.0),
        ("rpm = 0.5", "rpm", 0.5),
        ("stream = true", "stream", True),
        ("stream = false", "stream", False),
        ("limit = 5", "limit", 5),
        ('max_failures = "5%"', "max_failures", "5%"),
        ("max_failures = 5", "max_failures", "5"),
        ('order = "completion"', "order", "completion"),
        ('param = ["temperature=0", "stop=x"]', "params", {"temperature": 0, "stop": "x"}),
        (
            '[params]\nseed = 7\nstop = ["a", "b"]\nname = "7"\ndeep = {a = {b = true}}',
            "params",
            {"seed": 7, "stop": ["a", "b"], "name": "7", "deep": {"a": {"b": True}}},
        ),
        ('[tasks]\nlabel = "Label {{ a=b }}"\nshort = "S"', "tasks", {"label": "Label {{ a=b }}", "short": "S"}),
        ('task = ["one=1", "two=2"]', "tasks", {"one": "1", "two": "2"}),
        ('[sim]\nrpm = 500\nlatency = "0.1"', "sim", {"rpm": "500", "latency": "0.1"}),
        ('sim = ["fault=429=0.1", "fault=500=0.1"]', "sim", {"fault": "429=0.1,500=0.1"}),
    ],
)
def test_what_a_file_may_say(ran: Ran, toml: str, field: str, value: Any) -> None:
    write(f'model = "sim/x"\n{toml}\n')
    assert getattr(ran(), field) == value


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("MODEL", "sim/y", "model", "sim/y"),
        ("STREAM", "1", "stream", True),
        ("STREAM", "off", "stream", False),
        ("CONCURRENCY", "7", "concurrency", 7),
        ("TIMEOUT", "2m", "timeouts", None),
        ("PARAM", "temperature=0\nstop=a b", "params", {"temperature": 0, "stop": "a b"}),
        ("INCLUDE_INPUT", "yes", "include_input", True),
    ],
)
def test_what_a_variable_may_say(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: Any
) -> None:
    write('model = "sim/x"\nstream = true\n')
    monkeypatch.setenv(f"LLMBATCH_{variable}", text)
    options = ran()
    assert options.timeouts.total_s == 120 if variable == "TIMEOUT" else getattr(options, field) == value


@pytest.mark.parametrize("between", [",", " ", ", ", "\n"])
def test_a_variable_may_name_several_addresses_and_keys(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    here = "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"
    monkeypatch.setenv("LLMBATCH_BASE_URL", between.join(here))
    monkeypatch.setenv("LLMBATCH_KEY_ENV", between.join(("K1", "K2")))
    options = ran("-m", "m")
    assert (options.base_urls, options.key_envs) == (here, ("K1", "K2"))


def test_pairs_are_looked_for_name_by_name(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    write('model = "sim/x"\n[params]\na = 1\nb = 1\nc = 1\nd = 1\n[profiles.p.params]\nb = 2\nc = 2\nd = 2\n')
    monkeypatch.setenv("LLMBATCH_PARAM", "c=3\nd=3")
    assert ran("--profile", "p", "-p", "d=4", "-p", "e=4").params == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 4}


@pytest.mark.parametrize(
    ("toml", "flags", "expected"),
    [
        ('template = "T"', ("--task", "a=A"), {"template": None, "tasks": {"a": "A"}}),
        ('[tasks]\na = "A"', ("-t", "T"), {"template": "T", "tasks": {}}),
        ('[tasks]\na = "A"', ("--task", "b=B"), {"tasks": {"b": "B"}}),
        ('key_file = "k"', ("--key-env", "K"), {"key_env": ["K"], "key_file": None}),
        ('base_url = "http://127.0.0.1:1/v1"', ("-m", "sim/y"), {"base_url": None, "model": "sim/y"}),
        ("[sim]\nrpm = 5", ("-m", "m", "--base-url", "http://127.0.0.1:1/v1"), {"sim": {}}),
    ],
)
def test_a_higher_place_takes_back_what_can_not_stand_beside_it(
    ran: Ran, toml: str, flags: tuple[str, ...], expected: dict[str, Any]
) -> None:
    write(f'model = "sim/x"\n{toml}\n')
    options = ran(*flags)
    assert {name: getattr(options, name) for name in expected} == expected


def test_quiet_of_a_higher_place_takes_back_verbose(ran: Ran) -> None:
    write('model = "sim/x"\nverbose = true\n')
    ran("-q")


def test_one_file_is_read_the_one_that_is_nearest(ran: Ran, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    users_file('model = "sim/user"\nrpm = 5\n')
    assert ran().model == "sim/user"
    write('model = "sim/xdg"\n', tmp_path / "xdg" / "llmbatch" / "llmbatch.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert ran().model == "sim/xdg"
    write('model = "sim/here"\n')
    assert (ran().model, ran().rpm) == ("sim/here", None)
    named = str(write('model = "sim/named"\n', Path("other.toml")))
    assert ran("--config", named).model == "sim/named"
    monkeypatch.setenv("LLMBATCH_CONFIG", named)
    assert ran().model == "sim/named"
    assert "no.toml: No such file" in refused("--config", "no.toml")


def test_paths_are_relative_to_the_file(ran: Ran, folder: Path) -> None:
    write("Rate {{ prompt }}", Path("conf/prompts/rate.txt"))
    write("Be kind", Path("conf/kind.txt"))
    (Path(os.environ["HOME"])).mkdir()
    write(
        'model = "sim/x"\ntemplate = "@prompts/rate.txt"\nsystem = "@kind.txt"\n'
        'key_file = "~/key"\nca_file = "ca.pem"\n',
        Path("conf/a.toml"),
    )
    options = ran("--config", "conf/a.toml")
    assert (options.template, options.system) == ("Rate {{ prompt }}", "Be kind")
    assert options.key_file == Path(os.environ["HOME"]) / "key"
    assert options.ca_file == folder / "conf" / "ca.pem"
    write('model = "sim/x"\n[tasks]\nrate = "@prompts/rate.txt"\n', Path("conf/a.toml"))
    assert ran("--config", "conf/a.toml").tasks == {"rate": "Rate {{ prompt }}"}


BAD = {
    "unknown": ('modle = "x"', "./llmbatch.toml: modle is no setting; did you mean model?"),
    "unknown_in_a_profile": ("[profiles.a]\nrmp = 1", "[profiles.a] rmp is no setting; did you mean rpm?"),
    "number_as_text": ('rpm = "fast"', "rpm takes a number, not 'fast'"),
    "text_as_number": ("model = 5", "model takes text in quotes, not 5"),
    "flag_as_text": ('stream = "yes"', "stream takes true or false, not 'yes'"),
    "number_as_flag": ("rpm = true", "rpm takes a number, not True"),
    "fraction": ("limit = 1.5", "limit takes a whole number, not 1.5"),
    "date": ("rpm = 2026-01-01", "rpm takes a number"),
    "choice": ('order = "sorted"', "order takes input or completion, not 'sorted'"),
    "list": ("param = [1]", "param: write a list of texts"),
    "table": ("model = {a = 1}", "model takes text in quotes"),
    "date_in_params": ("[params]\nwhen = 2026-01-01", "params.when: dates and times are not JSON"),
    "name_in_params": ('[params]\n"a=b" = 1', "no = in it"),
    "number_as_task": ("[tasks]\na = 1", "tasks.a takes text in quotes, or @FILE"),
    "list_in_sim": ("[sim]\nfault = [1]", "sim.fault takes text in quotes or a number"),
    "profiles_not_tables": ("profiles = 1", "[profiles.NAME]"),
    "output": ('output = "o.jsonl"', "output is of one run, not of all"),
    "restart": ("restart = true", "restart is of one run"),
    "on_change": ('on-change = "rerun"', "is of one run"),
    "not_toml": ("rpm = ", "is not TOML"),
    "deep": ("rpm = " + "[" * 5000, "is "),
    "key": (f'api_key = "{KEY}"', 'key_env = "NAME'),
    "token": (f'token = "{KEY}"', "keys do not stand in a settings file"),
    "key_in_params": (f'[params]\nAuthorization = "Bearer {KEY}"', "params.Authorization: keys do not stand"),
    "value_like_a_key": (f'system = "Use {KEY}"', "system looks like a key"),
    "key_in_a_list": (f'param = ["user={KEY}"]', "param looks like a key"),
    "key_as_key_env": (f'key_env = "{KEY}"', "key_env looks like a key"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_file_may_not_say_is_refused_with_its_place(case: str) -> None:
    toml, words = BAD[case]
    write(toml)
    said = refused("-m", "sim/x")
    assert "llmbatch.toml" in said and words in said
    assert "canary" not in said


def test_other_words_that_have_key_in_them_are_none(ran: Ran) -> None:
    write('model = "sim/x"\n[params]\nprompt_cache_key = "reviews"\nmax_tokens = 5\n[sim]\napi-key = "made-up"\n')
    assert ran().params == {"prompt_cache_key": "reviews", "max_tokens": 5}


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("LLMBATCH_RMP", "5", "did you mean LLMBATCH_RPM?"),
        ("LLMBATCH_ZZZZZZ", "5", "--help lists them"),
        ("LLMBATCH_API_KEY", KEY, "LLMBATCH_KEY_ENV"),
        ("LLMBATCH_RPM", "fast", "takes a number, not 'fast'"),
        ("LLMBATCH_RPM", KEY, "not repeated"),
        ("LLMBATCH_STREAM", "maybe", "takes true or false"),
        ("LLMBATCH_ORDER", "sorted", "input or completion"),
        ("LLMBATCH_RESTART", "1", "give --restart on the command line"),
        ("LLMBATCH_PROFILE", "fast", "there is no llmbatch.toml"),
    ],
)
def test_what_a_variable_may_not_say(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, words: str) -> None:
    monkeypatch.setenv(variable, text)
    said = refused("-m", "sim/x")
    assert variable.removeprefix("LLMBATCH_PROFILE") in said and words in said
    assert "canary" not in said


def test_an_unknown_profile_names_the_ones_there_are() -> None:
    write("[profiles.fast]\nrpm = 5\n[profiles.cheap]\nrpm = 1\n")
    assert "did you mean cheap?" in refused("-m", "sim/x", "--profile", "cheep")
    assert "it has fast, cheap" in refused("-m", "sim/x", "--profile", "zzz")


def test_help_is_given_whatever_the_file_says() -> None:
    write("nonsense")
    assert CliRunner().invoke(app, ["run", "--help"]).exit_code == 0


def test_it_is_said_where_settings_come_from(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "run_command", lambda *_: 0)
    write('model = "m"\nrpm = 1\nbase_url = "http://127.0.0.1:1/v1"\nquiet = true\n[profiles.p]\ntimeout = 5\n')
    monkeypatch.setenv("LLMBATCH_RPM", "3")
    assert invoke("--profile", "p").stderr.splitlines() == [
        "llmbatch: settings from the environment: LLMBATCH_RPM",
        "llmbatch: settings from ./llmbatch.toml, profile p: timeout",
        "llmbatch: settings from ./llmbatch.toml: base_url = http://127.0.0.1:1/v1, model, quiet",
    ]
    assert invoke("-q").stderr == ""
    told = invoke("--progress", "json").stderr.splitlines()
    assert [json.loads(line)["event"] for line in told] == ["notice", "notice"]


def test_a_file_that_everybody_can_write_is_refused() -> None:
    path = write("rpm = 5\n")
    path.chmod(0o666)
    assert "chmod o-w" in refused("-m", "sim/x")
    assert "chmod o-w" in refused("-m", "sim/x", "--config", "llmbatch.toml")


def test_a_found_file_of_another_user_is_refused(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write('model = "sim/x"\n')
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    monkeypatch.setattr("llmbatch.cli.settings_file.ADMINISTRATOR", -1)
    assert "belongs to another user" in refused()
    assert ran("--config", "llmbatch.toml").model == "sim/x"


STRANGE = {
    "before": ('before = "evil:run"', "runs code"),
    "after": ('after = "evil:run"', "runs code"),
    "hook_in_a_profile": ('[profiles.a]\nafter = "evil:run"', "runs code"),
    "allow_http": ("allow_http = true", "unencrypted"),
    "ca_file": ('ca_file = "ca.pem"', "certificates"),
    "template_elsewhere": ('template = "@../secret.txt"', "outside of the directory"),
    "system_of_home": ('system = "@~/.ssh/id_ed25519"', "outside of the directory"),
    "task_elsewhere": ('[tasks]\na = "@/etc/passwd"', "outside of the directory"),
    "task_list_elsewhere": ('task = ["a=@/etc/passwd"]', "outside of the directory"),
    "summary_elsewhere": ('summary_json = "../sum.json"', "outside of the directory"),
    "ledger_elsewhere": ('[sim]\nledger = "../.bashrc"', "outside of the directory"),
    "ledger_list_elsewhere": ('sim = [" ledger =/tmp/x"]', "outside of the directory"),
    "schema_like_text": ('model = "@/etc/passwd"', "outside of the directory"),
    "link_elsewhere": ('template = "@link"', "outside of the directory"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_file_nobody_named_may_not_do_what_a_stranger_must_not(case: str) -> None:
    toml, words = STRANGE[case]
    Path("link").symlink_to("/etc/passwd")
    write(toml)
    said = refused("-m", "sim/x")
    assert words in said and "--config llmbatch.toml" in said


FAR = "https://gateway.example/v1"


@pytest.mark.parametrize(
    ("toml", "flags", "words"),
    [
        (f'base_url = "{FAR}"', (), "--key-env NAME"),
        (f'base_url = "{FAR}"\nkey_env = "OPENAI_API_KEY"', (), "--key-env NAME"),
        (f'base_url = "{FAR}"\nkey_env = "AWS_SECRET"', (), "--key-env NAME"),
        (f'base_url = "{FAR}"\nkey_env = "OPENAI_API_KEY"', ("--key-env", "OPENAI_API_KEY"), None),
        (f'base_url = "{FAR}"\nkey_env = "OPENAI_API_KEY"', ("--config", "llmbatch.toml"), None),
        (f'base_url = "{FAR}"', ("--config", "llmbatch.toml"), "was not named for it"),
        (f'base_url = "{FAR}"', ("--base-url", "https://typed.example/v1"), None),
        ('base_url = "http://gpu.lan:8000/v1"', (), None),  # no key goes over http
        ('base_url = "http://127.0.0.1:8000/v1"', (), None),
        ('base_url = "http://127.0.0.1:8000/v1"\nkey_env = "OPENAI_API_KEY"', (), None),
        ('base_url = "https://api.openai.com/v1"', (), None),
        ('base_url = "https://api.openai.com.evil.example/v1"', (), "--key-env NAME"),
        ('base_url = "https://me.api.openai.com/v1"', (), "--key-env NAME"),
        ('base_url = "http://api.openai.com/v1"\nkey_env = "OPENAI_API_KEY"', (), "--key-env NAME"),
    ],
)
def test_an_address_from_a_file_gets_no_key_that_was_not_meant_for_it(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, toml: str, flags: tuple[str, ...], words: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(toml)
    if words is None:
        ran("-m", "m", *flags)
    else:
        assert words in refused("-m", "m", *flags)


def test_an_address_from_a_file_without_any_key_to_lose_is_used(ran: Ran) -> None:
    write(f'base_url = "{FAR}"')
    assert ran("-m", "m").base_urls == (FAR,)


@pytest.mark.parametrize(
    ("toml", "flags", "key_env"),
    [
        ('model = "openai/x"', ("-m", "openai/y"), "MINE"),
        ('model = "openai/x"', ("-m", "gpt-5"), "MINE"),
        ('model = "openai/x"', ("-m", "anthropic/y"), None),
        ('model = "openai/x"', ("-m", "claude-y"), None),
        ('model = "openai/x"', ("--base-url", "https://typed.example/v1"), None),
        (f'base_url = "{FAR}"', ("--base-url", "https://typed.example/v1"), None),
        (f'base_url = "{FAR}"', ("--base-url", f"{FAR}/"), "MINE"),
        ("", ("-m", "anthropic/y"), "MINE"),
    ],
)
def test_a_key_named_for_one_address_does_not_go_to_another(
    ran: Ran, toml: str, flags: tuple[str, ...], key_env: str | None
) -> None:
    users_file(f'key_env = "MINE"\n{toml}\n')
    assert ran(*flags).key_envs == (() if key_env is None else (key_env,))


def test_a_run_by_its_file_alone(folder: Path) -> None:
    write('template = "Say {{ prompt }}"\nconcurrency = 2\n[sim]\nledger = "billed.jsonl"\n')
    (folder / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    environment = {**os.environ, "LLMBATCH_MODEL": "sim/x", "LLMBATCH_INCLUDE_INPUT": "1"}
    command = [sys.executable, "-m", "llmbatch", "run", "in.jsonl", "--progress", "none"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in (folder / "in.results.jsonl").read_text().splitlines()]
    assert [line["input"] for line in results if "input" in line] == [{"prompt": "one"}, {"prompt": "two"}]
    assert len((folder / "billed.jsonl").read_text().splitlines()) == 2
