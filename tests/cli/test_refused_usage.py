"""Bad usage and bad files: refused with exit code 2 and the way out, before anything is written or sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmbatch.cli.app import app


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("OPENAI_API_KEY", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('"prompt 1"\n"prompt 2"\n')
    return tmp_path


USAGE = {
    "output_is_input": (["in.jsonl", "-m", "sim/x", "-o", "in.jsonl"], "is the input itself"),
    "output_is_a_directory": (["in.jsonl", "-m", "sim/x", "-o", "."], "is a directory"),
    "output_directory_missing": (["in.jsonl", "-m", "sim/x", "-o", "no/out.jsonl"], "create the directory"),
    "input_missing": (["no.jsonl", "-m", "sim/x"], "no such file: no.jsonl"),
    "input_is_a_directory": ([".", "-m", "sim/x"], "is a directory"),
    "no_model": (["in.jsonl"], "no model: add -m"),
    "unknown_provider": (["in.jsonl", "-m", "nobody/x"], "--base-url"),
    "missing_key": (["in.jsonl", "-m", "openai/gpt-4.1-mini"], "OPENAI_API_KEY"),
    "named_key_missing": (["in.jsonl", "-m", "x", "--key-env", "MY_KEY"], "MY_KEY"),
    "bad_url": (["in.jsonl", "-m", "x", "--base-url", "localhost:8000"], "http://localhost:8000/v1"),
    "bad_param": (["in.jsonl", "-m", "sim/x", "-p", "temperature"], "name=value"),
    "reserved_param": (["in.jsonl", "-m", "sim/x", "-p", "model=y"], "use -m"),
    "param_beyond_64_bits": (["in.jsonl", "-m", "sim/x", "-p", f"seed={10**23}"], "64 bits"),
    "param_that_is_no_number": (["in.jsonl", "-m", "sim/x", "-p", "temperature=NaN"], "NaN"),
    "param_beyond_all_numbers": (["in.jsonl", "-m", "sim/x", "-p", "temperature=1e999"], "temperature"),
    "param_not_utf8": (["in.jsonl", "-m", "sim/x", "-p", "stop=\udcff"], "-p stop"),
    "param_name_not_utf8": (["in.jsonl", "-m", "sim/x", "-p", "st\udcffop=1"], "UTF-8"),
    "template_not_utf8": (["in.jsonl", "-m", "sim/x", "-t", "\udcff {{ prompt }}"], "--template is not UTF-8"),
    "plain_template_not_utf8": (["in.jsonl", "-m", "sim/x", "-t", "\udcff"], "--template is not UTF-8"),
    "system_not_utf8": (["in.jsonl", "-m", "sim/x", "-s", "\udcff"], "--system is not UTF-8"),
    "model_not_utf8": (["in.jsonl", "-m", "sim/\udcff"], "model"),
    "url_not_utf8": (["in.jsonl", "-m", "x", "--base-url", "http://h/\udcff"], "--base-url"),
    "url_with_an_empty_label": (["in.jsonl", "-m", "x", "--base-url", "http://a..b/v1"], "host"),
    "url_with_a_port_out_of_range": (["in.jsonl", "-m", "x", "--base-url", "http://h:70000/v1"], "--base-url"),
    "bad_concurrency": (["in.jsonl", "-m", "sim/x", "-c", "0"], "--concurrency"),
    "bad_rpm": (["in.jsonl", "-m", "sim/x", "--rpm", "0"], "--rpm"),
    "tenants_of_a_template": (
        ["in.jsonl", "-m", "sim/x", "-t", "{{ prompt }}", "--tenant-rpm", "5"],
        "--tenant-field FIELD",
    ),
    "bad_duration": (["in.jsonl", "-m", "sim/x", "--timeout", "soon"], "30s"),
    "bad_hedge": (["in.jsonl", "-m", "sim/x", "--hedge", "p99"], "give p95, or a time such as 10s"),
    "hedge_at_once": (["in.jsonl", "-m", "sim/x", "--hedge", "0s"], "--hedge must be above 0"),
    "bad_template": (["in.jsonl", "-m", "sim/x", "-t", "{{ open"], "--template"),
    "missing_template_file": (["in.jsonl", "-m", "sim/x", "-t", "@no.txt"], "no.txt"),
    "bad_sim_option": (["in.jsonl", "-m", "sim/x", "--sim", "speed=9"], "speed"),
    "unknown_flag": (["in.jsonl", "-m", "sim/x", "--fast"], "--fast"),
    "quiet_and_verbose": (["in.jsonl", "-m", "sim/x", "-q", "-v"], "-q and -v"),
}


@pytest.mark.parametrize("case", USAGE)
def test_bad_usage_ends_with_2_says_why_and_leaves_nothing(folder: Path, case: str) -> None:
    flags, words = USAGE[case]
    done = CliRunner().invoke(app, ["run", *flags])
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert done.stdout == ""
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["in.jsonl"]


INPUTS = {
    "json_array": (b'[{"prompt": "a"},\n{"prompt": "b"}]\n', "jq -c '.[]'"),
    "utf16": ('{"prompt": "a"}\n'.encode("utf-16"), "iconv"),
    "binary": (b"\x7fELF\x02\x01\x01\x00\x00\x00\x00", ""),
    "pretty_printed": (b'{\n  "prompt": "a"\n}\n', "jq -c"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_file_of_the_wrong_kind_is_refused_with_the_command_that_helps(folder: Path, case: str) -> None:
    content, words = INPUTS[case]
    (folder / "in.jsonl").write_bytes(content)
    done = CliRunner().invoke(app, ["run", "in.jsonl", "-m", "sim/x"])
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["in.jsonl"]
