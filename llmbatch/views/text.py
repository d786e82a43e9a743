"""The last words of a run, as plain text: what happened, whether it adds up, and what to type next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping

from llmbatch.records import CHOICES_MISMATCH, EMPTY, FLAGS, MODEL_MISMATCH
from llmbatch.summary import Exposure, Percentiles, Summary
from llmbatch.views.safe import safe
from llmbatch.views.words import BINDING, count, duration, money, rate

_TOP_ERRORS = 5
_EXAMPLE_CELLS = 100
_TYPE_CELLS = 40
_LABEL_CELLS = 10

# How answers end when nothing is to be said of it.
_ORDINARY_ENDS = {"stop", "tool_calls", "none given"}

_HEADLINES: Mapping[int, str] = {
    0: "Done: every row is ok.",
    1: "Done, but some rows failed.",
    2: "Refused; nothing was sent.",
    3: "Stopped by the provider.",
    4: "Stopped at a limit; the warning below says which.",
    5: "Stopped by this machine's disk.",
    6: "Refused: the output is in use or is not ours; nothing was sent.",
    70: "A bug in llmbatch; please report it.",
    129: "Hung up.",
    130: "Interrupted.",
    141: "Stopped: nobody reads the output any more.",
    143: "Terminated.",
}


def render_summary(summary: Summary, *, quiet: bool = False) -> str:
    """The whole summary, ending in a newline; with ``quiet`` nothing unless something went wrong.

    Every string that is not ours is made safe for a terminal, and bounded.
    """
    if quiet:
        parts = [] if summary.exit_code in (0, 141) and summary.adds_up else [_headline(summary), _errors(summary)]
    else:
        parts = [_headline(summary), _figures(summary), _errors(summary), _notices(summary), _next(summary)]
    blocks = ["\n".join(lines) for part in parts if (lines := list(part))]
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _headline(summary: Summary) -> Iterator[str]:
    yield _what_happened(summary)
    read = "" if summary.input_complete else " read"
    equal = "=" if summary.adds_up else "is NOT"
    yield (
        f"{count(summary.rows, 'row')}{read} {equal} {summary.ok:,} ok + {summary.failed:,} failed"
        f" + {summary.skipped:,} skipped + {summary.pending:,} pending"
    )
    if summary.ok_before or summary.failed_before:
        yield f"({_before(summary)} came from earlier runs)"
    if not summary.input_complete:
        yield "The rest of the input was not read."
    if not summary.adds_up:
        yield "The counts do not add up: this is a bug in llmbatch. Keep the files and report it."


def _what_happened(summary: Summary) -> str:
    if summary.exit_code == 0 and summary.rows == 0:
        return "Warning: 0 rows: the input was empty."
    if summary.exit_code == 1 and summary.input_truncated:
        return "Done, but the input is cut short: rows are missing."
    if summary.exit_code == 1 and _nothing_to_retry(summary):
        return "Nothing to do, but some rows can not be sent."
    return _HEADLINES.get(summary.exit_code, f"Ended with exit code {summary.exit_code}.")


def _nothing_to_retry(summary: Summary) -> bool:
    """All failed rows stand as an earlier run left them: asking once more would not be another question."""
    return 0 < summary.failed == summary.failed_before


def _before(summary: Summary) -> str:
    named = ((summary.ok_before, "ok"), (summary.failed_before, "failed"))
    return " and ".join(f"{n:,} {name}" for n, name in named if n)


def _figures(summary: Summary) -> Iterator[str]:
    yield _figure("time", f"{duration(summary.seconds)}, {rate(summary.rows_per_s)} rows/s")
    if summary.requests:
        yield _figure("requests", _requests(summary))
    if summary.hedges:
        yield _figure("hedged", _hedged(summary))
    if summary.latency_s:
        yield _figure("latency", _latency(summary.latency_s))
    if summary.first_token_s:
        yield _figure("", f"first token {_latency(summary.first_token_s)}")
    if summary.requests:
        yield _figure("tokens", _tokens(summary))
        yield _figure("cost", _cost(summary))
    if summary.tokens.cached_input or summary.cache_saved_usd:
        yield _figure("cached", _cached(summary))
    if summary.ambiguous or summary.in_flight_at_kill:
        yield from _billing(summary)
    if len(summary.finish_reasons) > 1 or not summary.finish_reasons.keys() <= _ORDINARY_ENDS:
        yield _figure("finished", _shares(summary.finish_reasons))
    for name, time in summary.hooks.items():
        yield _figure(
            name, f"{count(time.calls, 'call')}, {duration(time.seconds)}, longest {duration(time.longest_s)}"
        )
    if odd := _odd(summary.flags):
        yield _figure("answers", odd)
    if summary.binding_shares:
        yield _figure("limited by", _binding(summary.binding_shares))
    if summary.advice is not None:
        yield _figure("advice", summary.advice)


def _figure(label: str, text: str) -> str:
    return f"{label:<{_LABEL_CELLS}}  {text}"


def _requests(summary: Summary) -> str:
    words = [f"{summary.requests:,}", count(summary.retries, "retry", "retries")]
    if summary.rate_limited:
        words.append(count(summary.rate_limited, "rate limit answer"))
    return ", ".join(words)


def _hedged(summary: Summary) -> str:
    firsts = summary.requests - summary.hedges
    share = f" ({summary.hedges / firsts:.1%})" if firsts > 0 else ""
    return f"{count(summary.hedges, 'request')} asked twice{share}, {summary.hedges_won:,} won by the second"


def _latency(values: Percentiles) -> str:
    return f"p50 {duration(values.p50)}, p95 {duration(values.p95)}, max {duration(values.max)}"


def _tokens(summary: Summary) -> str:
    tokens = summary.tokens
    cached = f" ({tokens.cached_input:,} cached)" if tokens.cached_input else ""
    reasoning = f" ({tokens.reasoning:,} reasoning)" if tokens.reasoning else ""
    unknown = f"; {count(tokens.answers_without_usage, 'answer')} without usage" if tokens.answers_without_usage else ""
    return f"{tokens.input:,} in{cached}, {tokens.output:,} out{reasoning}{unknown}"


def _cost(summary: Summary) -> str:
    if summary.cost_usd is None:
        return "unknown"
    missing = summary.answers_without_price
    return money(summary.cost_usd) + (f", without {count(missing, 'answer')} of unknown price" if missing else "")


def _cached(summary: Summary) -> str:
    share, usd = f"{summary.tokens.cached_share or 0:.0%} of input tokens", summary.cache_saved_usd
    if not usd:
        return share
    return (
        f"{share}, {money(usd)} saved" if usd > 0 else f"{share}; writing them cost {money(-usd)} more than was saved"
    )


def _billing(summary: Summary) -> Iterator[str]:
    label = "billed?"
    if summary.maybe_billed_twice:
        words = f"{count(summary.maybe_billed_twice, 'request')} may have been billed twice"
        yield _figure(label, words + _at_most(summary.maybe_billed_twice_bound))
        label = ""
    if once := summary.ambiguous - summary.maybe_billed_twice:
        words = f"{count(once, 'request')} may have been billed without an answer"
        yield _figure(label, words + _at_most(summary.ambiguous_bound.without(summary.maybe_billed_twice_bound)))
        label = ""
    if summary.in_flight_at_kill:
        yield _figure(label, f"{count(summary.in_flight_at_kill, 'request')} in flight when the last run was killed")


def _at_most(bound: Exposure) -> str:
    """The bound in dollars if there is one, else in tokens; never rounded down."""
    if not bound.requests:
        return ""
    if bound.usd is not None:
        return f", at most {money(_rounded_up(bound.usd))}"
    if bound.input_tokens is None:
        return "; for how much is not known"
    tokens = f"; at most {bound.input_tokens:,} tokens in, "
    if bound.output_tokens is None:
        return tokens + "out not bounded: set max_tokens"
    return tokens + f"{bound.output_tokens:,} out"


def _rounded_up(usd: float) -> float:
    steps = 10_000 if usd < 0.0995 else 100
    return math.ceil(usd * steps) / steps


def _odd(flags: Mapping[str, int]) -> str:
    words = {
        EMPTY: "empty",
        MODEL_MISMATCH: "of another model than asked",
        CHOICES_MISMATCH: "of several choices",
    }
    return ", ".join(f"{flags[name]:,} {words[name]}" for name in FLAGS if flags.get(name))


def _shares(counts: Mapping[str, int]) -> str:
    top = list(counts.items())[:_TOP_ERRORS]
    rest = sum(counts.values()) - sum(n for _, n in top)
    words = [f"{n:,} {safe(word, _TYPE_CELLS)}" for word, n in top]
    return ", ".join([*words, f"{rest:,} other"] if rest else words)


def _binding(shares: Mapping[str, float]) -> str:
    by_share = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{BINDING.get(name, safe(name))} {share:.0%}" for name, share in by_share if share >= 0.005)


def _errors(summary: Summary) -> Iterator[str]:
    if not summary.errors:
        return
    yield "errors"
    top = [(f"{error.count:,}", safe(error.type, _TYPE_CELLS), error.example) for error in summary.errors[:_TOP_ERRORS]]
    numbers, types = (max(len(row[column]) for row in top) for column in (0, 1))
    for n, word, example in top:
        yield f"  {n:>{numbers}}  {word:<{types}}  {safe(example, _EXAMPLE_CELLS)}".rstrip()
    if rest := summary.errors[_TOP_ERRORS:]:
        yield f"  {sum(error.count for error in rest):,} more of {count(len(rest), 'other type')}"


def _notices(summary: Summary) -> Iterator[str]:
    return (f"warning: {safe(notice)}" for notice in summary.notices)


def _next(summary: Summary) -> Iterator[str]:
    """Where the results are and, last of all, what to type."""
    path = summary.output if summary.output != "-" else None
    lines = summary.lines or path or ""
    # Stopped with nothing pending: what was asked was written, but the output was not made of it.
    unfinished = summary.pending > 0 or not summary.input_complete or summary.exit_code not in (0, 1)
    if path:
        yield f"Results{' so far' if unfinished else ''}: {safe(path)}"
    if path and summary.failed:
        yield from _step("To see the failed rows:", _jq('select(.status == "error") | {id, row, error}', lines))
    if unfinished:
        yield from _step("To continue, run the same command again", summary.next_command)
    elif _nothing_to_retry(summary):
        yield from _step("When they are mended, run the same command again", summary.next_command)
    elif summary.failed:
        yield from _step("To try the failed rows once more, run the same command again", summary.next_command)
    elif path:
        yield from _step("To look at them:", _jq("{id, output}", lines) + " | head")


def _step(words: str, command: str | None) -> Iterator[str]:
    if command is None:
        yield f"{words}."
    else:
        yield words if words.endswith(":") else f"{words}:"
        yield f"  {safe(command)}"


def _jq(program: str, path: str) -> str:
    return shlex.join(["jq", "-c", program, path if not path.startswith("-") else f"./{path}"])
