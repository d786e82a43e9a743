"""The servers that are known by name: where requests to each go, in which words, with whose key."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from llmbatch.errors import OptionsError
from llmbatch.providers.places import gemini_base, ollama_base
from llmbatch.providers.services import APIS, SERVICES, known_service, service_at
from llmbatch.providers.target import Target, resolve
from llmbatch.records import Request

HOSTED = {name for name, service in SERVICES.items() if service.key_envs}
PROMPT = [{"role": "developer", "content": "s"}, {"role": "user", "content": "p"}]


def encoded(target: Target, *, schema: dict[str, Any] | None = None, **params: Any) -> Any:
    return target.provider.encode(Request("m", PROMPT, params, schema=schema))


@pytest.mark.parametrize(
    ("model", "environment", "url", "sent_model"),
    [
        ("azure/dep", {"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com/"},
         "https://r.openai.azure.com/openai/v1/chat/completions", "dep"),
        ("azure/dep", {"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com/openai/v1"},
         "https://r.openai.azure.com/openai/v1/chat/completions", "dep"),
        ("azure/a b", {"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com", "OPENAI_API_VERSION": "2024-10-21"},
         "https://r.openai.azure.com/openai/deployments/a%20b/chat/completions?api-version=2024-10-21", "a b"),
        ("azure/text-embedding-3-small",
         {"AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9", "OPENAI_API_VERSION": "2025-04-01-preview"},
         "http://127.0.0.1:9/openai/deployments/text-embedding-3-small/embeddings?api-version=2025-04-01-preview",
         "text-embedding-3-small"),
        ("bedrock/openai.gpt-oss-120b", {"AWS_REGION": "eu-west-1"},
         "https://bedrock-mantle.eu-west-1.api.aws/openai/v1/chat/completions", "openai.gpt-oss-120b"),
        ("bedrock/us.anthropic.claude-sonnet-5", {"AWS_DEFAULT_REGION": "us-east-1"},
         "https://bedrock-mantle.us-east-1.api.aws/anthropic/v1/messages", "us.anthropic.claude-sonnet-5"),
        ("bedrock/m", {"AWS_BEDROCK_BASE_URL": "https://b.example/openai/v1"},
         "https://b.example/openai/v1/chat/completions", "m"),
        ("openrouter/anthropic/claude-haiku-5.5", {}, "https://openrouter.ai/api/v1/chat/completions",
         "anthropic/claude-haiku-5.5"),
        ("groq/openai/gpt-oss-20b", {}, "https://api.groq.com/openai/v1/chat/completions", "openai/gpt-oss-20b"),
        ("together/m", {}, "https://api.together.ai/v1/chat/completions", "m"),
        ("deepseek/deepseek-flash", {}, "https://api.deepseek.com/chat/completions", "deepseek-flash"),
        ("deepseek-flash", {}, "https://api.deepseek.com/chat/completions", "deepseek-flash"),
        ("codestral-latest", {}, "https://api.mistral.ai/v1/chat/completions", "codestral-latest"),
        ("mistral/mistral-embed", {}, "https://api.mistral.ai/v1/embeddings", "mistral-embed"),
        ("grok-5", {}, "https://api.x.ai/v1/chat/completions", "grok-5"),
        ("vllm/Qwen/Qwen3-8B", {}, "http://localhost:8000/v1/chat/completions", "Qwen/Qwen3-8B"),
        ("sglang/m", {}, "http://localhost:30000/v1/chat/completions", "m"),
        ("ollama/llama3.2:1b", {}, "http://localhost:11434/v1/chat/completions", "llama3.2:1b"),
        ("ollama/m", {"OLLAMA_HOST": "gpu.lan"}, "http://gpu.lan:11434/v1/chat/completions", "m"),
        ("llama.cpp/m", {}, "http://localhost:8080/v1/chat/completions", "m"),
        ("tgi/tgi", {}, "http://localhost:8080/v1/chat/completions", "tgi"),
        ("google/gemini-3.8-flash", {},
         "https://generativelanguage.googleapis.com/v1beta/models/gemini-3.8-flash:generateContent",
         "gemini-3.8-flash"),
        ("claude-haiku-5.5", {}, "https://api.anthropic.com/v1/messages", "claude-haiku-5.5"),
    ],
)  # fmt: skip
def test_a_model_by_the_name_of_its_service(model: str, environment: dict[str, str], url: str, sent_model: str) -> None:
    target = resolve(model, None, environment=environment)
    assert (target.url, target.model) == (url, sent_model)
    assert target.needs_key is (target.service.name in HOSTED)


@pytest.mark.parametrize(
    ("model", "base_url", "options", "url", "sent_model", "key_envs"),
    [
        ("azure/d", "https://r.openai.azure.com/openai/v1", {}, "https://r.openai.azure.com/openai/v1/chat/completions",
         "d", SERVICES["azure"].key_envs),
        ("azure/d", "https://r.services.ai.azure.com", {"api_version": "2024-10-21"},
         "https://r.services.ai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
         "d", SERVICES["azure"].key_envs),
        ("azure/d", "https://gateway.example/x", {"api_version": "2024-10-21"},
         "https://gateway.example/x/openai/deployments/d/chat/completions?api-version=2024-10-21",
         "d", SERVICES["azure"].key_envs),
        ("azure/d", "https://gateway.example/x", {}, "https://gateway.example/x/chat/completions",
         "azure/d", ("OPENAI_API_KEY",)),
        ("groq/m", "https://api.groq.com/openai/v1", {}, "https://api.groq.com/openai/v1/chat/completions",
         "m", ("GROQ_API_KEY",)),
        ("meta-llama/L", "https://api.together.xyz/v1", {}, "https://api.together.xyz/v1/chat/completions",
         "meta-llama/L", ("TOGETHER_API_KEY",)),
        ("vllm/m", "http://h:8000/v1", {}, "http://h:8000/v1/chat/completions", "vllm/m", ("OPENAI_API_KEY",)),
        ("m", "https://api.deepseek.com", {"api": "anthropic"}, "https://api.deepseek.com/anthropic/v1/messages",
         "m", ("DEEPSEEK_API_KEY",)),
        ("m", "https://bedrock-mantle.us-east-1.api.aws/anthropic/v1", {},
         "https://bedrock-mantle.us-east-1.api.aws/anthropic/v1/messages", "m", ("AWS_BEARER_TOKEN_BEDROCK",)),
        ("gemini/g", "https://generativelanguage.googleapis.com/v1beta", {"api_version": "v1"},
         "https://generativelanguage.googleapis.com/v1/models/g:generateContent", "g",
         ("GOOGLE_API_KEY", "GEMINI_API_KEY")),
    ],
)  # fmt: skip
def test_a_base_url_tells_the_service_by_its_host(
    model: str, base_url: str, options: dict[str, str], url: str, sent_model: str, key_envs: tuple[str, ...]
) -> None:
    target = resolve(model, base_url, **options)  # type: ignore[arg-type]
    assert (target.url, target.model, target.key_envs) == (url, sent_model, key_envs)


@pytest.mark.parametrize(
    ("model", "environment", "api_version", "word"),
    [
        ("azure/d", {}, None, "AZURE_OPENAI_ENDPOINT"),
        ("azure/d", {"AZURE_OPENAI_ENDPOINT": "r.openai.azure.com"}, None, "AZURE_OPENAI_ENDPOINT"),
        ("azure/d", {"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com"}, "1&x=y", "2024-10-21"),
        ("bedrock/m", {}, None, "AWS_REGION"),
        ("bedrock/m", {"AWS_REGION": "evil.example/"}, None, "AWS_REGION"),
        ("ollama/m", {"OLLAMA_HOST": "a b"}, None, "OLLAMA_HOST"),
        ("gemini/g", {}, "v1/../x", "v1beta"),
        ("groq/m", {}, "v1", "--api-version"),
    ],
)
def test_what_must_be_said_is_asked_for(
    model: str, environment: dict[str, str], api_version: str | None, word: str
) -> None:
    with pytest.raises(OptionsError, match=word):
        resolve(model, None, environment=environment, api_version=api_version)


@pytest.mark.parametrize(
    ("model", "environment", "header"),
    [
        ("claude-x", {"ANTHROPIC_API_KEY": "k"}, {"x-api-key": "K"}),
        ("claude-x", {"ANTHROPIC_AUTH_TOKEN": "k"}, {"Authorization": "Bearer K"}),
        ("claude-x", {"ANTHROPIC_API_KEY": "k", "ANTHROPIC_AUTH_TOKEN": "k"}, {"x-api-key": "K"}),
        ("azure/d", {"AZURE_OPENAI_API_KEY": "k"}, {"api-key": "K"}),
        ("azure/d", {"AZURE_OPENAI_AD_TOKEN": "k", "AZURE_OPENAI_API_KEY": " "}, {"Authorization": "Bearer K"}),
        ("azure/d", {}, {"api-key": "K"}),
        ("bedrock/m", {}, {"Authorization": "Bearer K"}),
        ("gemini-x", {"GEMINI_API_KEY": "k"}, {"x-goog-api-key": "K"}),
        ("mistral/m", {}, {"Authorization": "Bearer K"}),
    ],
)
def test_the_header_of_the_key(model: str, environment: dict[str, str], header: dict[str, str]) -> None:
    places = {"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com", "AWS_REGION": "us-east-1"}
    target = resolve(model, None, environment=environment | places)
    variable = next((name for name in target.key_envs if environment.get(name, "").strip()), None)
    assert target.key_headers("K", variable) == header


@pytest.mark.parametrize("source", ["MY_KEY", "/home/me/key"])
def test_a_token_in_the_environment_says_nothing_of_a_key_from_elsewhere(source: str) -> None:
    environment = {"ANTHROPIC_AUTH_TOKEN": "t", "AZURE_OPENAI_AD_TOKEN": "t"}
    azure = resolve("azure/d", "https://r.openai.azure.com", environment=environment)
    assert resolve("claude-x", None, environment=environment).key_headers("K", source) == {"x-api-key": "K"}
    assert azure.key_headers("K", source) == {"api-key": "K"}


def test_no_service_gets_the_key_of_another() -> None:
    """But for an address nobody knows, which gets that of OpenAI."""
    for name, service in SERVICES.items():
        others = {env for other in SERVICES.values() if other.name != name for env in other.key_envs}
        assert not others & set(service.key_envs)
        if service.host:
            at_home = resolve("m", f"https://{service.host.replace('*', 'us-east-1')}/v1")
            assert at_home.key_envs == service.key_envs and at_home.needs_key


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("api.openai.com", "openai"),
        ("eu.api.openai.com", "openai"),
        ("api.openai.com.", "openai"),
        ("api.openai.com.evil.example", None),
        ("notapi.openai.com", None),
        ("xapi.groq.com", None),
        ("openai.azure.com.evil.example", None),
        ("bedrock-mantle.us-east-1.api.aws", "bedrock"),
        ("bedrock-mantle.api.aws", None),
        ("x.execute-api.us-east-1.api.aws", None),
        ("bedrock-runtime.us-east-1.amazonaws.com", "bedrock"),
        ("localhost", None),
        ("", None),
    ],
)
def test_whose_host_it_is(host: str, name: str | None) -> None:
    found = service_at(host)
    assert (None if found is None else found.name) == name


def test_every_service_speaks_known_dialects_and_needs_a_key_if_it_is_hosted() -> None:
    for name, service in SERVICES.items():
        assert set(service.apis) <= set(APIS) and service.name == name
        assert service.needs_key is bool(service.key_envs)
        assert set(service.bearer_envs) <= set(service.key_envs)
        assert known_service(f"{name}-x").name in SERVICES


# What differs between servers of one dialect


@pytest.mark.parametrize(
    ("model", "params", "expected"),
    [
        ("openai/m", {"max_tokens": 5, "seed": 1}, {"max_completion_tokens": 5, "seed": 1}),
        ("mistral/m", {"max_completion_tokens": 5, "seed": 1}, {"max_tokens": 5, "random_seed": 1}),
        ("groq/m", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ("vllm/m", {"max_tokens": 5, "top_k": 3}, {"max_tokens": 5, "top_k": 3}),
    ],
)
def test_parameters_have_the_names_of_the_server(model: str, params: dict[str, Any], expected: dict[str, Any]) -> None:
    body = encoded(resolve(model, None), **params)
    assert {name: value for name, value in body.items() if name not in ("model", "messages")} == expected


@pytest.mark.parametrize(("model", "role"), [("openai/m", "developer"), ("vllm/m", "system"), ("mistral/m", "system")])
def test_only_openai_has_a_developer(model: str, role: str) -> None:
    assert encoded(resolve(model, None))["messages"][0]["role"] == role
    assert PROMPT[0]["role"] == "developer"


def test_deepseek_is_asked_for_json_and_told_the_schema() -> None:
    body = encoded(resolve("deepseek/m", None), schema={"type": "object", "properties": {"colour": {}}})
    assert body["response_format"] == {"type": "json_object"} and "colour" in str(body["messages"])


def test_mistral_has_no_stream_options() -> None:
    assert "stream_options" not in resolve("mistral/m", None).provider.streamed({})
    assert "stream_options" in resolve("groq/m", None).provider.streamed({})


def test_groq_limits_the_requests_of_a_day() -> None:
    limits = resolve("groq/m", None).provider.limits({"x-ratelimit-limit-requests": "14400"}, 0.0)
    assert limits.requests.window_s == 86_400.0


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080/v1"),
        ("[::]:8080", "http://127.0.0.1:8080/v1"),
        (":9000", "http://localhost:9000/v1"),
        ("http://h", "http://h:80/v1"),
        ("https://h/", "https://h:443/v1"),
        ("https://h/ollama/", "https://h:443/ollama/v1"),
        ("http://[fe80::1]:1/v1", "http://[fe80::1]:1/v1"),
    ],
)
def test_ollama_host(host: str, url: str) -> None:
    assert ollama_base(host) == url


def test_a_version_of_gemini_stands_at_the_end_of_its_address() -> None:
    assert gemini_base("https://h/v1beta", "v1") == "https://h/v1"
    assert gemini_base("https://h", "v1beta") == "https://h/v1beta"
    assert gemini_base("https://h/x", None) == "https://h/x"


def test_no_dialect_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, llmbatch.providers.target; print(*[m for m in sys.modules if m.startswith('llmbatch.providers')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    names = {name.rpartition(".")[2] for name in found}
    assert not names & {"openai_chat", "openai_responses", "openai_embeddings", "anthropic", "gemini", "schema_forms"}
