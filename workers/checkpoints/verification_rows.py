"""The Postgres side of verification: which checkpoint files to look at, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from trainwire.stores.postgres.checkpoints import DIFFERENT, MISSING, OF_PATH, UNUSABLE
from trainwire.workers.drain.decoding import visible


@dataclass(frozen=True, slots=True)
class UnverifiedFile:
    """A checkpoint whose object is not known to be as recorded; `attempts` counts the looks at it so far."""

    job_id: int
    seq: int
    uri: str
    size_bytes: int | None
    sha256: str | None
    store_checksum: str | None
    attempts: int
    is_overwritten: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look at a file found.

    `error` None: it is as recorded, or was overwritten. `retry_in_s` None: it is not looked at again.
    """

    file: UnverifiedFile
    error: str | None = None
    retry_in_s: float | None = None


def take_turn(connection: Connection, work: str) -> bool:
    """Take the lease on a kind of work until this transaction ends; False when another worker has it."""
    lease = text("SELECT pg_try_advisory_xact_lock(hashtextextended('checkpoints:' || :work, 0))")
    return bool(connection.execute(lease, {"work": work}).scalar_one())


def due_files(connection: Connection, limit: int) -> list[UnverifiedFile]:
    """Return files that are to be looked at now, those first that nobody ever looked at."""
    return [UnverifiedFile(*row) for row in connection.execute(_DUE, {"limit": limit})]


def record(connection: Connection, findings: Sequence[Finding]) -> None:
    """Stamp the files with what was found, and move the paths of their jobs away from what cannot be used."""
    if not findings:
        return
    values = [_values(finding) for finding in findings]
    unusable = [value for value in values if str(value["error"]).startswith((MISSING, DIFFERENT))]
    mended = [value for value in values if value["is_verified"] and value["was_looked_at"]]
    if moved := unusable + mended:
        # First the jobs, as drains and deletions lock them.
        connection.execute(_LOCK_JOBS, {"jobs": [value["job_id"] for value in moved]})
    for name in OF_PATH:
        if mended:
            connection.execute(_REGAIN[name], mended)
    connection.execute(_RECORD, values)
    for name in OF_PATH:
        if unusable:
            connection.execute(_LEAVE[name], unusable)


def _values(finding: Finding) -> dict[str, object]:
    file = finding.file
    return {
        "job_id": file.job_id,
        "seq": file.seq,
        "uri": file.uri,
        "was_looked_at": file.attempts > 0,
        "is_verified": finding.error is None and not file.is_overwritten,
        "error": finding.error and visible(finding.error),
        "retry_in_s": finding.retry_in_s,
    }


# The predicate is that of training_checkpoints_unverified_idx.
_DUE: Final = text(
    """
    SELECT job_id, seq, uri, size_bytes, sha256, store_checksum, verify_attempts, EXISTS (
        SELECT FROM training_checkpoints AS newer
        WHERE newer.job_id = due.job_id AND newer.seq > due.seq AND newer.uri = due.uri
    )
    FROM training_checkpoints AS due
    WHERE verified_at IS NULL AND deleted_at IS NULL AND starts_with(uri, 's3://')
        AND (verify_attempts = 0 OR verify_after IS NOT NULL) AND coalesce(verify_after <= now(), true)
    ORDER BY verify_after NULLS FIRST, job_id, seq LIMIT :limit
    """
)
_RECORD: Final = text(
    "UPDATE training_checkpoints SET verified_at = CASE WHEN :is_verified THEN now() END, verify_error = :error, "
    "verify_attempts = verify_attempts + 1, verify_after = now() + make_interval(secs => :retry_in_s) "
    "WHERE job_id = :job_id AND seq = :seq"
)
_LOCK_JOBS: Final = text("SELECT FROM training_jobs WHERE id = ANY(:jobs) ORDER BY id FOR UPDATE")
# A path goes back to the newest file that can be used, of an earlier attempt where this one has none. Of the
# attempt itself it has a time, as in a drain: what the attempt saves later moves it forward again.
_LEAVE: Final = {
    name: text(
        f"""
        UPDATE training_jobs AS job SET {name}_checkpoint_path = kept.uri,
            {name}_checkpoint_at = CASE WHEN kept.attempt = job.attempt THEN kept.logged_at END
        FROM (VALUES (1)) AS once LEFT JOIN (
            SELECT uri, attempt, logged_at FROM training_checkpoints AS file
            WHERE job_id = :job_id AND {of_path} AND uri <> :uri AND NOT coalesce({UNUSABLE}, false)
                AND upload_error IS NULL AND deletion_began_at IS NULL AND deleted_at IS NULL AND NOT EXISTS (
                    SELECT FROM training_checkpoints AS newer
                    WHERE newer.job_id = file.job_id AND newer.seq > file.seq AND newer.uri = file.uri
                )
            ORDER BY attempt DESC, logged_at DESC, seq DESC LIMIT 1
        ) AS kept ON true
        WHERE id = :job_id AND {name}_checkpoint_path = :uri AND NOT EXISTS (
            SELECT FROM training_checkpoints WHERE job_id = :job_id AND seq > :seq AND uri = :uri
        )
        """  # noqa: S608 - our own names
    )
    for name, of_path in OF_PATH.items()
}
_REGAIN: Final = {
    name: text(
        f"""
        UPDATE training_jobs AS job SET {name}_checkpoint_path = file.uri, {name}_checkpoint_at = file.logged_at
        FROM training_checkpoints AS file
        WHERE id = :job_id AND job_id = :job_id AND seq = :seq AND {of_path} AND {UNUSABLE}
            AND file.attempt = job.attempt AND coalesce({name}_checkpoint_at <= file.logged_at, true)
        """  # noqa: S608 - our own names
    )
    for name, of_path in OF_PATH.items()
}
