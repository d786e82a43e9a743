"""The one piece of advice that follows from what held up a run: what would help, and what would not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmbatch.rules.bottleneck import Shares, WindowKind
from llmbatch.rules.window import HEADROOM

# Of a shorter run the start and the end are too large a part.
SHORT_S = 5.0
# One cause must hold at least so much of the time to be worth a sentence.
MOST = 0.5
# So much longer than the median an answer is a straggler.
STRAGGLER = 3.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What advice needs to know of a run beside its shares.

    ``allowed`` is the last size of the window, ``window`` what kept it from being larger. ``rpm`` is the limit that
    requests are paced by, if one is known. ``given`` are the kinds of limits (rules/pace.py) that are the user's and
    not, or not yet, the provider's. ``hook`` is the hook that took longest in all, and the mean seconds of its calls.
    """

    allowed: int = 0
    window: WindowKind = "fixed"
    rpm: float | None = None
    given: frozenset[str] = frozenset()
    mean_latency_s: float | None = None
    median_latency_s: float | None = None
    longest_latency_s: float | None = None
    rate_limited: int = 0
    retries: int = 0
    hedged: bool = False
    to_stdout: bool = False
    hook: tuple[str, float] | None = None


def advice(shares: Shares, facts: Facts) -> str | None:
    """One sentence: what held up most of the run, which flag would help and which would not.

    None if the run was short, if no single cause held most of the time, or if nothing is to be done about it.
    """
    if shares.total_s - shares.seconds("paused") < SHORT_S:
        return None
    cause, share = next(iter(shares.by_share(leave_out="paused").items()))
    say = _ADVICE.get(cause)
    return None if share < MOST or say is None else say(f"{share:.0%} of the time", facts)


def _requests(held: str, facts: Facts) -> str:
    if "requests" in facts.given:
        higher = "a higher --rpm" if facts.rpm is None else f"a --rpm above {facts.rpm:,.0f}"
        return f"request-bound {held}: more in flight will not help; {higher} would, if the provider allows it"
    limit = "" if facts.rpm is None else f"the provider allows {facts.rpm:,.0f} requests per minute; "
    return f"request-bound {held}: {limit}more in flight will not help; a higher limit from the provider would"


def _day(held: str, facts: Facts) -> str:
    return f"held up by --rpd {held}: nothing but a higher one will help, if the provider allows it"


def _tokens(held: str, facts: Facts) -> str:
    higher = _higher("tokens", "--tpm", facts)
    return f"token-bound {held}: a higher --rpm will not help; shorter prompts, a smaller max_tokens, or {higher} would"


def _input_tokens(held: str, facts: Facts) -> str:
    higher = _higher("input_tokens", "--input-tpm", facts)
    return (
        f"bound by tokens of prompts {held}: a higher --rpm or a smaller max_tokens will not help; shorter prompts, or "
        f"{higher} would"
    )


def _output_tokens(held: str, facts: Facts) -> str:
    higher = _higher("output_tokens", "--output-tpm", facts)
    return (
        f"bound by tokens of answers {held}: a higher --rpm or shorter prompts will not help; a smaller max_tokens, or "
        f"{higher} would"
    )


def _higher(kind: str, flag: str, facts: Facts) -> str:
    return f"a higher {flag} if the provider allows it," if kind in facts.given else "a higher limit from the provider"


def _concurrency(held: str, facts: Facts) -> str:
    limited = f"limited by {_WINDOWS[facts.window].format(facts.allowed)} for {held}"
    mean_s = facts.mean_latency_s
    if facts.window == "descriptors":
        return f"{limited}: a higher one (`ulimit -n`), or a second machine, would help"
    flag = "--max-concurrency" if facts.window == "max_concurrency" else "--concurrency"
    server = "" if mean_s is None else f"the server answered in {_duration(mean_s)} on average"
    if facts.rpm is not None and mean_s is not None:
        wanted = math.ceil(facts.rpm / 60 * mean_s * HEADROOM)
        if wanted > facts.allowed:
            auto = " (or --concurrency auto)" if facts.window == "fixed" else ""
            return f"{limited}: {server}, {wanted:,} in flight would use the limit of {facts.rpm:,.0f} per minute{auto}"
    auto = ", or --concurrency auto," if facts.window == "fixed" else ""
    return f"{limited}: {server and server + '; '}a higher {flag}{auto} would help if the server bears it"


