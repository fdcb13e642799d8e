"""The report of an import: compares the counts of a run in the other tool with its rows in Postgres."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from sqlalchemy import Connection, text

from trainwire.cli.terminal import one_line
from trainwire.cli.transfer.runs import COUNTED, Counted, LeftOut, SourceRun, Tally
from trainwire.schemas.tables import LIFTED_SQL
from trainwire.stores.postgres.deletion import deleted_among
from trainwire.stores.postgres.jobs.job_values import SHOWN_NAME

DELETED: Final = "its job was deleted: --copy TEXT imports it again, as another job"
REMOVED: Final = "removed by retention"


class Count(msgspec.Struct, kw_only=True):
    """Counts of one kind of item, with `source` = `stored` + the sum of `skipped` + `missing`."""

    source: int = 0
    stored: int = 0
    skipped: dict[str, int] = {}
    missing: int = 0

    def line(self, kind: str) -> str:
        """Format the counts as one line of text, `kind`: `source` = `stored` + `skipped` + `missing`."""
        skipped = "".join(f" + {number:,} skipped ({one_line(why)})" for why, number in self.skipped.items())
        missing = f" + {self.missing:,} missing" if self.missing else ""
        return f"{kind:<6} {self.source:,} = {self.stored:,} stored{skipped}{missing}"

    def add(self, other: Count) -> None:
        """Add the counts of `other`, for example of another run."""
        self.source += other.source
        self.stored += other.stored
        self.missing += other.missing
        self.skipped = {
            reason: self.skipped.get(reason, 0) + other.skipped.get(reason, 0)
            for reason in {**self.skipped, **other.skipped}
        }


class RunReport(msgspec.Struct, kw_only=True):
    """The counts of one imported run; `sent` is the number of messages that this import has sent."""

    job_id: int
    name: str
    sent: int
    points: Count
    lines: Count
    files: Count
    notes: list[str]
    problems: list[str]

    @property
    def missing(self) -> int:
        """Number of points, lines and files that are neither stored nor skipped."""
        return sum(getattr(self, kind).missing for kind in COUNTED)


class LeftOutReport(msgspec.Struct, kw_only=True):
    """A run or a file that was not imported, with the reason. If `is_failure`, the import is incomplete."""

    name: str
    reason: str
    is_failure: bool


class ImportReport(msgspec.Struct, kw_only=True):
    """The report of an import: the totals, the imported runs, and those that were left out."""

    runs: Count
    points: Count
    lines: Count
    files: Count
    imported: list[RunReport]
    left_out: list[LeftOutReport]
    complete: bool


def run_report(connection: Connection, run: SourceRun, tally: Tally, sent: int) -> RunReport:
    """Compare the counts of an imported run with its rows in Postgres.

    Rows that are absent because the job was deleted, also during the import, or because of retention count as
    skipped.
    """
    was_deleted = bool(deleted_among(connection, [run.job_id]))
    found = connection.execute(_STORED, {"job": run.job_id, "source": run.source}).mappings().one()
    counts = {}
    for kind in COUNTED:
        taken, skipped = tally.taken[kind], dict(tally.skipped[kind])
        stored = taken if kind == "files" else int(found[kind])
        missing = taken - stored
        if missing > 0 and (was_deleted or found[f"removed_{kind}"]):
            skipped[DELETED if was_deleted else REMOVED] = missing
            missing = 0
        counts[kind] = Count(
            source=taken + sum(tally.skipped[kind].values()), stored=stored, skipped=skipped, missing=missing
        )
    return RunReport(
        job_id=run.job_id,
        name=found["name"] or run.name,
        sent=sent,
        notes=tally.notes,
        problems=tally.problems,
        **_named(counts),
    )


def report_of(runs: Iterable[RunReport], left_out: Iterable[LeftOut]) -> ImportReport:
    """Return the report of an import, with the totals of all runs."""
    imported = list(runs)
    others = [LeftOutReport(name=each.name, reason=each.reason, is_failure=each.is_failure) for each in left_out]
    sums = {kind: Count() for kind in COUNTED}
    for each in imported:
        for kind, total in sums.items():
            total.add(getattr(each, kind))
    all_runs = Count(source=len(imported), stored=len(imported))
    for run in others:
        all_runs.add(Count(source=1, skipped={run.reason: 1}))
    complete = not any(each.missing or each.problems for each in imported)
    complete = complete and not any(each.is_failure for each in others)
    return ImportReport(runs=all_runs, imported=imported, left_out=others, complete=complete, **_named(sums))


def _named(counts: dict[Counted, Count]) -> dict[str, Count]:
    return {str(kind): count for kind, count in counts.items()}


_STORED: Final = text(
    f"""
    SELECT
        (SELECT {SHOWN_NAME} FROM training_jobs WHERE id = :job) AS name,
        (SELECT coalesce(sum(num_nonnulls({LIFTED_SQL}) + CASE WHEN extra_metrics IS NULL THEN 0
                ELSE (SELECT count(*) FROM jsonb_object_keys(extra_metrics)) END), 0)
            FROM training_metrics WHERE job_id = :job AND source = :source) AS points,
        (SELECT count(*) FROM training_logs WHERE job_id = :job AND source = :source) AS lines,
        coalesce((SELECT removed_metric_seq FROM training_jobs WHERE id = :job), 0) AS removed_points,
        coalesce((SELECT removed_log_seq FROM training_jobs WHERE id = :job), 0) AS removed_lines,
        0 AS removed_files
    """  # noqa: S608 - names of columns
)
