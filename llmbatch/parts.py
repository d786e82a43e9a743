"""Rows that ask several things at once: each task is a request of its own, and the row's line joins their answers.

An answer is kept in the journal as soon as it is here, though its row is not complete: the next run takes it from
there. So does a row whose answer is still to be worked on by a hook.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llmbatch.files.images import has_stand_ins
from llmbatch.files.results import line_of, part_line
from llmbatch.prepare import ANSWER, Images, Prepared
from llmbatch.records import FLAGS, BadRow, Failure, Reply, Request, Result, Usage
from llmbatch.rules.fingerprint import fingerprint
from llmbatch.scheduler import Job

_USAGE = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")


# What stands for a request that a hook will make.
UNPREPARED = Request("")


@dataclass(frozen=True, slots=True)
class Part:
    """One of several things that a row asks, and its key; None if it can not be sent."""

    request: Request | BadRow
    key: str | None


def whole_of(parts: Mapping[str, Part]) -> Part:
    """A row with tasks as a whole: it can be sent if one of them can. Its key is made of theirs."""
    good = [part for part in parts.values() if not isinstance(part.request, BadRow)]
    if not good:
        return next(iter(parts.values()))
    said = [[name, part.key or "can not be sent"] for name, part in parts.items()]
    return Part(good[0].request, fingerprint("tasks:", {"tasks": said}))


def split(
    job: Job,
    parts: Mapping[str, Part],
    fields: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]],
    prepared: Prepared | None,
    images: Images,
    *,
    tasks: bool,
) -> tuple[Group, list[Job]]:
    """A job for each part that has no good answer yet, and the group that joins them all.

    ``job`` is that of the whole row, ``known`` are the answers of earlier runs by name.
    """
    group = Group(job.row, job.id, job.key, list(parts), fields, job.input, tasks=tasks)
    jobs = []
    for name, part in parts.items():
        line = known.get(name)
        if line is not None and line["key"] == part.key:
            group.keep(name, line)
        elif isinstance(part.request, BadRow):
            group.end(name, unsent(part.request))
        else:
            assert part.key is not None, "a part that renders has a key"
            one = replace(job, key=part.key, request=part.request, part=name, group=group)
            jobs.append(prepared_job(one, prepared, images, name))
    return group, jobs


def prepared_job(job: Job, prepared: Prepared | None, images: Images, name: str) -> Job:
    """``job`` with what is to be done before it is sent: a hook makes its request, its images are read."""
    if prepared is not None:
        return replace(job, prepare=partial(prepared.request, name))
    return replace(job, prepare=partial(images.loaded, job.request)) if has_stand_ins(job.request) else job


class Group:
    """The parts of one row, until each has its line. Owned by the run's loop.

    ``names`` are all parts in the order in which they were asked for, ``fields`` what the row says. ``tasks`` is False
    for a row with one answer.
    """

    def __init__(
        self,
        row: int,
        id: str | int | float | None,
        key: str,
        names: Sequence[str],
        fields: Mapping[str, Any],
        input: Any,
        *,
        tasks: bool,
    ) -> None:
        self.row = row
        self.id = id
        self.key = key
        self.names = names
        self.fields = fields
        self.input = input
        self.tasks = tasks
        self._lines: dict[str, Mapping[str, Any]] = {}
        self._results: dict[str, Result] = {}

    @property
    def complete(self) -> bool:
        """Every part has ended."""
        return len(self._lines) == len(self.names)

    def keep(self, name: str, line: Mapping[str, Any]) -> None:
        """The good answer that an earlier run has got to this part."""
        self._lines[name] = line

    def end(self, name: str, result: Result) -> None:
        """How this part has ended in this run."""
        self._lines[name] = line_of(result)
        self._results[name] = result

    def part_line(self, name: str) -> bytes:
        """What the journal keeps of a part whose row is not complete."""
        return part_line(name, self._lines[name], self.row, self.id)

    def failed(self, failure: Failure) -> Result:
        """The row's result if what came after its good answers failed: they are kept in it."""
        good = self.result()
        outputs = {name: line["output"] for name, line in self._lines.items()}
        return replace(
            good,
            reply=None,
            failure=replace(failure, usage=good.reply.usage if good.reply else None),
            tasks=dict(self._lines),
            partial_output=outputs,
            parts=tuple(self._results.values()),
        )

    def result(self) -> Result:
        """The row's result: good if every part is."""
        if not self.tasks and ANSWER in self._results:
            return self._results[ANSWER]
        left_out = [result for result in self._results.values() if result.skipped]
        if left_out:
            return replace(left_out[0], key=self.key)
        lines = {name: self._lines[name] for name in self.names}
        good = {name: line for name, line in lines.items() if line["status"] == "ok"}
        outputs = {name: line["output"] for name, line in good.items()}
        whole = len(good) == len(lines)
        usage = _sum_of(line.get("usage") for line in lines.values())
        costs = [line.get("cost_usd") for line in lines.values() if line.get("usage")]
        ended = self._results.values()
        return Result(
            row=self.row,
            id=self.id,
            key=self.key,
            reply=self._reply(good, outputs, usage) if whole else None,
            failure=None if whole else self._failure(lines, usage),
            attempts=sum(line["attempts"] for line in lines.values()),
            latency_s=_longest(line.get("latency_s") for line in lines.values()),
            first_token_s=None if self.tasks else lines[ANSWER].get("first_token_s"),
            request_id=_common(line.get("request_id") for line in lines.values()),
            ambiguous=sum(result.ambiguous for result in ended),
            cost_usd=sum(filter(None, costs)) if costs and None not in costs else None,
            input=self.input,
            request_ids=tuple(id for result in ended for id in result.request_ids),
            tasks=lines if self.tasks else None,
            partial_output=None if whole else outputs,
            parts=tuple(ended),
        )

    def _reply(self, good: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, Any], usage: Usage) -> Reply:
        lines = good.values()
        answer: Mapping[str, Any] = {} if self.tasks else good[ANSWER]
        return Reply(
            output=outputs if self.tasks else outputs[ANSWER],
            finish_reason=_common(line.get("finish_reason") for line in lines),
            model=_common(line.get("model") for line in lines),
            usage=usage,
            tool_calls=answer.get("tool_calls"),
            reasoning=answer.get("reasoning"),
            flags=tuple(flag for flag in FLAGS if answer.get(flag)),
            native_finish_reason=answer.get("native_finish_reason"),
        )

    def _failure(self, lines: Mapping[str, Mapping[str, Any]], usage: Usage) -> Failure:
        bad = {name: line["error"] for name, line in lines.items() if line["status"] != "ok"}
        said = "; ".join(f"{name}: {error['type']}: {error['message']}" for name, error in bad.items())
        return Failure(
            kind="unusable" if any(error["maybe_billed"] for error in bad.values()) else "permanent",
            type="task_failed",
            message=f"{len(bad)} of {len(lines)} tasks failed: {said}",
            retryable=any(error["retryable"] for error in bad.values()),
            usage=usage,
        )


