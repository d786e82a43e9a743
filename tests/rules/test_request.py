"""Rows become requests: the row wins over the command line, and never says where requests go."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbatch.errors import OptionsError
from llmbatch.providers.openai_chat import OpenAIChat
from llmbatch.records import BadRow, Request, Row
from llmbatch.rules.fingerprint import Unwritable, fingerprint
from llmbatch.rules.reasons import RowError
from llmbatch.rules.request import RequestBuilder

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "s"}
BATCH = {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions"}


def build(fields: dict[str, Any], *, model: str | None = "m", **run: Any) -> Request | BadRow:
    return RequestBuilder(model=model, **run).build(Row(1, 3, "r", fields), 40)


def request_of(fields: dict[str, Any], **run: Any) -> Request:
    request = build(fields, **run)
    assert isinstance(request, Request), request
    return request


def reason_of(fields: dict[str, Any], **run: Any) -> str:
    bad = build(fields, **run)
    assert isinstance(bad, BadRow), bad
    assert (bad.index, bad.line, bad.offset, bad.id, bad.type) == (1, 3, 40, "r", "invalid_row")
    assert bad.reason.startswith("line 3: ")
    return bad.reason


@pytest.mark.parametrize(
    ("fields", "run", "messages"),
    [
        ({"prompt": "hi"}, {}, [USER]),
        ({"prompt": "hi", "messages": None}, {}, [USER]),
        ({"messages": [SYSTEM, USER]}, {}, [SYSTEM, USER]),
        ({"prompt": "hi"}, {"system": "s"}, [SYSTEM, USER]),
        ({"prompt": "hi", "system": "own"}, {"system": "s"}, [{"role": "system", "content": "own"}, USER]),
        ({"prompt": "hi", "system": None}, {"system": "s"}, [SYSTEM, USER]),
        ({"prompt": "hi", "system": ""}, {"system": "s"}, [USER]),
        ({"messages": [SYSTEM, USER]}, {"system": "run's"}, [SYSTEM, USER]),
        ({"messages": [USER]}, {"system": "s"}, [SYSTEM, USER]),
        ({"x": "i", "prompt": "hi"}, {"system": "{{ x }}"}, [{"role": "system", "content": "i"}, USER]),
        ({"x": "i"}, {"template": "h{{ x }}"}, [USER]),
        ({"x": "i", "prompt": "no", "messages": 5}, {"template": "h{{ x }}"}, [USER]),
    ],
)
def test_a_row_says_the_messages(fields: dict[str, Any], run: dict[str, Any], messages: list[Any]) -> None:
    request = request_of(fields, **run)
    assert list(request.messages) == messages
    assert request.model == "m"
    assert request.body is None


@pytest.mark.parametrize(
    ("fields", "run_params", "params", "extra"),
    [
        ({}, {}, {}, {}),
        ({}, {"temperature": 0}, {}, {"temperature": 0}),
        ({"temperature": 0.5}, {"temperature": 0, "seed": 1}, {"temperature": 0.5}, {"seed": 1}),
        ({"params": {"temperature": 0.5}}, {"temperature": 0}, {"temperature": 0.5}, {}),
        ({"temperature": 1, "params": {"temperature": 2}}, {}, {"temperature": 2}, {}),
        ({"max_tokens": 5}, {"max_completion_tokens": 9, "top_p": 1}, {"max_tokens": 5}, {"top_p": 1}),
        ({"temperature": None}, {"temperature": 0}, {}, {"temperature": 0}),
        ({"params": None}, {}, {}, {}),
        ({"stream": True, "seed": 1}, {}, {"seed": 1}, {}),
        ({"n": 1}, {}, {"n": 1}, {}),
        ({"params": {"guided_choice": ["a"]}}, {}, {"guided_choice": ["a"]}, {}),
        ({"guided_choice": ["a"]}, {}, {}, {}),
        ({"stop": ["a"], "tools": [{}]}, {}, {"stop": ["a"], "tools": [{}]}, {}),
    ],
)  # fmt: skip
def test_a_rows_parameters_win_over_the_command_lines(
    fields: dict[str, Any], run_params: dict[str, Any], params: dict[str, Any], extra: dict[str, Any]
) -> None:
    request = request_of({"prompt": "hi", **fields}, params=run_params)
    assert request.params == params
    assert request.extra == extra


@pytest.mark.parametrize("fields", [{"model": "own"}, {"params": {"model": "own"}}])
def test_a_rows_model_wins_and_is_said_once(fields: dict[str, Any]) -> None:
    builder = RequestBuilder(model="m")
    for _ in range(3):
        request = builder.build(Row(1, 1, None, {"prompt": "hi", **fields}))
        assert isinstance(request, Request)
        assert request.model == "own"
        assert "model" not in request.params
    assert len(builder.warnings) == 1
    assert request_of({"prompt": "hi", **fields}, model=None).model == "own"


def test_no_model_anywhere_is_an_error_row() -> None:
    assert "no model: add -m" in reason_of({"prompt": "hi"}, model=None)
    assert "no model: add -m" in reason_of({**BATCH, "body": {"messages": [USER]}}, model=None)


def test_a_batch_line_goes_as_it_is() -> None:
    body = {"model": "gpt", "messages": [USER], "max_tokens": 5, "x_own": [1]}
    request = request_of({**BATCH, "body": body}, system="not added")
    assert request.body == body
    assert request.model == "gpt"
    assert request.extra == request.params == {}


def test_a_batch_line_is_filled_with_the_model_and_parameters_it_leaves_unsaid() -> None:
    body = {"messages": [USER], "seed": 1, "stream": True, "stream_options": {"include_usage": True}}
    request = request_of({**BATCH, "body": body}, params={"seed": 2, "top_p": 1})
    assert request.body == {"model": "m", "messages": [USER], "seed": 1, "top_p": 1}
    assert body["stream"] is True


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_responses_line_takes_the_limit_of_tokens_by_its_own_name(name: str) -> None:
    line = {**BATCH, "url": "/v1/responses"}
    said = {"input": "a", "max_output_tokens": 5}
    assert request_of({**line, "body": {"input": "a"}}, params={name: 7}).body == {
        "model": "m", "input": "a", "max_output_tokens": 7,
    }  # fmt: skip
    assert request_of({**line, "body": said}, params={name: 7}).body == {"model": "m", **said}


def test_a_responses_line_may_name_a_stored_prompt_in_place_of_input() -> None:
    said = {"prompt": {"id": "pmpt_1"}}
    assert request_of({**BATCH, "url": "/v1/responses", "body": said}).body == {"model": "m", **said}


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/chat/completions", "https://evil.test/v1/chat/completions"])
def test_a_batch_lines_url_only_says_the_endpoints_kind(url: str) -> None:
    body = request_of({"url": url, "body": {"messages": [USER]}}).body
    assert body == {"messages": [USER], "model": "m"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**BATCH, "url": "/v1/embeddings", "body": {"messages": [USER]}}, "no 'input'"),
        ({**BATCH, "url": "/v1/files", "body": {"messages": [USER]}}, "/v1/files"),
        ({**BATCH, "url": 5, "body": {"messages": [USER]}}, "a number"),
        ({**BATCH, "method": "GET", "body": {"messages": [USER]}}, "POST"),
        ({**BATCH, "body": "text"}, "'body' must be an object"),
        ({**BATCH, "body": {}}, "'messages' must be a list"),
        ({**BATCH, "body": {"messages": [USER], "api_key": "k"}}, "may not set 'api_key'"),
        ({**BATCH, "body": {"messages": [USER], "n": 3}}, "'n' must be 1"),
        ({**BATCH, "headers": {}, "body": {"messages": [USER]}}, "may not set 'headers'"),
        ({"prompt": "a", "params": {"messages": [USER]}}, "which one is meant"),
        ({"custom_id": "a", "params": {"messages": []}}, "an empty list"),
        ({"prompt": "a", "params": [1]}, "'params' must be an object"),
        ({"prompt": "a", "system": 5}, "'system' must be a string"),
        ({"prompt": None}, "no 'prompt'"),
        ({"prompt": ["a"]}, "an array"),
        ({"input": ""}, "none of them empty"),
        ({"input": ["a", 5]}, "none of them empty"),
        ({"prompt": "a", "Authorization": "x"}, "may not set 'Authorization'"),
        ({"prompt": "a", "X-Api-Key": "x"}, "may not set"),
        ({"prompt": "a", "top_p": 1.5}, "from 0 to 1, not 1.5"),
        ({"prompt": "a", "temperature": True}, "not a boolean"),
        ({"prompt": "a", "temperature": float("nan")}, "'temperature'"),
        ({"prompt": "a", "seed": 1.5}, "an integer"),
        ({"prompt": "a", "stop": []}, "'stop'"),
        ({"prompt": "a", "model": ""}, "'model'"),
        ({"prompt": "a", "model": "\ud800"}, "'model'"),
        ({"prompt": "a", "tools": "x"}, "'tools'"),
        ({"prompt": "a", "top_logprobs": 21}, "20"),
        ({"messages": {"role": "user"}}, "must be a list, not an object"),
        ({"messages": ["hi"]}, "messages[0] must be an object"),
        ({"messages": [USER, {"role": ["user"], "content": "a"}]}, "messages[1] is an array"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "the text of"),
    ],
)
def test_what_can_not_be_sent_is_an_error_row(fields: dict[str, Any], words: str) -> None:
    assert words in reason_of(fields)


def test_a_forbidden_name_is_refused_in_every_row_not_only_the_first() -> None:
    builder = RequestBuilder(model="m")
    for _ in range(3):
        assert isinstance(builder.build(Row(1, 1, None, {"prompt": "a", "url": "https://x"})), BadRow)


def test_with_a_template_fields_are_data_whatever_their_names() -> None:
    fields = {"url": "https://a", "model": "T", "temperature": "hot", "system": 5, "params": {"seed": 7}}
    request = request_of(fields, template="{{ url }} {{ model }} {{ temperature }}")
    assert request.messages == [{"role": "user", "content": "https://a T hot"}]
    assert (request.model, request.params) == ("m", {"seed": 7})
    assert request_of({"params": "a text"}, template="{{ params }}").params == {}
    assert "may not set" in reason_of({"params": {"base_url": "x"}}, template="a {{ 1 }}")


def test_a_template_that_renders_nothing_is_an_error_row() -> None:
    assert "the prompt is empty" in reason_of({"x": " "}, template="{{ x }}")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("max_token", "max_tokens"), ("Temperature", "temperature"), ("temprature", "temperature"), ("category", None)],
)
def test_a_near_miss_of_a_parameter_is_warned_about_once(name: str, meant: str | None) -> None:
    builder = RequestBuilder(model="m")
    for _ in range(3):
        assert isinstance(builder.build(Row(1, 1, None, {"prompt": "a", name: 1})), Request)
    assert [f"'{meant}'" in warning for warning in builder.warnings] == ([True] if meant else [])


@pytest.mark.parametrize("name", ["model", "messages", "stream", "api_key", "base_url", "headers"])
def test_the_command_lines_parameters_may_not_say_it_either(name: str) -> None:
    with pytest.raises(OptionsError, match=f"{name}"):
        RequestBuilder(model="m", params={name: "x"})


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"seed": 2**64}, "-p seed: .*64"),
        ({"metadata": {"a": [-(2**63) - 1]}}, "-p metadata: .*64"),
        ({"stop": "\ud800"}, "-p stop: .*surrogate"),
        ({"st\ud800op": 1}, "UTF-8"),
        ({"metadata": {1: 2}}, "-p metadata: "),
        ({"temperature": float("nan")}, "-p temperature: "),
        ({"x": [float("inf")]}, "-p x: "),
        ({"x": {1, 2}}, "-p x: "),
        ({7: 1}, "-p: the name 7"),
    ],
)
def test_a_parameter_that_json_can_not_hold_is_an_options_error(params: dict[Any, Any], words: str) -> None:
    with pytest.raises(OptionsError, match=words):
        RequestBuilder(model="m", params=params)


@pytest.mark.parametrize("text", ["\udcff", "a {{ x }} \ud800"])
@pytest.mark.parametrize("flag", ["template", "system"])
def test_a_text_that_is_not_utf8_is_an_options_error(flag: str, text: str) -> None:
    with pytest.raises(OptionsError, match=f"--{flag} is not UTF-8"):
        RequestBuilder(model="m", **{flag: text})


@pytest.mark.parametrize(
    ("fields", "run", "named"),
    [
        ({"text": "t", "temperature": 0}, {}, ["temperature"]),
        ({"text": "t", "max_tokens": 5, "model": "x", "seed": None}, {}, ["max_tokens", "model", "seed"]),
        ({"text": "t", "temperature": 0, "params": {"temperature": 0}}, {}, ["temperature"]),
        ({"text": "t", "model": "x"}, {"template": "{{ model }}: {{ text }}"}, []),
        ({"text": "t", "user": "x"}, {"system": "You talk to {{ user }}"}, []),
        ({"text": "t", "user": "x"}, {"template": "{{ row | tojson }}"}, []),
        ({"text": "t", "prompt": "x", "id": 1, "params": {"seed": 1}}, {}, []),
    ],
)
def test_a_parameter_that_is_data_for_the_template_is_said_once(
    fields: dict[str, Any], run: dict[str, Any], named: list[str]
) -> None:
    builder = RequestBuilder(model="m", **{"template": "a {{ text }}", **run})
    for _ in range(3):
        assert isinstance(builder.build(Row(1, 1, None, fields)), Request)
    listed = ", ".join(f"'{name}'" for name in named)
    assert builder.warnings == (
        {f"with --template the fields {listed} are data for it; put them under 'params' to send them"}
        if len(named) > 1
        else {f"with --template the field {listed} is data for it; put it under 'params' to send it"}
        if named
        else set()
    )


def test_parameters_that_come_with_later_rows_join_the_one_warning() -> None:
    builder = RequestBuilder(model="m", template="{{ text }}")
    for name in ("seed", "temperature", "seed", "stop"):
        builder.build(Row(1, 1, None, {"text": "t", name: 1}))
    (warning,) = builder.warnings
    assert "'seed', 'stop', 'temperature' are data" in warning


def test_a_system_field_that_is_data_is_said_with_the_flag_that_sends_it() -> None:
    builder = RequestBuilder(model="m", template="{{ text }}")
    builder.build(Row(1, 1, None, {"text": "t", "system": "s"}))
    assert builder.warnings == {
        "with --template the field 'system' is data for it; --system '{{ system }}' makes it the system message"
    }
    builder = RequestBuilder(model="m", template="{{ text }}", system="{{ system }}")
    builder.build(Row(1, 1, None, {"text": "t", "system": "s"}))
    assert not builder.warnings


def test_a_bad_template_is_an_options_error_before_any_row() -> None:
    with pytest.raises(OptionsError, match="--system, line 1"):
        RequestBuilder(model="m", system="{{ x")


def test_ever_new_names_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmbatch.rules.request._MAX_PLAIN_NAMES", 20)
    builder = RequestBuilder(model="m")
    for number in range(100):
        builder.build(Row(1, 1, None, {"prompt": "a", f"z{number}": 1}))
    assert len(builder._plain) <= 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.sampled_from(
    ["prompt", "messages", "body", "url", "method", "params", "system", "model", "stop", "role", "content", "n", "x"]
)


@given(st.dictionaries(NAMES, JSON | st.lists(st.dictionaries(NAMES, JSON)) | st.dictionaries(NAMES, JSON)))
def test_any_row_becomes_a_request_or_an_error_row(fields: dict[str, Any]) -> None:
    for template in (None, "{{ x }} {{ row }}"):
        outcome = RequestBuilder(model="m", template=template).build(Row(1, 1, None, fields))
        assert isinstance(outcome, Request | BadRow)
        assert not isinstance(outcome, BadRow) or outcome.reason.isprintable()


ODD = st.recursive(
    JSON | st.text(st.characters()) | st.sampled_from([object(), {1}, b"b", 2**99, float("nan")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.integers() | st.none(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(NAMES | st.integers() | st.none() | st.binary(), ODD, max_size=5),
    st.sampled_from([None, "{{ x }}"]),
)
def test_any_mapping_from_python_becomes_a_request_or_an_error_row(fields: Any, template: str | None) -> None:
    outcome = RequestBuilder(model="m", template=template, system="{{ x }}").build(Row(1, 1, None, fields))
    if isinstance(outcome, Request):
        with contextlib.suppress(Unwritable, RowError):
            fingerprint("http://h", OpenAIChat().encode(outcome))
    else:
        assert outcome.reason.isprintable()
