"""The pass over the input before a run continues: what is done, what is left, what must be refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llmbatch.errors import ChangedRows
from llmbatch.feed import SENT, Reading, Rendered
from llmbatch.files.index import identity_text
from llmbatch.files.recovered import Recovered
from llmbatch.records import BadRow
from llmbatch.rules.resume import ResumePlan, Verdict, manifest_differences, rows

MAX_EXAMPLES = 5


@dataclass(slots=True)
class Planned:
    """What the input asks for, counted. ``to_send`` are requests, ``bad`` rows that can not be sent,
    ``moved`` ones whose line must be written again with a new row number. Of the rows that failed before,
    ``unsendable`` can not be sent now either, ``settled`` of these for the reason that their line gives.
    ``truncated`` is True if rows are missing; ``warnings`` are those of the input."""

    resume: ResumePlan = field(default_factory=ResumePlan)
    rows: int = 0
    bad: int = 0
    to_send: int = 0
    prompt_bytes: int = 0
    moved: int = 0
    unsendable: int = 0
    settled: int = 0
    truncated: bool = False
    bad_examples: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def nothing_to_do(self) -> bool:
        """Every row has the line it needs: nothing is to be sent, refused or written."""
        verdicts = self.resume.verdicts
        kept = verdicts[Verdict.SKIP_OK] + verdicts[Verdict.CHANGED_KEEP]
        return not self.moved and self.rows == kept + self.settled

    @property
    def sent_again(self) -> int:
        """Rows that failed before and can be sent."""
        return self.resume.failed_again - self.unsendable

    def sentences(self, recorded: int) -> list[str]:
        """What the user should know before anything is sent; ``recorded`` is the number of rows with a line."""
        verdicts = {**self.resume.verdicts, Verdict.RERUN_FAILED: self.sent_again}
        said = replace(self.resume, verdicts=verdicts).sentences(recorded - self.unsendable)
        return [*said, f"{rows(self.unsendable)} can still not be sent"] if self.unsendable else said


async def plan(reading: Reading) -> Planned:
    """Render every row of ``reading`` and count. Nothing is sent."""
    planned = Planned()
    while lines := await reading.more():
        for line in lines:
            rendered = reading.render(line)
            planned.rows += 1
            planned.moved += rendered.decision.reappend
            planned.resume.count(rendered.decision, row=rendered.row.index, has_id=rendered.row.id is not None)
            if isinstance(rendered.request, BadRow):
                planned.bad += 1
                planned.unsendable += rendered.failed_before
                planned.settled += _says_the_same(rendered, rendered.request)
                if len(planned.bad_examples) < MAX_EXAMPLES:
                    planned.bad_examples.append(rendered.request.reason)
            elif rendered.decision.verdict in SENT:
                planned.to_send += reading.requests_of(rendered)
                planned.prompt_bytes += len(line.data)
    planned.truncated = reading.source.truncated
    planned.warnings = reading.warnings
    return planned


def _says_the_same(rendered: Rendered, bad: BadRow) -> bool:
    """The line that an earlier run wrote for this row is the one that would be written now."""
    line = rendered.recorded
    return (
        line is not None
        and line["key"] is None
        and (line["row"], line["error"]["message"]) == (bad.index, bad.reason)
        and identity_text(line["id"], bad.index) == identity_text(bad.id, bad.index)
    )


def refuse_changes(planned: Planned, recovered: Recovered, manifest: Mapping[str, Any]) -> None:
    """Raise ChangedRows if finished rows now ask something else and nobody said what is meant."""
    if planned.resume.refused:
        raise ChangedRows(planned.resume.refusal(manifest_differences(recovered.manifest, manifest)))