def _sum_of(usages: Iterable[Mapping[str, Any] | None]) -> Usage:
    """Known where one of them is known."""
    given = [usage for usage in usages if usage]
    sums = {}
    for name in _USAGE:
        known = [usage[name] for usage in given if usage.get(name) is not None]
        sums[name] = sum(known) if known else None
    return Usage(**sums)


def _longest(values: Iterable[float | None]) -> float | None:
    return max(filter(None, values), default=None)


def _common(values: Iterable[Any]) -> Any:
    """What all of them say; None if they differ."""
    said = set(values)
    return said.pop() if len(said) == 1 else None


def unsent(bad: BadRow) -> Result:
    """The result of what can not be sent."""
    failure = Failure("permanent", bad.type, bad.reason)
    return Result(bad.index, bad.id, None, None, failure, 0, None, None, None)


def known_parts(
    recorded: Mapping[str, Any] | None, kept: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The good answers to parts of a row: in its line of an earlier run, and those ``kept`` of it without a line."""
    known: dict[str, Mapping[str, Any]] = {}
    if recorded is not None and isinstance(tasks := recorded.get("tasks"), dict):
        outputs = recorded.get("output")
        for name, line in tasks.items():
            if not isinstance(line, dict) or line.get("status") != "ok" or "key" not in line:
                continue  # it failed; or a hook gave an answer without tasks a member of this name
            if "output" not in line and isinstance(outputs, dict) and name in outputs:
                line = {**line, "output": outputs[name]}
            known[name] = line
    known.update(kept)
    return {name: line for name, line in known.items() if "output" in line}
