"""The simulated provider over real sockets, in both modes."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sim_wire import Server, sim_server

from llmbatch.sim.answers import expected_answer, prompt_hash

pytestmark = pytest.mark.usefixtures("each_mode")


class Client:
    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    def post(self, prompt: str = "hello", headers: dict[str, str] | None = None, **fields: Any) -> Any:
        body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **fields}
        return self.session.post(f"{self.server.base_url}/chat/completions", json=body, headers=headers)

    async def answer(self, prompt: str = "hello", **fields: Any) -> tuple[int, Any]:
        async with self.post(prompt, **fields) as response:
            return response.status, await response.json()

    async def ledger(self) -> Any:
        async with self.session.get(f"{self.server.base_url}/ledger?full") as response:
            return await response.json()


@asynccontextmanager
async def sim(**settings: str) -> AsyncIterator[Client]:
    async with sim_server(**settings) as server, aiohttp.ClientSession() as session:
        yield Client(server, session)


async def streamed(response: aiohttp.ClientResponse) -> list[Any]:
    lines = (await response.read()).decode().split("\n\n")
    return [line.removeprefix("data: ") for line in lines if line]


async def test_every_prompt_gets_its_own_answer_in_any_order():
    async with sim(latency="uniform:low=0,high=0.05") as client:
        prompts = [f"prompt {i}" for i in range(200)]
        answers = await asyncio.gather(*map(client.answer, prompts))
        for prompt, (status, body) in zip(prompts, answers, strict=True):
            assert status == 200
            assert body["choices"][0]["message"]["content"] == expected_answer(prompt)
        await until(lambda: not client.server.ledger.in_flight)
        ledger = await client.ledger()
    assert (ledger["received"], ledger["billed"], ledger["in_flight"]) == (200, 200, 0)
    assert ledger["billed_by_prompt"] == {prompt_hash(prompt): 1 for prompt in prompts}
    assert ledger["peak_in_flight"] > 10


async def test_success_has_the_documented_headers():
    async with sim(rpm="10000", tpm="4000000") as client, client.post() as response:
        headers = response.headers
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    assert headers["openai-processing-ms"].isdigit()
    assert headers["x-ratelimit-limit-requests"] == "10000"
    assert headers["x-ratelimit-remaining-requests"] == "9999"
    assert headers["x-ratelimit-reset-requests"] == "6ms"
    assert {"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"} <= set(headers)


async def test_no_limit_no_limit_headers():
    async with sim() as client, client.post() as response:
        assert not any(name.lower().startswith("x-ratelimit") for name in response.headers)


async def test_above_the_limit_is_429_with_a_wait_and_costs_nothing():
    async with sim(rpm="2") as client:
        assert [(await client.answer(f"{i}"))[0] for i in range(2)] == [200, 200]
        async with client.post() as response:
            error = (await response.json())["error"]
            assert (response.status, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
            assert 29 <= int(response.headers["retry-after"]) <= 30
            assert 29_000 < int(response.headers["retry-after-ms"]) <= 30_000
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
        ledger = await client.ledger()
    assert (ledger["received"], ledger["billed"], ledger["rejected"]) == (3, 2, {"429": 1})


async def test_no_headers_hides_them_all():
    async with sim(**{"rpm": "1", "no-headers": "true"}) as client, client.post() as good, client.post() as bad:
        assert (good.status, bad.status) == (200, 429)
        for response in (good, bad):
            names = {name.lower() for name in response.headers}
            assert not any(name.startswith(("x-ratelimit", "retry")) for name in names)


async def test_tokens_are_limited_by_what_is_billed():
    tokens = 2 + 10
    async with sim(**{"tpm": str(3 * tokens), "output-tokens": "10"}) as client:
        statuses = [(await client.answer("12345678"))[0] for _ in range(4)]
        assert statuses == [200, 200, 200, 429]


@pytest.mark.parametrize(
    ("settings", "fields", "status", "code"),
    [
        ({"api-key": "k"}, {}, 401, "invalid_api_key"),
        ({"api-key": "k"}, {"headers": {"authorization": "Bearer other"}}, 401, "invalid_api_key"),
        ({"models": "a,b"}, {}, 404, "model_not_found"),
        ({}, {"max_tokens": 0}, 400, "integer_below_min_value"),
        ({}, {"headers": {"content-type": "text/plain"}}, 400, None),
    ],
)
async def test_refusals(settings: dict[str, str], fields: dict[str, Any], status: int, code: str | None):
    async with sim(**settings) as client:
        async with client.post(**fields) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (status, code)
        ledger = await client.ledger()
    assert (ledger["rejected"], ledger["billed"]) == ({str(status): 1}, 0)


async def test_right_key_and_model_are_let_in():
    async with sim(**{"api-key": "k", "models": "a,m"}) as client:
        async with client.post(headers={"authorization": "Bearer k"}) as response:
            assert response.status == 200
        async with client.session.get(f"{client.server.base_url}/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["a", "m"]


async def test_other_paths_and_methods():
    async with sim() as client:
        root = client.server.base_url.removesuffix("/v1")
        for method, path, status in [
            ("GET", "/healthz", 200),
            ("GET", "/v1/chat/completions", 405),
            ("POST", "/v1/nope", 404),
            ("GET", "/ledger", 200),
        ]:
            async with client.session.request(method, root + path) as response:
                assert response.status == status
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        async with client.session.post(f"{root}/chat/completions", json=body) as response:
            assert response.status == 200


async def test_latency_and_token_rate_add_up():
    async with sim(**{"latency": "0.05", "tokens-per-s": "200", "output-tokens": "10"}) as client:
        began_s = time.perf_counter()
        await client.answer()
        assert 0.095 <= time.perf_counter() - began_s < 0.3


async def test_stream_is_paced_and_complete():
    settings = {"latency": "0.02", "tokens-per-s": "100", "output-tokens": "10", "rpm": "60"}
    async with sim(**settings) as client:
        began_s, pieces_at_s = time.perf_counter(), []
        async with client.post(stream=True, stream_options={"include_usage": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert "x-ratelimit-remaining-requests" in response.headers
            data = b""
            async for piece in response.content.iter_any():
                pieces_at_s.append(time.perf_counter() - began_s)
                data += piece
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    chunks = [json.loads(event) for event in events[:-1]]
    assert events[-1] == "[DONE]"
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert text == expected_answer("hello", 10)
    assert chunks[-1]["usage"]["completion_tokens"] == 10
    assert pieces_at_s[0] < 0.1 and pieces_at_s[-1] >= 0.11 and len(pieces_at_s) >= 4


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("429", 429, "rate_limit_exceeded"),
        ("500", 500, None),
        ("503", 503, "server_is_overloaded"),
        ("529", 529, None),
        ("400", 400, "invalid_prompt"),
        ("401", 401, "invalid_api_key"),
        ("404", 404, "model_not_found"),
        ("quota", 429, "credit_balance_exhausted"),
        ("context", 400, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_error_faults_answer_as_documented_and_cost_nothing(
    fault: str, status: int, code: str | None, stream: bool
):
    async with sim(fault=f"{fault}=1") as client:
        got, body = await client.answer(stream=stream)
        assert (got, body["error"]["code"]) == (status, code)
        ledger = await client.ledger()
    assert (ledger["billed"], ledger["rejected"], ledger["faults"]) == (0, {str(status): 1}, {fault: 1})


@pytest.mark.parametrize(
    ("fault", "status", "body", "billed"),
    [
        ("502", 502, b"<html>", 0),
        ("html", 200, b"<html>", 0),
        ("empty", 200, b"", 1),
        ("error200", 200, b'{"error":', 0),
        ("garbage-json", 200, b'{"id":', 1),
    ],
)
async def test_spoilt_answers(fault: str, status: int, body: bytes, billed: int):
    async with sim(fault=f"{fault}=1") as client:
        async with client.post() as response:
            got = await response.read()
            assert response.status == status
            assert got.startswith(body) and (body or not got)
        if fault == "garbage-json":
            with pytest.raises(json.JSONDecodeError):
                json.loads(got)
        assert (await client.ledger())["billed"] == billed


@pytest.mark.parametrize(
    ("fault", "raised", "billed"),
    [
        ("reset-before", aiohttp.ClientOSError, 0),
        ("reset-after", aiohttp.ClientOSError, 1),
        ("truncate", aiohttp.ClientPayloadError, 1),
    ],
)
async def test_broken_connections(fault: str, raised: type[Exception], billed: int):
    async with sim(fault=f"{fault}=1") as client:
        with pytest.raises(raised):
            await client.answer()
        await at_rest(client)
        assert client.server.ledger.billed == billed


@pytest.mark.parametrize("fault", ["truncate", "reset-after"])
async def test_stream_cut_in_its_middle_was_billed(fault: str):
    async with sim(**{"fault": f"{fault}=1", "output-tokens": "8"}) as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.post(stream=True) as response:
                await response.read()
        assert (await client.ledger())["billed"] == 1


@pytest.mark.parametrize(("fault", "billed"), [("error200", 0), ("garbage-json", 1)])
async def test_stream_spoilt_in_its_middle(fault: str, billed: int):
    async with sim(**{"fault": f"{fault}=1", "output-tokens": "8"}) as client:
        async with client.post(stream=True) as response:
            events = await streamed(response)
        assert "role" in events[0]
        if fault == "error200":
            assert json.loads(events[-1])["error"]["type"] == "server_error"
        else:
            assert events[-1] == "[DONE]"
            with pytest.raises(json.JSONDecodeError):
                json.loads(events[-2])
        assert (await client.ledger())["billed"] == billed


async def test_stall_stays_in_flight_until_the_client_leaves():
    async with sim(fault="stall=1") as client:
        await leave_when_in_flight(client, after_s=0.05)
        ledger = await client.ledger()
    assert (ledger["peak_in_flight"], ledger["in_flight"], ledger["billed"]) == (1, 0, 0)


async def test_work_goes_on_and_is_billed_when_the_client_leaves():
    async with sim(latency="0.08") as client:
        await leave_when_in_flight(client)
        assert client.server.ledger.billed == client.server.ledger.unread_by_prompt[prompt_hash("hello")] == 1


async def leave_when_in_flight(client: Client, after_s: float = 0.0) -> None:
    """Ask, leave so long after the server has the request, and wait until it is done with it."""
    answer = asyncio.create_task(client.answer())
    await until(lambda: client.server.ledger.in_flight)
    await asyncio.sleep(after_s)
    assert client.server.ledger.in_flight == 1
    answer.cancel()
    await asyncio.wait({answer})
    await at_rest(client)


async def at_rest(client: Client) -> None:
    """Its server hears some time later that a connection is gone."""
    ledger = client.server.ledger
    await until(lambda: not (ledger.in_flight or ledger.connections))


async def until(condition: Callable[[], Any]) -> None:
    """Threads count some time after the client has its answer."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("read", "unread"), [("all", 0), ("some", 1), ("none", 1)])
