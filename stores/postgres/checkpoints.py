"""Reads the checkpoints of a job from Postgres, and determines which of them an object store has."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, text

from trainwire.schemas.checkpoint_keys import ARTIFACT, NEWEST_KINDS, SCHEME, S3Uri

MISSING: Final = "missing"
DIFFERENT: Final = "different"
UNVERIFIED: Final = "not verified"
NOT_SERVED: Final = "not served"
"""Prefix of `verify_error`, before a colon, for a file outside of the prefixes that workers verify.

MISSING and DIFFERENT are the prefixes for faults, and UNVERIFIED for a verification without a result.
"""

UNUSABLE: Final = f"(starts_with(verify_error, '{MISSING}:') OR starts_with(verify_error, '{DIFFERENT}:'))"
"""SQL condition: the last verification found that the file is missing or different."""
OF_PATH: Final = {"best": "is_best", "last": f"kind <> 'best' AND NOT starts_with(kind, '{ARTIFACT}')"}
"""SQL conditions for the checkpoint rows that set a job's best and last checkpoint path."""

NOT_UPLOADED: Final = "not uploaded"
DELETED: Final = "deleted"
PROBLEMS: Final = (MISSING, DIFFERENT, NOT_UPLOADED)


class CheckpointFile(msgspec.Struct, frozen=True, kw_only=True):
    """One row of training_checkpoints; `overwritten_by` is the `seq` of the job's next row with the same URI.

    `deleted_at` is the start of the deletion if its end is not recorded.
    """

    seq: int
    attempt: int
    kind: str
    epoch: int | None
    step: int | None
    uri: str
    size_bytes: int | None
    sha256: str | None
    is_best: bool
    metrics: dict[str, Any] | None
    logged_at: datetime
    upload_error: str | None
    verified_at: datetime | None
    verify_error: str | None
    deleted_at: datetime | None
    overwritten_by: int | None

    @property
    def state(self) -> str:
        """The state of the file for users.

        One of `deleted`, `not uploaded`, `overwritten`, `recorded` (a file that trainwire does not verify),
        `verified`, `missing`, `different` and `uploaded` (not verified).
        """
        if self.deleted_at is not None:
            return DELETED
        if self.upload_error is not None:
            return NOT_UPLOADED
        if self.overwritten_by is not None:
            return "overwritten"
        if not self.uri.startswith(SCHEME) or (self.verify_error or "").startswith(NOT_SERVED):
            return "recorded"
        if self.verified_at is not None:
            return "verified"
        found = (self.verify_error or "").partition(":")[0]
        return found if found in PROBLEMS else "uploaded"

    @property
    def reason(self) -> str | None:
        """The upload error, else the reason that the last verification recorded; None if there is none.

        The verification's reason is omitted for a file that is deleted or overwritten.
        """
        if self.upload_error is not None:
            return self.upload_error
        if self.deleted_at is not None or self.overwritten_by is not None:
            return None
        return self.verify_error and self.verify_error.partition(": ")[2]


class CheckpointSource(NamedTuple):
    """The S3 object of a checkpoint, with the recorded size and SHA-256 (None: not recorded).

    For a folder, these are the size and hash of its manifest.
    """

    uri: S3Uri
    size_bytes: int | None
    sha256: str | None


class NotFetchable(LookupError):  # noqa: N818 - shown to users
    """The checkpoint cannot be fetched from an object store; the error text names the reason."""


def find_checkpoints(
    connection: Connection,
    job_id: int,
    attempt: int | None = None,
    newest: int | None = None,
    before: int | None = None,
) -> list[CheckpointFile]:
    """Return the checkpoints of a job, or of one attempt, in the order of `seq`.

    If `newest` is given, only this number of the newest ones is returned; if `before` is given, only those with a
    lower `seq`.
    """
    bounds = {"job_id": job_id, "attempt": attempt, "newest": newest, "before": before}
    found = connection.execute(_OF_JOB, bounds).mappings()
    return [CheckpointFile(**row) for row in reversed(found.all())]


def newest_at(files: Sequence[CheckpointFile], path: str | None) -> int | None:
    """Return the `seq` of the job's newest checkpoint whose URI is `path`; None if it is not among `files`.

    `files` may be any part of the job's checkpoints, so that one of several pages has it.
    """
    return next((file.seq for file in files if file.uri == path and file.overwritten_by is None), None)


def find_problems(connection: Connection, job_id: int) -> list[CheckpointFile]:
    """Return the checkpoints in one of the states `PROBLEMS`: missing, different or not uploaded.

    A failed upload is left out if the same source uploaded a newer checkpoint of the same attempt, kind, epoch and
    step; the step is not compared for the kinds in NEWEST_KINDS.
    """
    found = connection.execute(_SUSPICIOUS, {"job_id": job_id}).mappings()
    return [file for file in (CheckpointFile(**row) for row in found) if file.state in PROBLEMS]