_WINDOWS: Mapping[WindowKind, str] = {
    "fixed": "--concurrency {:,}",
    "auto": "the {:,} in flight of --concurrency auto",
    "max_concurrency": "--max-concurrency {:,}",
    "descriptors": "this machine's limit of open files ({:,} in flight)",
    "server": "the {:,} in flight of --concurrency auto",
}


def _server(held: str, facts: Facts) -> str:
    return (
        f"limited by the server's own speed for {held}: it answers no faster with more than {facts.allowed:,} in "
        "flight; a higher --concurrency will not help, a second server (--base-url twice) would"
    )


def _retries(held: str, facts: Facts) -> str:
    return (
        f"rows that waited to be tried again held up the run for {held} ({_count(facts.retries, 'retry', 'retries')}): "
        "more in flight will not help; the failures themselves (-v shows each) must be mended"
    )


def _provider(held: str, facts: Facts) -> str:
    if not facts.rate_limited:
        return f"the provider failed, or was not there, for {held}: no flag will help"
    told = _count(facts.rate_limited, "rate limit answer", "rate limit answers")
    paused = f"paused by the provider for {held} ({told}): more in flight will not help"
    if "requests" in facts.given:
        return f"{paused}; a lower --rpm would"
    return f"{paused}; its limits as --rpm or --tpm would: requests then go at the pace that it allows"


def _input(held: str, facts: Facts) -> str:
    return f"limited by the input for {held}: rows came no faster than they were answered; no flag will help"


def _disk(held: str, facts: Facts) -> str:
    if facts.to_stdout:
        return f"limited by the output for {held}: who reads standard output is slow; no flag will help, -o FILE would"
    return f"limited by the disk for {held}: answers waited to be written; an output (-o) on a faster disk would help"


def _hooks(held: str, facts: Facts) -> str:
    took = "" if facts.hook is None else f"a call of --{facts.hook[0]} took {_duration(facts.hook[1])} on average; "
    return (
        f"limited by the hooks for {held}: {took}if they wait, a higher --concurrency would help, if they compute, "
        "plain functions with --hook-processes"
    )


def _cpu(held: str, facts: Facts) -> str:
    limited = f"limited by this machine's CPU for {held}: more in flight will not help"
    if facts.hook is not None:
        return f"{limited}; hooks that compute would be out of the way as plain functions with --hook-processes"
    return (
        f"{limited}; two runs of half the input each would, as one uses one core (they share limits by --limit-group)"
    )


def _tenant(held: str, facts: Facts) -> str:
    return (
        f"held up by the limits of tenants for {held}: a higher --rpm or --concurrency will not help; a higher "
        "--tenant-rpm or --tenant-concurrency would"
    )


def _tail(held: str, facts: Facts) -> str | None:
    """Only if it is stragglers that are waited for, and not all rows alike."""
    median_s, longest_s = facts.median_latency_s, facts.longest_latency_s
    if median_s is None or longest_s is None or longest_s < STRAGGLER * median_s or facts.hedged:
        return None
    return (
        f"nothing was left to send for {held}: half of the answers came within {_duration(median_s)}, the last after "
        f"{_duration(longest_s)}; more in flight will not help, --hedge p95 would (both requests may be billed)"
    )


_ADVICE: Mapping[str, Callable[[str, Facts], str | None]] = {
    "requests": _requests,
    "day": _day,
    "tokens": _tokens,
    "input_tokens": _input_tokens,
    "output_tokens": _output_tokens,
    "concurrency": _concurrency,
    "server": _server,
    "retries": _retries,
    "provider": _provider,
    "input": _input,
    "disk": _disk,
    "hooks": _hooks,
    "cpu": _cpu,
    "tenant": _tenant,
    "tail": _tail,
}


def _count(n: int, one: str, several: str) -> str:
    return f"{n:,} {one if n == 1 else several}"


def _duration(seconds: float) -> str:
    """``84 ms``, ``0.8 s``, ``41 s``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:,.0f} s"
