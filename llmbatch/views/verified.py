"""What ``llmbatch verify`` and ``llmbatch repair`` say."""

from __future__ import annotations

from shlex import quote
from typing import Any

from llmbatch.files.repair import Repaired
from llmbatch.files.verify import Finding, Verified
from llmbatch.views.safe import safe

SAME_COMMAND = "run the same command again"
_ID_CELLS = 60


def render_verified(found: Verified) -> str:
    """The first findings, what is normal but worth a word, the sums, and what to do."""
    lines = [_finding(one) for one in found.findings]
    untold = found.wrong_places - len(found.findings)
    if untold > 0:
        lines.append(f"... and {untold:,} more")
    lines += _remarks(found)
    lines.append(_sums(found))
    step = next_step(found)
    if step is not None:
        lines.append(step)
    return "\n".join(lines) + "\n"


def verified_json(found: Verified) -> dict[str, Any]:
    """The same as one object; ``findings`` are the first ones."""
    return {
        "path": str(found.path),
        "unfinished": found.unfinished,
        "held": found.held is not None,
        "lines": found.lines,
        "good": found.good,
        "damaged": found.damaged,
        "changed": found.changed,
        "doubled": found.doubled,
        "missing": found.missing,
        "other_id": found.other_id,
        "pending": found.pending,
        "superseded": found.superseded,
        "paid_twice": found.paid_twice,
        "kept": found.kept,
        "unordered": found.unordered,
        "without_checksum": found.without_checksum,
        "findings": [
            {"kind": one.kind, "line": one.line, "offset": one.offset, "row": one.row, "id": one.id, "text": one.text}
            for one in found.findings
        ],
        "next": next_step(found),
        "exit_code": exit_code(found),
    }


def exit_code(found: Verified) -> int:
    """0 if nothing is wrong, else 1."""
    return 1 if found.wrong else 0


def next_step(found: Verified) -> str | None:
    """What to do about it; None if nothing is wrong."""
    path = safe(quote(str(found.path)))
    if found.to_repair:
        first = "when that run has ended: " if found.held is not None else ""
        return f"{first}llmbatch repair {path}"
    if found.damaged or found.missing or found.other_id:
        return f"{SAME_COMMAND}: it sends what is missing"
    if found.changed:
        return f"changed lines stand as they are; to have their rows sent again: llmbatch repair --drop-changed {path}"
    return None


def render_repaired(repaired: Repaired) -> str:
    """What was moved and kept, which rows will be sent again, and what to do."""
    found = repaired.found
    lines = []
    if repaired.in_flight:
        lines.append(
            f"the last run was cut off with {_count(repaired.in_flight, 'request')} in flight; "
            "what they asked is sent again and may be paid for twice"
        )
    if repaired.changed_nothing:
        lines.append(f"{safe(str(repaired.path))}: nothing to repair in {_count(found.lines, 'line')}")
        lines += [step] if (step := next_step(found)) is not None else []
        return "\n".join(lines) + "\n"
    if repaired.moved:
        lines.append(
            f"{_count(repaired.moved, 'line')} ({repaired.moved_bytes:,} bytes) moved to {safe(str(repaired.torn))}"
        )
    if found.doubled:
        lines.append(f"{_count(found.doubled, 'line')} of rows that have one already: the next run keeps one of each")
    lines += _sent_again(repaired)
    lines.append(f"{_count(repaired.kept, 'good line')} kept{_where(repaired)}")
    lines.append(f"{SAME_COMMAND}: it sends only what is missing")
    return "\n".join(lines) + "\n"


def _where(repaired: Repaired) -> str:
    name = repaired.path.name
    return f"; {safe(name)} is unfinished now: {safe(name)}.partial" if repaired.reopened else ""


def _sent_again(repaired: Repaired) -> list[str]:
    lines = [f"will be sent again: {_row(row, id)}" for row, id in repaired.again]
    if repaired.again_count > len(lines):
        lines.append(f"... and {_count(repaired.again_count - len(lines), 'more row')}")
    if repaired.untold:
        lines.append(f"{_count(repaired.untold, 'damaged line')} did not tell of which row")
    return lines


def _finding(one: Finding) -> str:
    where = []
    if one.line is not None:
        where.append(f"line {one.line:,}")
    if one.offset is not None:
        where.append(f"byte {one.offset:,}")
    row = "" if one.row is None or one.kind == "missing" else f" ({_row(one.row, one.id)})"
    place = f"{', '.join(where)}{row}: " if where else ""
    return f"{one.kind.replace('_', ' ')}: {place}{safe(one.text, 300)}"


def _row(row: int, id: str | int | float | None) -> str:
    return f"row {row:,}" if id is None else f"row {row:,}, id {safe(repr(id), _ID_CELLS)}"


def _remarks(found: Verified) -> list[str]:
    said = []
    if found.held is not None:
        said.append(f"a run is writing it: {safe(found.held)}")
    if found.both:
        said.append(f"{safe(found.path.name.removesuffix('.partial'))} stands beside it; the next run says what of it")
    facts = (
        (found.superseded - found.paid_twice, "superseded by a later one"),
        (found.paid_twice, "with an answer that was paid for twice; the first one stands"),
        (found.kept, "of rows that are no longer in the input"),
        (found.unordered, "not in the order of the input"),
        (found.without_checksum, "without a checksum"),
    )
    said += [f"{_count(number, 'line')} {what}" for number, what in facts if number > 0]
    if found.pending:
        said.append(f"{_count(found.pending, 'row')} of the input not done yet")
    return said


def _sums(found: Verified) -> str:
    missing = found.missing + found.other_id
    return (
        f"{_count(found.lines, 'line')}: {found.good:,} good, {found.damaged:,} damaged, {found.changed:,} changed, "
        f"{found.doubled:,} doubled; {_count(missing, 'row')} missing"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
