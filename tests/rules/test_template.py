"""Templates: strict about what is missing, deaf to what the data says, deterministic, and contained."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from llmbatch.errors import OptionsError
from llmbatch.rules import template as template_module
from llmbatch.rules.reasons import RowError
from llmbatch.rules.template import RowTemplate


@pytest.mark.parametrize(
    ("source", "fields", "text"),
    [
        ("Say {{ word }}.", {"word": "hi"}, "Say hi."),
        ("{{ row['first name'] }}", {"first name": "Ann"}, "Ann"),
        ("{{ row.items }} {{ row.x }}", {"items": "a", "x": 1}, "a 1"),
        ("{{ user.keys }}", {"user": {"keys": 3}}, "3"),
        ("{% for k, v in row.items() %}{{ k }}={{ v }};{% endfor %}", {"a": 1, "b": 2}, "a=1;b=2;"),
        ("{{ x | default('none') }} {{ y | d('gone') }}", {"x": None}, "none gone"),
        ("{{ a.b | default('-') }}", {"a": {}}, "-"),
        ("{{ x | default('e', true) }}", {"x": ""}, "e"),
        ("{% if x is defined %}a{% else %}b{% endif %}", {}, "b"),
        ("{% if x %}a{% else %}b{% endif %}", {"x": None}, "b"),
        ("{{ html }}", {"html": "<b>&\"'"}, "<b>&\"'"),
        ("{{ row | tojson }}", {"a": "<é>"}, '{"a": "<é>"}'),
        ("{{ text }}", {"text": "{{ 1/0 }} {% raw %}"}, "{{ 1/0 }} {% raw %}"),
        ("{{ '{{ text }}' }}", {"text": "a"}, "{{ text }}"),
        ("a\r\nb\n", {}, "a\nb\n"),
        ("{{ n }} {{ f }} {{ b }}", {"n": 10**25, "f": 0.1, "b": True}, f"{10**25} 0.1 True"),
        ("{{ row.row }}", {"row": "own"}, "own"),
        ("{# note #}x", {}, "x"),
    ],
)
def test_fields_are_rendered(source: str, fields: dict[str, Any], text: str) -> None:
    assert RowTemplate(source).render(fields) == text


@pytest.mark.parametrize(
    ("source", "fields", "words"),
    [
        ("{{ text }}", {"txt": 1, "id": 2}, ["--template", "'text' is missing", "txt, id"]),
        ("{{ text }}", {}, ["the row has: none"]),
        ("{% if text %}a{% endif %}", {}, ["'text' is missing"]),
        ("{{ a.b }}", {"a": {}}, ["'b'", "the row has: a"]),
        ("{{ text }}", {"a\x1b[2J": 1}, ["a\\x1b[2J"]),
        ("{{ text }}", {f"field{number}": 1 for number in range(1000)}, ["and 980 more"]),
        ("{{ text }}", {"text": None}, ["'text' is null", "{{ text | default('') }}"]),
        ("{{ row.text }}", {"text": None}, ["a value is null"]),
        ("{{ none }}", {}, ["a value is null"]),
        ("{{ text.upper }}", {"text": "a"}, ["parentheses"]),
        ("{{ 1 / n }}", {"n": 0}, ["ZeroDivisionError"]),
        ("{{ n + 1 }}", {"n": "a"}, ["TypeError"]),
        ("{{ ''.__class__.__mro__ }}", {}, ["not allowed", "__class__"]),
        ("{{ text.__init__.__globals__ }}", {"text": "a"}, ["not allowed"]),
        ("{{ items.append(1) }}", {"items": []}, ["not allowed"]),
        ("{% include 'x' %}", {}, ["no loader"]),
        ("{{ range(10**9) | list }}", {}, ["Range too big"]),
        ("{{ f(1) }}", {"f": "text"}, ["TypeError"]),
    ],
)
def test_what_can_not_be_rendered_is_a_row_error_that_names_it(
    source: str, fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RowError) as error:
        RowTemplate(source).render(fields)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a\nb {{ text", "--template, line 2: "),
        ("{% if x %}", "line 1"),
        ("{{ x | nope }}", "nope"),
        ("{{ x | random }}", "random"),
        ("{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}", "--template"),
    ],
)
def test_a_template_that_does_not_compile_is_an_options_error_with_its_line(source: str, words: str) -> None:
    with pytest.raises(OptionsError, match=words):
        RowTemplate(source)


def test_a_text_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_RENDERED_CHARS", 1000)
    template = RowTemplate("{% for i in range(100000) %}{% for j in range(100000) %}xx{% endfor %}{% endfor %}")
    with pytest.raises(RowError, match="more than 1000 characters"):
        template.render({})


def test_the_flag_is_named() -> None:
    with pytest.raises(OptionsError, match="--system, line 1"):
        RowTemplate("{{", "--system")


def test_jinja_is_imported_only_for_a_template() -> None:
    script = (
        "import sys\n"
        "from llmbatch.rules.request import RequestBuilder\n"
        "RequestBuilder(model='m', system='plain', template='plain')\n"
        "assert 'jinja2' not in sys.modules\n"
        "RequestBuilder(model='m', template='{{ x }}')\n"
        "assert 'jinja2' in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
