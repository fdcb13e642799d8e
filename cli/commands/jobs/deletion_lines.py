"""Formats the plan of a deletion, and its progress in each store, as lines of text."""

from __future__ import annotations

from typing import Final

from trainwire.cli.formats import shown_size, shown_time
from trainwire.cli.terminal import one_line
from trainwire.schemas.sinks import SINKS
from trainwire.stores.postgres.deletion import Choice, Deletion, DeletionPart
from trainwire.stores.postgres.deletion_plan import DeletionPlan

_PART_NAMES: Final = {
    "redis": "Redis keys",
    **{sink.name: f"{sink.copies} in {sink.title}" for sink in SINKS.values()},
    "s3": "files in S3",
    "postgres": "rows in Postgres",
}
_SHOWN_FILES: Final = 20


def plan_lines(plan: DeletionPlan, choice: Choice) -> list[str]:
    """Format the plan to delete a job as lines of text: the amount of its data in each store.

    If uploaded files are deleted, the first _SHOWN_FILES are listed.
    """
    named = f" ({plan.name})" if plan.name else ""
    rows = ", ".join(f"{count:,} {table}" for table, count in plan.rows.items() if count) or "none"
    lines = [
        f"job {plan.job_id}{named}, {plan.status}, made {shown_time(plan.created_at)}",
        f"  Postgres: {rows}",
    ]
    for name, copies in plan.copies.items():
        kept = f" (kept: --keep-{name})" if choice.keeps(name) else ""
        lines += [f"  {SINKS[name].title}: {copies:,} {SINKS[name].copies}{kept}"] if copies else []
    if plan.mlflow_runs:
        lines.append(f"  runs in MLflow: {', '.join(plan.mlflow_runs)}")
    if plan.own_runs:
        lines.append(f"  runs in MLflow that its trainer made, kept: {', '.join(plan.own_runs)}")
    if plan.file_count:
        kept = "" if choice.with_files else "; kept, without a record in trainwire (--with-files deletes them)"
        lines.append(f"  S3: {plan.file_count:,} files, {shown_size(plan.file_bytes)}{kept}")
        lines += [f"    {uri}" for uri in plan.files[:_SHOWN_FILES] if choice.with_files]
        if choice.with_files and plan.file_count > _SHOWN_FILES:
            lines.append(f"    and {plan.file_count - _SHOWN_FILES:,} more")
    if plan.tokens:
        lines.append(f"  tokens: {plan.tokens} for this job alone stay valid; see `trainwire token revoke`")
    return lines


def deletion_lines(known: Deletion) -> list[str]:
    """Format a deletion as lines of text: its time, its author, and its progress in each store."""
    reason = f": {known.reason}" if known.reason else ""
    lines = [f"job {known.job_id} was deleted {shown_time(known.deleted_at)} by {known.deleted_by}{reason}"]
    if known.discarded_messages:
        last = shown_time(known.discarded_at)
        lines.append(f"  {known.discarded_messages:,} messages have arrived since, the last {last}: discarded")
    return lines + [f"  {part_line(name, part)}" for name, part in known.parts.items()]


def part_line(name: str, part: DeletionPart) -> str:
    """Format the progress of a deletion in one store as one line."""
    state = {
        "open": "not done yet",
        "done": "done",
        "requested": "accepted by the store",
        "kept": "kept",
        "left": "could not be deleted",
    }[part.state]
    # Of a finished part the plan is no measure: rows may have been deleted in the part of another store.
    is_whole = part.state == "done" or part.planned <= part.deleted
    counts = f"{part.deleted:,}" if is_whole else f"{part.deleted:,} of {part.planned:,}"
    notes = f"; {'; '.join(part.notes)}" if part.notes else ""
    deleted = "" if part.state == "kept" else f", {counts} deleted"
    return one_line(f"{_PART_NAMES[name]}: {state}{deleted}{notes}")
