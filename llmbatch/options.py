"""One frozen RunOptions for the whole way down. Every default is named, with its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmbatch.errors import OptionsError

STDIO = "-"
_LIMIT_GROUP = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FAILURES = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(%)?", re.ASCII)
ResultsFormat = Literal["jsonl", "openai-batch", "csv", "parquet"]
_RESULTS_BY_SUFFIX: dict[str, ResultsFormat] = {".csv": "csv", ".parquet": "parquet"}
_DEFAULT_SUFFIXES: dict[ResultsFormat, str] = {
    "jsonl": ".results.jsonl",
    "openai-batch": ".batch.jsonl",
    "csv": ".results.csv",
    "parquet": ".results.parquet",
}
# Names that promise a format that is not written.
_UNWRITTEN_FORMATS = (".tsv", ".gz", ".zst")

# Where --concurrency auto begins: what a small provider tier and a local server both bear.
DEFAULT_CONCURRENCY = 16
# Establishing TCP and TLS takes well under a second; ten covers a lost SYN or two.
CONNECT_TIMEOUT_S = 10.0
# Reasoning models may think for minutes before the first token.
FIRST_TOKEN_TIMEOUT_S = 600.0
# Servers send tokens or pings every few seconds once a stream has begun.
IDLE_TIMEOUT_S = 120.0
# An attempt may be billed even if we give up on it, so the limit is generous: reasoning runs 10 minutes and more.
TOTAL_TIMEOUT_S = 1800.0
MAX_ATTEMPTS = 5
# Asking again may pay twice, so once.
MAX_AMBIGUOUS_RETRIES = 1
# Told what is wrong, a model that can do it at all does it in two more tries; each is paid for.
SCHEMA_RETRIES = 2
BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
# A server that asks for a longer pause than this stops the run (exit 3); the same command continues.
MAX_WAIT_S = 900.0
DRAIN_S = 60.0
MAX_BODY_BYTES = 64 * 2**20
MAX_LINE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. ``total_s`` is per attempt; ``first_token_s`` and ``idle_s`` bind streamed answers."""

    connect_s: float = CONNECT_TIMEOUT_S
    first_token_s: float = FIRST_TOKEN_TIMEOUT_S
    idle_s: float = IDLE_TIMEOUT_S
    total_s: float = TOTAL_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """``attempts`` counts all tries of a row but rate-limit answers, which have ``max_wait_s`` instead."""

    attempts: int = MAX_ATTEMPTS
    ambiguous: int = MAX_AMBIGUOUS_RETRIES
    base_s: float = BACKOFF_BASE_S
    cap_s: float = BACKOFF_CAP_S
    max_wait_s: float = MAX_WAIT_S


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """The run stops when more than ``rows`` rows failed, or more than ``share`` (0 to 1) of the rows that ended."""

    rows: int | None = None
    share: float | None = None

    @classmethod
    def of(cls, text: int | str) -> FailureLimit:
        """From ``10``, ``"10"`` or ``"5%"``; ``"100%"`` never stops. Raises OptionsError."""
        words = str(text).strip()
        match = _FAILURES.fullmatch(words)
        if match is None or (match[2] and float(match[1]) > 100) or (not match[2] and "." in match[1]):
            raise OptionsError(f"--max-failures {words[:40]!r}: give a number of rows or a share, such as 10 or 5%")
        return cls(share=float(match[1]) / 100) if match[2] else cls(rows=int(match[1]))


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything a run needs to know. Nothing below the edge reads the environment or the command line.

    ``input`` and ``output`` are paths, or ``-`` for standard input and output; ``output`` None means
    beside the input (``INPUT.results.jsonl``), or standard output if the input is standard input.
    ``max_failures`` is a number of rows or a share such as ``"5%"``; None is the default fuse (rules/fuse.py).
    ``max_ambiguous_cost_usd`` bounds what may have been billed without a usable answer; an unknown sum passes it.
    Another ``generation`` asks the same rows for another sample: to it, finished ones have changed.
    ``template`` and ``system`` are the texts themselves; ``tasks`` are templates by name, for several questions about
    each row. ``before`` and ``after`` are hooks, as ``module:function``; plain functions run in threads, or in
    ``hook_processes`` processes. ``schema`` is a JSON Schema that every answer must fit; a row is asked again up to
    ``schema_retries`` times. ``concurrency`` None means auto; never more than ``max_concurrency``. ``rpm``, ``tpm``,
    ``input_tpm`` and ``output_tpm`` (requests and tokens per minute) and ``rpd`` (requests per day) hold for each
    endpoint and key; None is learnt from the answers. Runs with the same ``limit_group`` on one machine share them.
    Rows take turns by what stands in ``tenant_field``; ``tenant_rpm`` and ``tenant_concurrency`` hold for each tenant.
    ``hedge`` asks once more when a request takes longer than so many seconds, or than 95 % of them do.
    ``cache_prompt`` marks the prompts for the provider's cache, where they must be marked. Of ``base_url`` and
    ``key_env`` there may be several: rows are spread over them. ``format`` is that of the results; None goes by the
    suffix of ``output``.
    """

    input: str
    output: str | None = None
    model: str | None = None
    base_url: str | Sequence[str] | None = None
    api: str | None = None
    api_version: str | None = None
    key_env: str | Sequence[str] | None = None
    key_file: Path | None = None
    allow_http: bool = False
    ca_file: Path | None = None
    template: str | None = None
    system: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    schema_retries: int = SCHEMA_RETRIES
    before: str | None = None
    after: str | None = None
    hook_processes: int | None = None
    input_format: Literal["auto", "jsonl", "text", "csv", "tsv", "parquet"] = "auto"
    format: ResultsFormat | None = None
    limit: int | None = None
    concurrency: int | None = None
    max_concurrency: int | None = None
    rpm: float | None = None
    tpm: float | None = None
    input_tpm: float | None = None
    output_tpm: float | None = None
    rpd: int | None = None
    limit_group: str | None = None
    tenant_field: str | None = None
    tenant_rpm: float | None = None
    tenant_concurrency: int | None = None
    hedge: float | Literal["p95"] | None = None
    cache_prompt: bool = False
    stream: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: RetryLimits = field(default_factory=RetryLimits)
    row_deadline_s: float | None = None
    max_failures: int | str | None = None
    max_ambiguous_cost_usd: float | None = None
    drain_s: float = DRAIN_S
    restart: bool = False
    on_change: Literal["refuse", "rerun", "keep"] | None = None
    generation: int = 0
    order: Literal["input", "completion"] | None = None
    include_input: bool = False
    journal_stdout: bool = True
    max_line_bytes: int = MAX_LINE_BYTES
    sim: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _positive("--concurrency", self.concurrency)
        _positive("--max-concurrency", self.max_concurrency)
        _positive("--rpm", self.rpm)
        _positive("--tpm", self.tpm)
        _positive("--input-tpm", self.input_tpm)
        _positive("--output-tpm", self.output_tpm)
        _positive("--rpd", self.rpd)
        if self.limit_group is not None:
            check_limit_group(self.limit_group)
        _positive("--tenant-rpm", self.tenant_rpm)
        _positive("--tenant-concurrency", self.tenant_concurrency)
        if self.hedge is not None and self.hedge != "p95" and not isinstance(self.hedge, (int, float)):
            raise OptionsError(f"--hedge {str(self.hedge)[:40]!r}: give p95, or a time such as 10s")
        _positive("--hedge", self.hedge if self.hedge != "p95" else None)
        _positive("--limit", self.limit)
        _positive("--connect-timeout", self.timeouts.connect_s)
        _positive("--first-token-timeout", self.timeouts.first_token_s)
        _positive("--idle-timeout", self.timeouts.idle_s)
        _positive("--timeout", self.timeouts.total_s)
        _positive("--row-deadline", self.row_deadline_s)
        _positive("--max-attempts", self.retry.attempts)
        _positive("--max-ambiguous-cost", self.max_ambiguous_cost_usd)
        _ = self.failure_limit
        if self.tenant_column is None and (self.tenant_rpm is not None or self.tenant_concurrency is not None):
            raise OptionsError(
                "--tenant-rpm and --tenant-concurrency hold for each tenant: with a template, say with "
                "--tenant-field FIELD where the rows name theirs"
            )
        if self.tasks and self.template is not None:
            raise OptionsError("--template is one question and --task one of several: give one of the two")
        if self.hook_processes is not None and self.before is None and self.after is None:
            raise OptionsError("--hook-processes is about hooks: add --before or --after module:function")
        _positive("--hook-processes", self.hook_processes)
        if self.schema_retries < 0:
            raise OptionsError(f"--schema-retries counts from 0, not {self.schema_retries}")
        if self.generation < 0:
            raise OptionsError(f"--generation counts from 0, not {self.generation}")
        if self.format is None and (self.output or "").lower().endswith(_UNWRITTEN_FORMATS):
            raise OptionsError(
                f"--output {self.output}: results are written as JSONL, CSV or Parquet; give it a name in .jsonl, .csv "
                "or .parquet, or say --format"
            )
        if self.output_path == STDIO and self.is_table:
            raise OptionsError(
                f"--format {self.results_format} is no stream: name a file with -o FILE, or leave it out and pipe JSONL"
            )
        if self.sim and not (self.model or "").startswith("sim/"):
            raise OptionsError("--sim sets options of the simulated provider; add -m sim/NAME")

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The addresses that were said, none for the provider's own."""
        return _several(self.base_url)

    @property
    def key_envs(self) -> tuple[str, ...]:
        """The variables of keys that were named, none for the provider's usual ones."""
        return _several(self.key_env)

    @property
    def tenant_column(self) -> str | None:
        """The field of a row that says whose it is; without a template, whose data may have any names, it has one."""
        if self.tenant_field is not None:
            return self.tenant_field
        return "tenant" if self.template is None and not self.tasks else None

    @property
    def failure_limit(self) -> FailureLimit | None:
        """What ``max_failures`` says."""
        return None if self.max_failures is None else FailureLimit.of(self.max_failures)

    @property
    def output_path(self) -> str:
        """Where results go: the path given, else the rule of the default."""
        return output_path(self.input, self.output, self.format)

    @property
    def results_format(self) -> ResultsFormat:
        """The format given, else that of the output's suffix."""
        return self.format or _RESULTS_BY_SUFFIX.get(Path(self.output_path).suffix.lower(), "jsonl")

    @property
    def is_table(self) -> bool:
        """Whether results stand in columns, beside those of the input."""
        return self.results_format in ("csv", "parquet")

    @property
    def keeps_input(self) -> bool:
        """Whether each result holds its row."""
        return self.include_input or self.is_table


def check_limit_group(name: str) -> None:
    """Raise OptionsError unless ``name`` can be part of the name of a file."""
    if _LIMIT_GROUP.fullmatch(name) is None:
        raise OptionsError(
            f"--limit-group {name[:80]!r}: give at most 64 letters, digits, dots, hyphens or underscores"
        )


def output_path(input_path: str, output: str | None, format: ResultsFormat | None = None) -> str:
    """Where results of ``input_path`` go if ``output`` and ``format`` are what the user said of it."""
    if output is not None:
        return output
    return STDIO if input_path == STDIO else default_output(input_path, format)


def default_output(input_path: str, format: ResultsFormat | None = None) -> str:
    """``data/in.jsonl`` -> ``data/in.results.jsonl``, or as the format has it; a compression suffix goes too."""
    path = Path(input_path)
    name = path.name
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    stem = name.rsplit(".", 1)[0] if "." in name.lstrip(".") else name
    return str(path.parent / f"{stem}{_DEFAULT_SUFFIXES[format or 'jsonl']}")


def _several(said: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if said is None else (said,) if isinstance(said, str) else tuple(said)


def _positive(flag: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise OptionsError(f"{flag} must be above 0, not {value:g}")