async def test_answer_that_the_client_left_unread_is_counted(read: str, unread: int):
    body = b'{"model":"m","messages":[{"role":"user","content":"a"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    async with sim() as client:
        ledger, address = client.server.ledger, client.server.base_url.removeprefix("http://").removesuffix("/v1")
        with socket.create_connection(address.split(":")) as connection:  # type: ignore[arg-type]
            connection.sendall(head % len(body) + body)
            while not ledger.billed:
                await asyncio.sleep(0.001)
            if read != "none":
                connection.recv(1 if read == "some" else 1 << 20)
        async with asyncio.timeout(2):
            while ledger.connections:
                await asyncio.sleep(0.001)
    assert ledger.unread_by_prompt == ({prompt_hash("a"): 1} if unread else {})


async def test_faults_of_waiting_state_the_wait_word_for_word():
    async with sim(**{"fault": "503=1", "retry-after": "-5 apples"}) as client, client.post() as response:
        assert (response.status, response.headers["retry-after"]) == (503, "-5 apples")


async def test_script_strikes_the_nth_arrival_and_the_prompt(tmp_path: Path):
    script = tmp_path / "script.jsonl"
    script.write_text('{"n": 2, "fault": "500"}\n{"prompt": "parcel", "fault": "503", "times": 1}\n')
    async with sim(script=str(script)) as client:
        prompts = ["a", "b", "the parcel", "the parcel"]
        assert [(await client.answer(prompt))[0] for prompt in prompts] == [200, 500, 503, 200]