def find_source(connection: Connection, job_id: int, which: str) -> CheckpointSource:
    """Return the object of a job's checkpoint; `which` is `best`, `last`, or the `seq` of a row.

    Raises `NotFetchable` if there is no such checkpoint, or if its file was deleted, overwritten, not uploaded, or
    is not in an object store.
    """
    files = find_checkpoints(connection, job_id)
    if which.isdecimal():
        named = [file for file in files if str(file.seq) == which]
        if not named:
            raise NotFetchable(f"job {job_id} has no checkpoint {which}: see `trainwire checkpoints {job_id}`")
        return _source(named[0])
    if which not in {"best", "last"}:
        raise NotFetchable(f"{which!r} is no checkpoint: use best, last, or a number of the list")
    path = connection.execute(_PATHS, {"job_id": job_id}).mappings().one()[which]
    if path is None:
        raise NotFetchable(
            f"job {job_id} has no {which} checkpoint that can be used: see `trainwire checkpoints {job_id}`"
            if files
            else f"job {job_id} has no {which} checkpoint yet"
        )
    named = [file for file in files if file.uri == path]
    return _source(named[-1]) if named else CheckpointSource(_address(path), None, None)


def find_object(connection: Connection, job_id: int, seq: int) -> S3Uri:
    """Return the URI of the S3 object of a checkpoint that is a single file.

    Raises `NotFetchable` in the cases of `find_source`, and for a folder, because one URL cannot serve several
    files.
    """
    uri = find_source(connection, job_id, str(seq)).uri
    if uri.is_folder:
        raise NotFetchable(f"{uri} is a folder: `trainwire checkpoints {job_id} --download {seq}` downloads it")
    return uri


def last_checkpoint(connection: Connection, job_id: int) -> str | None:
    """Return the URI of the newest attempt's newest checkpoint; None if there is none.

    Skips checkpoints that retention deleted or that verification found missing or different, and files that are no
    checkpoints. If nothing is left of an attempt, the attempt before it is searched. A checkpoint that was not
    uploaded is not skipped.
    """
    return connection.execute(_NEWEST, {"job_id": job_id}).scalar_one_or_none()


def _source(file: CheckpointFile) -> CheckpointSource:
    if file.state == DELETED:
        raise NotFetchable(f"{file.uri} was deleted by retention at {file.deleted_at:%Y-%m-%d %H:%M:%S %Z}")
    if file.upload_error is not None:
        raise NotFetchable(f"{file.uri} is on the trainer's machine: it was not uploaded: {file.upload_error}")
    if file.overwritten_by is not None:
        raise NotFetchable(f"checkpoint {file.seq} was overwritten by {file.overwritten_by}: ask for that one")
    return CheckpointSource(_address(file.uri), file.size_bytes, file.sha256)


def _address(uri: str) -> S3Uri:
    try:
        return S3Uri.parse(uri)
    except ValueError as exc:
        raise NotFetchable(f"{uri} was only recorded, not uploaded: fetch it from where it is") from exc


# A deletion that has begun counts as finished: the object may be incomplete.
_EXPRESSIONS: Final = {"deleted_at": "coalesce(deleted_at, deletion_began_at) AS deleted_at"}
_COLUMNS: Final = ", ".join(
    _EXPRESSIONS.get(name, name) for name in CheckpointFile.__struct_fields__ if name != "overwritten_by"
)
_ALL: Final = (
    f"SELECT {_COLUMNS}, lead(seq) OVER (PARTITION BY uri ORDER BY seq) AS overwritten_by "  # noqa: S608 - our names
    "FROM training_checkpoints WHERE job_id = :job_id"
)
_OF_JOB: Final = text(
    f"SELECT * FROM ({_ALL}) AS files WHERE attempt = coalesce(CAST(:attempt AS integer), attempt) "  # noqa: S608
    "AND seq < coalesce(CAST(:before AS bigint), seq + 1) "
    "ORDER BY seq DESC LIMIT :newest"
)
_SUSPICIOUS: Final = text(
    f"""
    SELECT {_COLUMNS}, overwritten_by FROM (
        SELECT *, lead(seq) OVER (PARTITION BY uri ORDER BY seq) AS overwritten_by,
            -- A newer file in the same slot: a later `last` replaces one that was not uploaded.
            bool_or(upload_error IS NULL) OVER (
                PARTITION BY source, attempt, kind, epoch,
                    CASE WHEN kind NOT IN {NEWEST_KINDS} THEN step END
                ORDER BY seq ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
            ) AS was_replaced
        FROM training_checkpoints WHERE job_id = :job_id
    ) AS files
    WHERE upload_error IS NOT NULL AND was_replaced IS NOT TRUE OR verify_error IS NOT NULL ORDER BY seq
    """  # noqa: S608
)
_NEWEST: Final = text(
    f"SELECT uri FROM training_checkpoints WHERE job_id = :job_id AND NOT coalesce({UNUSABLE}, false) "  # noqa: S608
    f"AND deleted_at IS NULL AND NOT starts_with(kind, '{ARTIFACT}') "
    "ORDER BY attempt DESC, seq DESC LIMIT 1"
)
_PATHS: Final = text(
    "SELECT best_checkpoint_path AS best, last_checkpoint_path AS last FROM training_jobs WHERE id = :job_id"
)
