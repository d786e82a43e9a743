"""Which addresses and keys make endpoints together, and which are refused before anything is sent."""

from __future__ import annotations

import pytest

from llmbatch.endpoints import Endpoint, endpoints_of
from llmbatch.errors import OptionsError
from llmbatch.identity import targets_of
from llmbatch.options import RunOptions

A, B, C = (f"http://127.0.0.1:{port}/v1" for port in (9001, 9002, 9003))
KEYS = {"K1": "sk-one", "K2": "sk-two", "K3": "sk-three", "SAME": "sk-one"}


def made(base_urls: list[str], key_envs: list[str]) -> list[Endpoint]:
    options = RunOptions(input="in.jsonl", model="m", base_url=base_urls, key_env=key_envs or None)
    return endpoints_of(options, targets_of(options), KEYS, {}, lambda text: None)


@pytest.mark.parametrize(
    ("base_urls", "key_envs", "names"),
    [
        ([A], [], ["127.0.0.1:9001"]),
        ([A], ["K1"], ["127.0.0.1:9001"]),
        ([A], ["K1", "K2"], ["127.0.0.1:9001 with $K1", "127.0.0.1:9001 with $K2"]),
        ([A, B], [], ["127.0.0.1:9001", "127.0.0.1:9002"]),
        ([A, B], ["K1"], ["127.0.0.1:9001 with $K1", "127.0.0.1:9002 with $K1"]),
        ([A, B], ["K1", "K2"], ["127.0.0.1:9001 with $K1", "127.0.0.1:9002 with $K2"]),
        ([A, B], ["K1", "SAME"], ["127.0.0.1:9001 with $K1", "127.0.0.1:9002 with $SAME"]),
    ],
)
def test_addresses_and_keys_that_pair(base_urls: list[str], key_envs: list[str], names: list[str]) -> None:
    assert [endpoint.name for endpoint in made(base_urls, key_envs)] == names


@pytest.mark.parametrize(
    ("base_urls", "key_envs", "words"),
    [
        ([A, B, C], ["K1", "K2"], "3 times --base-url and 2 times --key-env"),
        ([A, B], ["K1", "K2", "K3"], "2 times --base-url and 3 times --key-env"),
        ([A, A], [], "given twice"),
        ([A, A + "/"], ["K1", "K2"], "given twice"),
        ([A], ["K1", "K1"], "given twice"),
        ([A], ["K1", "SAME"], r"\$K1 and \$SAME hold the same key"),
        ([A], ["K1", "K9"], "K9"),
    ],
)
def test_what_does_not_pair_is_refused(base_urls: list[str], key_envs: list[str], words: str) -> None:
    with pytest.raises(OptionsError, match=words) as refused:
        made(base_urls, key_envs)
    assert not any(key in str(refused.value) for key in KEYS.values())