async def test_fate_does_not_depend_on_the_order_of_arrival():
    prompts = [f"prompt {i}" for i in range(60)]

    async def statuses(order: list[str]) -> dict[str, list[int]]:
        async with sim(fault="429=0.3,500=0.2", seed="5") as client:
            return {prompt: [(await client.answer(prompt))[0] for _ in range(2)] for prompt in order}

    forward = await statuses(prompts)
    assert forward == await statuses(prompts[::-1])
    assert {status for pair in forward.values() for status in pair} == {200, 429, 500}


async def test_paid_twice_is_seen():
    async with sim() as client:
        for prompt in ("a", "b", "a"):
            await client.answer(prompt)
        ledger = await client.ledger()
    assert ledger["billed_by_prompt"] == {prompt_hash("a"): 2, prompt_hash("b"): 1}
    assert ledger["billed_twice"] == 1


async def test_ledger_file_has_a_line_as_soon_as_an_answer_is_billed(tmp_path: Path):
    file = tmp_path / "bills.jsonl"
    async with sim(ledger=str(file), fault="reset-after=1") as client:
        with pytest.raises(aiohttp.ClientOSError):
            await client.answer("a")
        [line] = file.read_text().splitlines()
    bill = json.loads(line)
    assert (bill["n"], bill["prompt_hash"], bill["fault"]) == (1, prompt_hash("a"), "reset-after")
    assert bill["completion_tokens"] > 0


