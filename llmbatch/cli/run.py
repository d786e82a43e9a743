"""``llmbatch run``: the flags, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from llmbatch.cli import completion, parse
from llmbatch.cli.ending import Ending
from llmbatch.cli.summary_file import SummaryFile
from llmbatch.errors import OptionsError
from llmbatch.options import (
    CONNECT_TIMEOUT_S,
    DEFAULT_CONCURRENCY,
    DRAIN_S,
    FIRST_TOKEN_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    MAX_AMBIGUOUS_RETRIES,
    MAX_ATTEMPTS,
    MAX_WAIT_S,
    SCHEMA_RETRIES,
    TOTAL_TIMEOUT_S,
    RetryLimits,
    RunOptions,
    Timeouts,
    output_path,
)

EPILOG = """Examples:

  llmbatch run prompts.jsonl -m openai/gpt-4.1-mini --concurrency 10

  llmbatch run rows.jsonl -t 'Summarise: {{ text }}' -m llama3.2 --base-url http://localhost:11434/v1

  jq -c . rows.json | llmbatch run - -m sim/demo | jq -r .output

Every option but those of one run may also stand in the environment (LLMBATCH_RPM=500) and in llmbatch.toml
(rpm = 500), in the working directory or ~/.config/llmbatch. A flag wins over the environment, that over the profile,
that over the file.

