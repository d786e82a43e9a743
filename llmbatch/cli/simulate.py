"""`llmbatch sim`: a simulated provider on loopback."""

from __future__ import annotations

from typing import Annotated

import typer

# Away from 8080, where llama.cpp, TGI and half of all development servers listen.
DEFAULT_PORT = 8089


def sim(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = DEFAULT_PORT,
    seed: Annotated[int, typer.Option(help="Another seed, other latencies, lengths and faults.")] = 0,
    latency: Annotated[str, typer.Option(metavar="DIST", help="Seconds an answer takes.")] = "0",
    first_token: Annotated[
        str | None, typer.Option(metavar="DIST", help="Seconds to the first token of a stream. Default: --latency.")
    ] = None,
    tokens_per_s: Annotated[
        float | None, typer.Option("--tokens-per-s", help="Adds the time of an answer's tokens; paces streams.")
    ] = None,
    output_tokens: Annotated[
        str | None, typer.Option(metavar="DIST", help="Length of answers. Default: that of the echoed prompt.")
    ] = None,
    rpm: Annotated[float | None, typer.Option(help="Requests per minute; above that 429.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens per minute; above that 429.")] = None,
    input_tpm: Annotated[float | None, typer.Option(help="Tokens of prompts per minute; above that 429.")] = None,
    output_tpm: Annotated[float | None, typer.Option(help="Tokens of answers per minute; above that 429.")] = None,
    burst: Annotated[float, typer.Option(help="Seconds of the limits that may be used at once.")] = 60.0,
    rpd: Annotated[float | None, typer.Option(help="Requests per day; above that 429 until tomorrow.")] = None,
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="N requests are worked on at once, the others queue, as in vLLM.")
    ] = None,
    slot_slowdown: Annotated[
        float, typer.Option(metavar="F", help="With all slots busy every token takes 1 + F times as long as alone.")
    ] = 0.0,
    limit_headers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How the OpenAI dialect tells its limits: openai groq azure mistral together openrouter none.",
        ),
    ] = None,
    no_headers: Annotated[bool, typer.Option("--no-headers", help="Hide rate-limit and retry headers.")] = False,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=RATE",
            help="Repeatable. Kinds: 429 500 502 503 529 400 401 404 quota context reset-before reset-after stall "
            "truncate html empty error200 garbage-json.",
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='JSON Lines of faults: {"n": 3, "fault": "429"} or {"prompt": "part", "fault": "stall", "times": 1}.',
        ),
    ] = None,
    retry_after: Annotated[
        str | None, typer.Option(metavar="VALUE", help="Retry-After of faults 429, 503 and 529, word for word.")
    ] = None,
    max_inflight: Annotated[int | None, typer.Option(metavar="N", help="Above N in process or queued: 503.")] = None,
    api_key: Annotated[str | None, typer.Option(metavar="KEY", help="Refuse any other (made up) key with 401.")] = None,
    models: Annotated[str | None, typer.Option(metavar="A,B", help="Refuse any other model with 404.")] = None,
    ledger: Annotated[
        str | None, typer.Option(metavar="FILE", help="Append one JSON line for every answer that was billed.")
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="async: one event loop. threads: a pool of threads that block.")
    ] = "async",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="With --mode threads: so many requests at once. Default: 16.")
    ] = None,
    idle: Annotated[float, typer.Option(help="Seconds until an idle connection is closed.")] = 75.0,
    drain: Annotated[float, typer.Option(help="Seconds to finish what is in flight when stopped.")] = 5.0,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIME:NAME=VALUE",
            help="Repeatable. Another setting from then on, counted from the first request: 60s:rpm=300, "
            "30s:fault=429=1.0, 90s:slots=16; 30s:down=10m refuses connections for so long.",
        ),
    ] = None,
) -> None:
    """Run a simulated provider on loopback, with limits, latencies and faults on demand.

    It speaks OpenAI Chat Completions, Responses and Embeddings and Anthropic Messages under /v1, Gemini under /v1beta
    and /v1, and Azure OpenAI under /openai, each with its own refusals, errors and limit headers.

    Example: llmbatch sim --rpm 500 --latency lognormal:median=1.2,sigma=0.6,tail=0.01x20 --fault 429=0.01

    DIST is a NUMBER, or fixed:value=V, uniform:low=A,high=B or lognormal:median=M,sigma=S; each of these three may
    have a heavy tail: with ,tail=0.01x20 one value in a hundred is 20 times larger.

    It says what it did under http://127.0.0.1:PORT/ledger (?full adds every prompt, ?times what happened each second),
    and how it is under /metrics (Prometheus) and /healthz, which waits for a thread like any request.

    Exit codes: 0 stopped by SIGTERM or SIGINT, 2 bad usage, 5 the port is taken or the ledger can not be written.
    """
    settings = {
        "port": port,
        "seed": seed,
        "latency": latency,
        "first-token": first_token,
        "tokens-per-s": tokens_per_s,
        "output-tokens": output_tokens,
        "rpm": rpm,
        "tpm": tpm,
        "input-tpm": input_tpm,
        "output-tpm": output_tpm,
        "burst": burst,
        "rpd": rpd,
        "slots": slots,
        "slot-slowdown": slot_slowdown,
        "limit-headers": limit_headers,
        "no-headers": no_headers,
        "fault": ",".join(fault) if fault else None,
        "script": script,
        "retry-after": retry_after,
        "max-inflight": max_inflight,
        "api-key": api_key,
        "models": models,
        "ledger": ledger,
        "mode": mode,
        "threads": threads,
        "idle": idle,
        "drain": drain,
        "at": ";".join(at) if at else None,
    }
    _serve({name: str(value) for name, value in settings.items() if value is not None})


def _serve(settings: dict[str, str]) -> None:
    from llmbatch.sim.options import sim_options_from
    from llmbatch.sim.serve import serve

    try:
        options = sim_options_from(settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        serve(options, _announce)
    except OSError as error:
        typer.echo(f"sim: {error.strerror or error} ({error.filename or f'port {options.port}'})", err=True)
        raise typer.Exit(5) from None


def _announce(base_url: str) -> None:
    """The one line scripts read, then how to use it; click flushes each."""
    typer.echo(f"sim: listening on {base_url}")
    typer.echo(f"sim: try    llmbatch run input.jsonl --base-url {base_url} -m sim-model", err=True)