async def test_overload_is_503():
    async with sim(**{"latency": "0.1", "max-inflight": "2"}) as client:
        statuses = [status for status, _ in await asyncio.gather(*(client.answer(f"{i}") for i in range(3)))]
        assert sorted(statuses) == [200, 200, 503]
        assert (await client.answer())[0] == 200


async def test_leaving_drains_what_is_in_flight():
    async with aiohttp.ClientSession() as session:
        async with sim_server(latency="0.1") as server:
            answer = asyncio.create_task(Client(server, session).answer())
            while not server.ledger.in_flight:
                await asyncio.sleep(0)
        assert (await answer)[0] == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await Client(server, session).answer()
    assert server.ledger.connections == 0


async def test_leaving_waits_no_longer_than_drain():
    async with aiohttp.ClientSession() as session:
        began_s = time.perf_counter()
        async with sim_server(latency="30", drain="0.05") as server:
            answer = asyncio.create_task(Client(server, session).answer())
            while not server.ledger.in_flight:
                await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientError):
            await answer
    assert time.perf_counter() - began_s < 2
    assert (server.ledger.billed, server.ledger.in_flight) == (0, 0)


async def test_leaving_does_not_wait_for_what_will_never_be_answered():
    async with aiohttp.ClientSession() as session, asyncio.timeout(10):
        async with sim_server(fault="stall=1", drain="60") as server:
            answer = asyncio.create_task(Client(server, session).answer())
            while not server.ledger.in_flight:
                await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientError):
            await answer
    assert server.ledger.in_flight == 0


async def raw(server: Server, message: bytes) -> bytes:
    """Everything the server sends until it closes."""
    host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(message)
    async with asyncio.timeout(2):
        data = await reader.read()
    writer.close()
    await writer.wait_closed()
    return data


async def test_pipelined_requests_are_answered_in_order_and_close_is_obeyed():
    bodies = [b'{"model":"m","messages":[{"role":"user","content":"%d"}]}' % i for i in range(50)]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
    messages = [head + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies]
    last = b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n"
    async with sim(latency="0.001") as client:
        data = await raw(client.server, b"".join(messages) + last)
    places = [data.index(expected_answer(str(i)).encode()) for i in range(50)]
    assert places == sorted(places)
    assert data.endswith(b'{"status":"ok"}')


async def test_nonsense_is_answered_and_the_connection_closed():
    async with sim() as client:
        data = await raw(client.server, b"EHLO there\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b'"error"' in data


async def test_idle_connection_is_closed():
    async with sim(idle="0.05") as client:
        data = await raw(client.server, b"GET /healthz HTTP/1.1\r\n\r\n")
    assert data.endswith(b'{"status":"ok"}')


async def test_busy_connection_is_not_idle():
    async with sim(idle="0.02", latency="0.15") as client:
        assert (await client.answer())[0] == 200


async def test_taken_port_is_refused():
    async with sim() as client:
        port = client.server.base_url.removesuffix("/v1").rpartition(":")[2]
        with pytest.raises(OSError):
            async with sim_server(port=port):
                pass
