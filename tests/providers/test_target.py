"""Where do requests go?"""

from __future__ import annotations

import pytest

from llmbatch.errors import OptionsError
from llmbatch.providers.services import SERVICES
from llmbatch.providers.target import is_loopback, origin, resolve
from llmbatch.records import Request

OPENAI_URL = SERVICES["openai"].base_url
LOCAL = "http://localhost:8000/v1"


@pytest.mark.parametrize(
    ("model", "base_url", "url", "sent_model"),
    [
        ("gpt-4.1-mini", None, OPENAI_URL, "gpt-4.1-mini"),
        ("openai/gpt-4.1-mini", None, OPENAI_URL, "gpt-4.1-mini"),
        (None, None, OPENAI_URL, None),
        ("ft:gpt-4.1:acme::x1", None, OPENAI_URL, "ft:gpt-4.1:acme::x1"),
        ("meta-llama/Llama-3.1-8B", LOCAL, LOCAL, "meta-llama/Llama-3.1-8B"),
        ("openai/gpt-oss-20b", LOCAL, LOCAL, "openai/gpt-oss-20b"),  # a vLLM name
        ("openai/gpt-4.1", "https://eu.api.openai.com/v1/", "https://eu.api.openai.com/v1", "gpt-4.1"),
        ("sim/x", LOCAL, LOCAL, "sim/x"),
        (None, LOCAL + "/", LOCAL, None),
    ],
)
def test_resolve(model: str | None, base_url: str | None, url: str, sent_model: str | None) -> None:
    target = resolve(model, base_url)
    assert (target.base_url, target.model, target.simulated) == (url, sent_model, False)
    assert target.url == url + "/chat/completions"


@pytest.mark.parametrize(
    "host",
    ["h", "localhost", "h.", "a-b.c_d.example", f"{'a' * 63}.example", "bücher.example", "xn--bcher-kva.example",
     "127.0.0.1", "[::1]", "[fe80::1%eth0]", "H:8000"],
)  # fmt: skip
def test_a_host_that_can_be_looked_up_is_taken(host: str) -> None:
    assert resolve("m", f"http://{host}/v1").base_url == f"http://{host}/v1"


def test_sim_starts_a_server_of_its_own_and_has_no_key() -> None:
    target = resolve("sim/demo", None)
    assert target.simulated and target.is_loopback and not target.key_envs and not target.needs_key


@pytest.mark.parametrize(
    ("base_url", "needed"),
    [(None, True), ("https://api.openai.com/v1/", True), (LOCAL, False), ("https://api.together.xyz/v1", True)],
)
def test_needs_key(base_url: str | None, needed: bool) -> None:
    assert resolve("m", base_url).needs_key is needed


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        (None, "max_completion_tokens"),
        ("https://api.openai.com/v1", "max_completion_tokens"),
        (LOCAL, "max_tokens"),
        ("https://api.openai.com.evil.example/v1", "max_tokens"),
    ],
)
def test_only_openai_gets_the_new_name_of_max_tokens(base_url: str | None, name: str) -> None:
    assert name in resolve("m", base_url).provider.encode(Request("m", [], {"max_tokens": 5}))


@pytest.mark.parametrize(
    ("model", "base_url", "word"),
    [
        ("nobody/large", None, "--base-url"),
        ("/x", None, "--base-url"),
        ("sim/", None, "no name"),
        ("openai/", None, "no name"),
        ("m", "localhost:8000", "http"),
        ("m", "", "http"),
        ("m", "http://", "http"),
        ("m", "file:///etc/passwd", "http"),
        ("m", "http://[::1", "http"),
        ("m", "http://h:99999/v1", "http"),
        ("m", "http://h:0/v1", "http"),
        ("m", "http://h:65536/v1", "http"),
        ("m", "http://a..b/v1", "host"),
        ("m", "http://.b/v1", "host"),
        ("m", "http://./v1", "host"),
        ("m", f"http://{'a' * 64}.example/v1", "host"),
        ("m", f"http://{'ü' * 60}.example/v1", "host"),
        ("m", f"http://{'a.' * 127}aa/v1", "host"),
        ("m", "http://a b/v1", "--base-url"),
        ("m", "http://a%20b/v1", "host"),
        ("m", "http://[::g]/v1", "http"),
        ("m", "http://h/v\n1", "--base-url"),
        ("m", "http://h/v 1", "--base-url"),
        ("m", "http://h/\udcff", "--base-url"),
        ("m", "http://\udcff/v1", "--base-url"),
        ("m\udcff", None, "model"),
        ("sim/\udcff", None, "model"),
        ("m\n", LOCAL, "model"),
        ("m", "https://h/v1/chat/completions", "/chat/completions"),
        ("m", "https://h/v1/chat/completions/", "/chat/completions"),
        ("m", "https://h/v1?key=1", "query"),
        ("m", "https://h/v1#x", "query"),
        ("m", "https://h/v1?", "query"),
        ("m", "https://u:p4ssw0rd@h/v1", "--key-env"),
    ],
)
def test_refused(model: str, base_url: str | None, word: str) -> None:
    with pytest.raises(OptionsError, match=word) as error:
        resolve(model, base_url)
    assert "p4ssw0rd" not in str(error.value)


@pytest.mark.parametrize("base_url", ["ftp://u:p4ssw0rd@h/v1", "https://u:p4ssw0rd@h:0/v1", "https://u:p4ssw0rd@[::1"])
def test_a_password_in_a_bad_url_is_not_repeated(base_url: str) -> None:
    with pytest.raises(OptionsError) as error:
        resolve("m", base_url)
    assert "p4ssw0rd" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://API.openai.com/v1", "https://api.openai.com:443"),
        ("http://h/x", "http://h:80"),
        ("http://h:8080/x", "http://h:8080"),
        ("http://[::1]:9/x", "http://[::1]:9"),
    ],
)
def test_origin(url: str, expected: str) -> None:
    assert origin(url) == expected


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.nip.io", False),
        ("localtest.me", False),
        ("a.localhost", False),
        ("localhost.", False),
        ("2130706433", False),
        ("0x7f000001", False),
        ("0177.0.0.1", False),
        ("127.1", False),
        ("192.168.0.2", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:7f00:1", True),
        ("::ffff:10.0.0.1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("model", "name", "header"),
    [
        ("openai/m", None, {"Authorization": "Bearer k"}),
        ("anthropic/m", "ANTHROPIC_API_KEY", {"x-api-key": "k"}),
        ("anthropic/m", "ANTHROPIC_AUTH_TOKEN", {"Authorization": "Bearer k"}),
        ("gemini/m", "MY_KEY", {"x-goog-api-key": "k"}),
    ],
)
def test_the_header_of_a_key_goes_by_the_service_and_by_the_variable_it_stood_in(
    model: str, name: str | None, header: dict[str, str]
) -> None:
    assert resolve(model, None).key_headers("k", name) == header
