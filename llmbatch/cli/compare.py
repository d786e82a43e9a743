"""``llmbatch compare``."""

from __future__ import annotations

import contextlib
import inspect
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from llmbatch.cli import completion, parse
from llmbatch.cli.ending import Ending, answer
from llmbatch.errors import OptionsError, StorageError
from llmbatch.options import STDIO

if TYPE_CHECKING:
    from llmbatch.rules.comparison import Case

Format = Literal["auto", "jsonl", "text", "csv", "tsv", "parquet"]

EPILOG = """Parts: drivers (the main table), overhead (calls without delay), short (calls of 10 ms), cpu (rows that
compute), session (one connection kept, or one for each request), blocking (one call that blocks the loop), tasks
(several questions about a row), memory (of waiting requests).

Exit codes: 0 compared; 1 some rows failed, or a case could not be measured; 2 bad usage or input, nothing was sent;
5 local disk; 70 a bug; 129, 130, 143 hung up, interrupted, terminated.
"""

# What a newcomer sees in a minute, and what --full adds.
_QUICK: tuple[Any, ...] = ("drivers", "cpu", "session", "blocking", "memory")
_REAL: tuple[Any, ...] = ("drivers",)


def compare(
    input_: Annotated[str, typer.Argument(metavar="INPUT", help="Rows as run takes them.")],
    model: Annotated[
        str, typer.Option("-m", "--model", help="sim/NAME, or a real one.", autocompletion=completion.models)
    ] = "sim/compare",
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="A server of your own; a real one too.")] = None,
    api: Annotated[str | None, typer.Option(help="The dialect.", autocompletion=completion.apis)] = None,
    template: Annotated[
        str | None, typer.Option("-t", "--template", help="Jinja2 text with the row's fields, or @FILE.")
    ] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="The system message, or @FILE.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("-p", "--param", metavar="NAME=VALUE", help="Any body field; repeatable.")
    ] = None,
    input_format: Annotated[Format, typer.Option(help="Default: by suffix, then by the first line.")] = "auto",
    limit: Annotated[
        int | None, typer.Option(help="Only the first N rows. Default: 100; must be said of a real one.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask a real provider; every driver sends the rows again.")] = False,
    key_env: Annotated[str | None, typer.Option(metavar="NAME", help="The variable that holds the key.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="A file that holds the key, mode 0600.")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificates (PEM) to trust besides the system's.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What to compare, see above; repeatable.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every part, up to 10,000 in flight; several minutes.")] = False,
    latency: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long an answer of the simulated provider takes. Default: 0.4s."),
    ] = None,
    threads: Annotated[str | None, typer.Option(metavar="N,N", help="Sizes of thread pools. Default: 10,100.")] = None,
    processes: Annotated[str | None, typer.Option(metavar="N,N", help="Numbers of processes. Default: 10.")] = None,
    loop: Annotated[
        str | None, typer.Option(metavar="N,N", help="Requests at once on the loop. Default: 10,100; --full 1000 too.")
    ] = None,
    in_flight: Annotated[
        str | None, typer.Option(metavar="N,N", help="Waiting requests whose memory is weighed. Default: 1000.")
    ] = None,
    runs: Annotated[int, typer.Option(metavar="N", help="Measure each N times; medians with their range.")] = 1,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="What rows compute in the part cpu. Default: 50 ms of pure Python."
        ),
    ] = None,
    sim: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of `llmbatch sim`; repeatable.")
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="All figures; - is standard output.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture, .png or .svg; pip install 'llmbatch[plot]'.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Do not say what is being measured.")] = False,
) -> None:
    """The same rows one after the other, by threads, by processes and on one event loop, side by side.

    Against a simulated provider of its own, which costs nothing; each driver in a fresh process, with the same encoding
    and decoding. Takes about a minute.

    Example: llmbatch compare samples/reviews.jsonl -t @samples/sentiment.txt
    """
    with Ending() as ending, _ended_by_signals(), _Told(quiet=quiet) as told:
        from llmbatch.compare.options import DEFAULT_LATENCY_S, DEFAULT_WORK, PATIENT, CompareOptions
        from llmbatch.compare.run import compare as compared
        from llmbatch.compare.run import cores
        from llmbatch.files.results import dump_line
        from llmbatch.machine import keep_memory_private
        from llmbatch.options import RunOptions
        from llmbatch.rules.comparison import PARTS, Sizes
        from llmbatch.views.compare import render_comparison
        from llmbatch.views.plot import check_plot, save_plot

        run = RunOptions(
            input=input_,
            model=model,
            base_url=base_url,
            api=api,
            key_env=key_env,
            key_file=key_file,
            ca_file=ca_file,
            template=parse.text_or_file(template, "--template"),
            system=parse.text_or_file(system, "--system"),
            params=parse.params(param or ()),
            input_format=input_format,
            limit=limit,
            timeouts=PATIENT,
            sim=parse.settings(sim or (), "--sim"),
        )
        _refuse_unknown(part or (), PARTS)
        simulated = model.startswith("sim/") and base_url is None
        parts = cast(Any, tuple(dict.fromkeys(part or ()))) or (_REAL if not simulated else PARTS if full else _QUICK)
        options = CompareOptions(
            run,
            parts=parts,
            sizes=Sizes(
                threads=_sizes(threads, "--threads", (10, 100)),
                processes=_sizes(processes, "--processes", (10,)),
                loop=_sizes(loop, "--loop", (10, 100, 1_000) if full else (10, 100)),
                in_flight=(weighed := _sizes(in_flight, "--in-flight", (100, 1_000, 10_000) if full else (1_000,))),
                in_flight_tls=weighed if full or in_flight else (),
                calls=((0.0, 0.0), (0.0, 0.05), (0.4, 0.05)) if full else ((0.0, 0.0), (0.0, 0.05)),
                cores=cores(),
            ),
            latency_s=DEFAULT_LATENCY_S if latency is None else parse.seconds(latency),
            runs=runs,
            paid=yes,
            work=before or DEFAULT_WORK,
        )
        if json is not None and json != STDIO:
            _refuse_place(Path(json), input_)
        if plot is not None:
            check_plot(plot, parts)
        if not simulated:
            keep_memory_private()
        found = compared(options, told, made_by=shlex.join(["llmbatch", *sys.argv[1:]]))
        told.clear()
        if json != STDIO:
            answer(render_comparison(found))
        if json is not None:
            _write(json, dump_line(found.to_json()))
        if plot is not None:
            save_plot(found, plot)
        ending.code = int(found.failed > 0 or any(one.problem is not None for one in found.compared))


