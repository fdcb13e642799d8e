"""Reads from Postgres which checkpoint files to verify, and stores the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from trainwire.stores.postgres.checkpoints import DIFFERENT, MISSING, OF_PATH, UNUSABLE
from trainwire.stores.postgres.storable_text import storable_text


@dataclass(frozen=True, slots=True)
class UnverifiedFile:
    """A checkpoint file to verify.

    `attempts` is the number of earlier verifications. `is_overwritten` is True if a newer row of the job has the
    same URI.
    """

    job_id: int
    seq: int
    uri: str
    size_bytes: int | None
    sha256: str | None
    store_checksum: str | None
    attempts: int
    is_overwritten: bool


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """The result of one verification of a file.

    `error` is None if the object is as recorded, or was overwritten. `retry_in_s` is None if the file is not to be
    verified again.
    """

    file: UnverifiedFile
    error: str | None = None
    retry_in_s: float | None = None


def due_files(connection: Connection, limit: int) -> list[UnverifiedFile]:
    """Return at most `limit` files that are due for verification; files that were never verified come first."""
    return [UnverifiedFile(*row) for row in connection.execute(_DUE, {"limit": limit})]


def record(connection: Connection, results: Sequence[VerificationResult]) -> None:
    """Store the results in the rows of the files, and update the best and last paths of their jobs.

    A path of a file that is missing or different is replaced by that of a usable file, or cleared; it may be
    restored if a later verification finds the file.
    """
    if not results:
        return
    values = [_values(result) for result in results]
    unusable = [value for value in values if str(value["error"]).startswith((MISSING, DIFFERENT))]
    usable_again = [value for value in values if value["is_verified"] and value["was_verified_before"]]
    if changed := unusable + usable_again:
        # First the jobs: the lock order of drains and deletions.
        connection.execute(_LOCK_JOBS, {"jobs": [value["job_id"] for value in changed]})
    for name in OF_PATH:
        if usable_again:
            connection.execute(_RESTORE_PATH[name], usable_again)
    connection.execute(_RECORD, values)
    for name in OF_PATH:
        if unusable:
            connection.execute(_REPLACE_PATH[name], unusable)


def _values(result: VerificationResult) -> dict[str, object]:
    file = result.file
    return {
        "job_id": file.job_id,
        "seq": file.seq,
        "uri": file.uri,
        "was_verified_before": file.attempts > 0,
        "is_verified": result.error is None and not file.is_overwritten,
        "error": result.error and storable_text(result.error),
        "retry_in_s": result.retry_in_s,
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
# The path of an unusable file is replaced by the newest usable one, of an earlier attempt if this one has none.
# As in a drain, the time is only set for a file of the current attempt: its later checkpoints replace the path.
_REPLACE_PATH: Final = {
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
_RESTORE_PATH: Final = {
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
