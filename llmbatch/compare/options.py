"""What is to be compared, said once."""

from __future__ import annotations

from dataclasses import dataclass

from llmbatch.errors import OptionsError
from llmbatch.options import RunOptions, Timeouts
from llmbatch.rules.comparison import Part, Sizes

DEFAULT_ROWS = 100
# A tenth of the 4 s that a long answer takes: a whole comparison then ends in a minute or so.
DEFAULT_LATENCY_S = 0.4
# No driver gives up a connection that the others would wait for: 10,000 at once take their time.
PATIENT = Timeouts(connect_s=60.0)
DEFAULT_WORK = "llmbatch.compare.work:tokenised"


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """One comparison. ``run`` says the rows, where they go and with what key; ``run.limit`` how many of them.

    Against the simulated provider answers take ``latency_s``. Each case is measured ``runs`` times. ``paid`` says that
    a real provider may be asked: every driver sends the rows again. ``work`` is the hook of the part ``cpu``.
    """

    run: RunOptions
    parts: tuple[Part, ...]
    sizes: Sizes
    latency_s: float = DEFAULT_LATENCY_S
    runs: int = 1
    paid: bool = False
    work: str = DEFAULT_WORK

    def __post_init__(self) -> None:
        for flag, size in (
            *(("--threads", size) for size in self.sizes.threads),
            *(("--processes", size) for size in self.sizes.processes),
            *(("--loop", size) for size in self.sizes.loop),
            *(("--in-flight", size) for size in self.sizes.in_flight),
            ("--runs", self.runs),
        ):
            if size < 1:
                raise OptionsError(f"{flag} counts from 1, not {size}")
        if self.latency_s <= 0:
            raise OptionsError(f"--latency must be above 0, not {self.latency_s:g}; --part overhead is without any")
        if len(self.run.base_urls) > 1 or len(self.run.key_envs) > 1:
            raise OptionsError("compare asks one server with one key: give --base-url and --key-env once")
