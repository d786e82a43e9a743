"""Again? When? Why? The verdict comes with its reason; time, chance and the past are arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmbatch.options import RetryLimits
from llmbatch.records import Failure


@dataclass(frozen=True, slots=True)
class Verdict:
    """``again`` after ``delay_s`` seconds, or not; ``reason`` is for the log."""

    again: bool
    delay_s: float
    reason: str


def backoff_s(tries: int, chance: float, base_s: float, cap_s: float) -> float:
    """Full-jitter exponential backoff: uniform in [0, min(cap, base x 2^(tries-1))).

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. ``tries`` counts from 1.
    """
    ceiling_s = cap_s if tries > 40 else min(cap_s, base_s * 2.0 ** (tries - 1))
    return ceiling_s * chance


def decide(
    failures: Sequence[Failure],
    limited_s: float,
    limits: RetryLimits,
    chance: float,
    *,
    unpaid: int = 0,
    paid: bool = True,
) -> Verdict:
    """Whether a row is sent again after the last of ``failures``.

    ``limited_s`` is the time since it first met what concerns all, ``chance`` is uniform in [0, 1). What
    concerns all (a rate limit, nobody there) waits at the shared gate, so its delay is 0 here, and it spends
    ``limits.max_wait_s`` instead of the row's attempts. ``unpaid`` of the failures met an empty retry quota
    (rules/quota.py) and a server that answered nobody: they spend no attempts either. When the last can not be
    ``paid`` for, the row waits at the gate; but what may have been billed is never asked more often than allowed.
    What is asked ``elsewhere`` goes at once and spends nothing: who refused it is not asked a second time.
    """
    last = failures[-1]
    if not last.retryable:
        return Verdict(False, 0.0, f"{last.type} is not retryable")
    if last.concerns_all:
        if limited_s > limits.max_wait_s:
            return Verdict(False, 0.0, f"{last.type} for {limited_s:.0f} s")
        return Verdict(True, 0.0, "waits at the gate")
    if last.elsewhere:
        return Verdict(True, 0.0, "another endpoint or key is asked")
    spent = [failure for failure in failures if not (failure.concerns_all or failure.elsewhere)]
    if last.maybe_billed and sum(1 for failure in spent if failure.maybe_billed) > limits.ambiguous:
        return Verdict(False, 0.0, f"may have been billed {limits.ambiguous + 1} times")
    tries = len(spent) - unpaid
    if tries >= limits.attempts:
        return Verdict(False, 0.0, f"{tries} attempts failed")
    if not paid:
        return Verdict(True, 0.0, "waits at the gate: the retry quota is spent")
    delay_s = backoff_s(tries, chance, limits.base_s, limits.cap_s)
    if last.retry_after_s is not None:
        delay_s += last.retry_after_s  # never earlier than told; the jitter spreads those who were told the same
    return Verdict(True, delay_s, f"{last.type}, attempt {tries + 1} of {limits.attempts}")