Exit codes: 0 every row ok; 1 complete, some rows failed; 2 bad usage, input or configuration, nothing was sent;
3 stopped by the provider (key, quota, model); 4 a limit was reached (--max-failures, --max-ambiguous-cost); 5 local
disk; 6 another run holds this output, or it is not ours; 70 a bug; 130, 143, 129, 141 interrupted, terminated, hung up,
reader gone. After 3, 4, 5, 130, 143, 129 and 141 the same command continues.
"""

OnChange = Literal["refuse", "rerun", "keep"]
Order = Literal["input", "completion"]
Format = Literal["auto", "jsonl", "text", "csv", "tsv", "parquet"]
ResultsFormat = Literal["jsonl", "openai-batch", "csv", "parquet"]
Progress = Literal["auto", "rich", "plain", "json", "none"]


def run(
    input_: Annotated[
        str, typer.Argument(metavar="INPUT", help="JSONL, text, CSV, TSV, Parquet; .gz, .zst too; - is standard input.")
    ],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Default: INPUT with .results.jsonl; for - standard output.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            help="openai/NAME, NAME (with --base-url, as the server knows it), sim/NAME; llmbatch models lists them.",
            autocompletion=completion.models,
        ),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server, such as http://localhost:8000/v1. Repeatable: rows spread over them.",
        ),
    ] = None,
    api: Annotated[
        str | None,
        typer.Option(
            help="The dialect, where it must be said: openai-chat, openai-responses, openai-embeddings, anthropic, "
            "gemini, gemini-embeddings.",
            autocompletion=completion.apis,
        ),
    ] = None,
    api_version: Annotated[
        str | None, typer.Option(help="Of Azure (2024-10-21), Anthropic (2023-06-01) or Gemini (v1beta).")
    ] = None,
    template: Annotated[
        str | None, typer.Option("-t", "--template", help="Jinja2 text with the row's fields, or @FILE.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TEMPLATE",
            help="One of several questions about each row, asked at the same time; the template is text or @FILE. "
            "Repeatable; the output is an object with an answer for each name.",
        ),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Called with each row; gives a row, a prompt, messages, or None to skip."
        ),
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Called with each good result; gives the result.")
    ] = None,
    hook_processes: Annotated[
        int | None, typer.Option(metavar="N", help="Run hooks that are plain functions in N processes, not in threads.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("-s", "--system", help="The system message, a template too, or @FILE.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("-p", "--param", metavar="NAME=VALUE", help="Any body field; repeatable.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON Schema; every answer is JSON that fits it, or an error.")
    ] = None,
    schema_retries: Annotated[
        int, typer.Option(metavar="N", help="How often a row is asked again when its answer does not fit.")
    ] = SCHEMA_RETRIES,
    concurrency: Annotated[
        str,
        typer.Option(
            "-c",
            "--concurrency",
            metavar="N|auto",
            help=f"Requests in flight. auto: from {DEFAULT_CONCURRENCY} to what the limits and the server can use.",
        ),
    ] = "auto",
    max_concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Never more in flight than this, at all endpoints together.")
    ] = None,
    rpm: Annotated[
        float | None, typer.Option(help="Requests per minute, evenly paced, never more. Limits hold for each key.")
    ] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens per minute, of prompts and answers together.")] = None,
    input_tpm: Annotated[float | None, typer.Option(help="Tokens of prompts per minute.")] = None,
    output_tpm: Annotated[float | None, typer.Option(help="Tokens of answers per minute.")] = None,
    rpd: Annotated[
        int | None, typer.Option(help="Requests in any 24 hours, also over several runs; then the run stops.")
    ] = None,
    limit_group: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Runs of this machine that name the same group share its limits."),
    ] = None,
    tenant_field: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Rows take turns by what stands there. Default: tenant, if rows have it."),
    ] = None,
    tenant_rpm: Annotated[float | None, typer.Option(help="Requests per minute of each tenant.")] = None,
    tenant_concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Requests of each tenant in flight.")
    ] = None,
    hedge: Annotated[
        str | None,
        typer.Option(
            metavar="p95|TIME",
            help="Ask a second time when an answer takes longer than this; the first one counts, both may be billed.",
        ),
    ] = None,
    cache_prompt: Annotated[
        bool, typer.Option("--cache-prompt", help="Mark prompts for the provider's cache (Anthropic).")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Ask for streamed answers: a stall is seen early.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything, send nothing.")] = False,
    key_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="The variable that holds the key. Repeatable: rows are spread over the keys."
        ),
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="A file that holds the key, mode 0600.")] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Send the key over http:// to another machine.")
    ] = False,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) to trust besides those that the system trusts.")
    ] = None,
    input_format: Annotated[Format, typer.Option(help="Default: by suffix, then by the first line.")] = "auto",
    format: Annotated[
        ResultsFormat | None,
        typer.Option("--format", help="Of the results. Default: by the output's suffix (.csv, .parquet), else jsonl."),
    ] = None,
    include_input: Annotated[bool, typer.Option("--include-input", help="Add the row itself to its result.")] = False,
    order: Annotated[
        Order | None, typer.Option(help="Of the output. Default: input for files, completion for standard output.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Move old results aside and start over.")] = False,
    on_change: Annotated[
        OnChange | None, typer.Option(help="Finished rows that now ask something else. Default: refuse.")
    ] = None,
    generation: Annotated[
        int, typer.Option(help="Another number asks every row anew, for another sample; see --on-change.")
    ] = 0,
    no_journal: Annotated[
        bool, typer.Option("--no-journal", help="Standard output only: keep no journal; nothing can be continued.")
    ] = False,
    max_attempts: Annotated[int, typer.Option(help="Tries per row; rate-limit answers do not count.")] = MAX_ATTEMPTS,
    max_ambiguous_retries: Annotated[
        int, typer.Option(help="Further tries after one that may have been billed.")
    ] = MAX_AMBIGUOUS_RETRIES,
    max_ambiguous_cost: Annotated[
        float | None,
        typer.Option(
            metavar="USD",
            help="Stop when requests that failed after sending may have cost more than this in all; also at the first "
            "whose cost nobody can bound.",
        ),
    ] = None,
    max_failures: Annotated[
        str | None,
        typer.Option(
            metavar="N|N%",
            help="Stop when more rows failed, of the run or of the rows ended. Default: when the first 20 fail alike, "
            "or more than half of the last 200 fail. 100% goes on regardless.",
        ),
    ] = None,
    max_wait: Annotated[
        str, typer.Option(metavar="TIME", help="The longest pause a provider may ask for; a longer one stops the run.")
    ] = f"{MAX_WAIT_S:g}s",
    connect_timeout: Annotated[str, typer.Option(metavar="TIME")] = f"{CONNECT_TIMEOUT_S:g}s",
    first_token_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="With --stream.")
    ] = f"{FIRST_TOKEN_TIMEOUT_S:g}s",
    idle_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="Between two parts of an answer.")
    ] = f"{IDLE_TIMEOUT_S:g}s",
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="For one whole attempt; an attempt given up may still be billed.")
    ] = f"{TOTAL_TIMEOUT_S:g}s",
    row_deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="For all attempts of a row together.")
    ] = None,
    drain: Annotated[
        str, typer.Option(metavar="TIME", help="After Ctrl-C, how long to wait for what is in flight.")
    ] = f"{DRAIN_S:g}s",
    progress: Annotated[Progress, typer.Option(help="auto: rich on a terminal, else plain.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say every failed attempt.")] = False,
    summary_json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the summary as JSON; - is standard output.")
    ] = None,
    sim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="With -m sim/NAME: an option of `llmbatch sim`; repeatable."),
    ] = None,
    # The places of settings are read before this function is called, by configured.ConfiguredCommand.
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Settings. Default: llmbatch.toml here, or in ~/.config/llmbatch."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its [profiles.NAME] too.", autocompletion=completion.profiles),
    ] = None,
    env_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Variables, NAME=VALUE; those that are set already stay.")
    ] = None,
) -> None:
    """Run a file of prompts. The same command again continues; results appear when every row is done."""
    with Ending() as ending:
        results = None if dry_run else output_path(input_, output, format)
        summary_file = SummaryFile.checked(summary_json, input_path=input_, results=results)
        ending.tell = summary_file.write_error
        options = RunOptions(
            input=input_,
            output=output,
            model=model,
            base_url=base_url or None,
            api=api,
            api_version=api_version,
            key_env=key_env or None,
            key_file=key_file,
            allow_http=allow_http,
            ca_file=ca_file,
            template=parse.text_or_file(template, "--template"),
            tasks=parse.tasks(task or ()),
            before=before,
            after=after,
            hook_processes=hook_processes,
            system=parse.text_or_file(system, "--system"),
            params=parse.params(param or ()),
            schema=None if schema is None else _schema_in(schema),
            schema_retries=schema_retries,
            input_format=input_format,
            format=format,
            limit=limit,
            concurrency=parse.concurrency(concurrency),
            max_concurrency=max_concurrency,
            rpm=rpm,
            tpm=tpm,
            input_tpm=input_tpm,
            output_tpm=output_tpm,
            rpd=rpd,
            limit_group=limit_group,
            tenant_field=tenant_field,
            tenant_rpm=tenant_rpm,
            tenant_concurrency=tenant_concurrency,
            hedge=None if hedge is None else parse.hedge(hedge),
            cache_prompt=cache_prompt,
            stream=stream,
            timeouts=Timeouts(
                connect_s=parse.seconds(connect_timeout),
                first_token_s=parse.seconds(first_token_timeout),
                idle_s=parse.seconds(idle_timeout),
                total_s=parse.seconds(timeout),
            ),
            retry=RetryLimits(
                attempts=max_attempts, ambiguous=max_ambiguous_retries, max_wait_s=parse.seconds(max_wait)
            ),
            row_deadline_s=None if row_deadline is None else parse.seconds(row_deadline),
            max_failures=max_failures,
            max_ambiguous_cost_usd=max_ambiguous_cost,
            drain_s=parse.seconds(drain),
            restart=restart,
            on_change=on_change,
            generation=generation,
            order=order,
            include_input=include_input,
            journal_stdout=not no_journal,
            sim=parse.settings(sim or (), "--sim"),
        )
        if quiet and verbose:
            raise OptionsError("-q and -v exclude each other")
        from llmbatch.cli.execute import Shown, dry_run_command, run_command

        shown = Shown(progress, quiet=quiet, verbose=verbose, summary_file=summary_file)
        ending.code = dry_run_command(options, shown) if dry_run else run_command(options, shown)


def _schema_in(path: Path) -> dict[str, Any]:
    from llmbatch.rules.schema import MAX_SCHEMA_BYTES, schema_of

    try:
        with path.open("rb") as file:
            text = file.read(MAX_SCHEMA_BYTES + 1)
    except OSError as error:
        raise OptionsError(f"--schema {path}: {error.strerror}") from error
    return schema_of(text, f"--schema {path}")


run.__doc__ = cast(Any, run.__doc__) + "\n\n" + EPILOG