class _Told:
    """What is being measured: a line that is written over, on a terminal; else nothing, as it is over in a minute."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, case: Case, number: int, of: int) -> None:
        self._write(f"{number}/{of}  {case.part}: {case.driver.name} {case.variant}")

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if self._shown:
            typer.echo(f"\r\x1b[K{text}", err=True, nl=False)


def _sizes(text: str | None, flag: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """``10,100`` -> (10, 100)."""
    if text is None:
        return default
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise OptionsError(f"{flag} {text!r}: give whole numbers, such as 10,100")
    return tuple(dict.fromkeys(int(word) for word in words))


def _refuse_unknown(parts: Iterable[str], known: Iterable[str]) -> None:
    if unknown := [part for part in parts if part not in known]:
        raise OptionsError(f"--part {unknown[0]!r}: there are {', '.join(known)}")


def _refuse_place(path: Path, input_: str) -> None:
    if not path.parent.is_dir() or path.is_dir():
        raise OptionsError(f"--json {path}: name a file in a directory that exists")
    if input_ != STDIO and path.exists() and path.samefile(input_):
        raise OptionsError(f"--json {path} is the input; give it another file")


def _write(where: str, data: bytes) -> None:
    if where == STDIO:
        answer(data)
        return
    try:
        Path(where).write_bytes(data)
    except OSError as error:
        raise StorageError(f"--json {where}: {error.strerror}") from error


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the processes of the drivers too: they may be sending what is paid for."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP) if not _ignored(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def _ignored(number: signal.Signals) -> bool:
    """As under nohup."""
    return signal.getsignal(number) is signal.SIG_IGN


compare.__doc__ = inspect.cleandoc(cast(Any, compare.__doc__)) + "\n\n" + EPILOG
