"""Deletion of jobs: the plan, the tombstone and its progress.

Workers carry it out (`trainwire.workers.operations.job_deletion`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec
import redis
from msgspec.structs import replace
from sqlalchemy import Connection, select, text

from trainwire.schemas.events import TrainingDeleted, encode_event
from trainwire.schemas.keys import JOBS_CHANNEL, acks_key, events_channel
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.tables import deleted_jobs
from trainwire.stores.postgres.columns import columns_of

AT_WORK: Final = ("pending", "running", "stalled")
TABLES: Final = (
    "training_logs",
    "training_metrics",
    "training_checkpoints",
    "training_attempts",
    "source_positions",
    "dead_letters",
    "delivery_cursors",
)
"""What Postgres has of a job, besides its row in training_jobs."""
MAX_NOTES: Final = 50
"""Most files and runs that a part names one by one."""
MAX_REASON_CHARS: Final = 500

PartName: TypeAlias = str
PARTS: Final[tuple[PartName, ...]] = ("redis", *SINKS, "s3", "postgres")
State = Literal["open", "done", "requested", "kept", "left"]


class StillAtWork(Exception):  # noqa: N818 - said to people as it stands
    """The job has not ended, and nobody forced its deletion."""


class UnknownJob(LookupError):  # noqa: N818 - said to people as it stands
    """There is neither a job of this number nor a tombstone."""


class StillDeleting(Exception):  # noqa: N818 - said to people as it stands
    """The number cannot be used again before everything of the job is deleted."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is deleted besides the rows; `keep` has the sinks whose copies stay."""

    with_files: bool = False
    keep: frozenset[str] = frozenset()

    def keeps(self, part: PartName) -> bool:
        """Tell whether what this store has of the job stays."""
        return part in self.keep or (part == "s3" and not self.with_files)


class DeletionPart(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a job in one store; `planned` and `deleted` count rows, lines, runs or files.

    `open`: to be deleted, or tried again; `requested`: Loki has accepted it, and deletes the lines later;
    `kept`: by choice; `left`: cannot be deleted as things stand (`notes`), and is tried again only on request.
    """

    state: State
    planned: int = 0
    deleted: int = 0
    notes: list[str] = []

    def noted(self, note: str | None) -> DeletionPart:
        """Return the part with one more note, unless there is none or it has it already."""
        if note is None or note in self.notes or len(self.notes) > MAX_NOTES:
            return self
        return replace(self, notes=[*self.notes, note if len(self.notes) < MAX_NOTES else "… and more"])


class DeletionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of a job. `own_runs` are MLflow runs that its trainer made itself: they are not deleted."""

    job_id: int
    name: str | None
    status: str
    attempt: int
    created_at: datetime
    rows: dict[str, int]
    copies: dict[str, int]
    """How many lines or runs each sink has; no sink for which the job has never had a row."""
    mlflow_runs: list[str]
    own_runs: list[str]
    files: list[str]
    """The newest 1,000 addresses."""
    file_count: int
    file_bytes: int
    tokens: int
    """Tokens that are bound to the job: they stay valid."""

    @property
    def is_at_work(self) -> bool:
        """Tell whether the job has not ended."""
        return self.status in AT_WORK


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """The tombstone of a job, with how far its deletion is."""

    job_id: int
    name: str | None
    attempt: int
    job_created_at: datetime
    deleted_at: datetime
    deleted_by: str
    reason: str | None
    parts: dict[PartName, DeletionPart]
    discarded_messages: int
    discarded_at: datetime | None
    attempts: int
    next_attempt_at: datetime | None
    finished_at: datetime | None

    @property
    def is_finished(self) -> bool:
        """Tell whether workers have nothing more to do; parts may be left all the same."""
        return self.finished_at is not None

    @property
    def is_complete(self) -> bool:
        """Tell whether everything that was to be deleted is."""
        return self.is_finished and not any(part.state == "left" for part in self.parts.values())


def plan_deletion(connection: Connection, job_id: int) -> DeletionPlan | None:
    """Return what there is of a job; None where there is no such job. Rows are counted by their numbers."""
    row = connection.execute(_PLAN, {"job_id": job_id}).mappings().one_or_none()
    if row is None:
        return None
    counts = {table: row[table] for table in TABLES}
    copies = {name: row[f"copies_{name}"] for name in SINKS if row[f"copies_{name}"] is not None}
    fields = {name: row[name] for name in DeletionPlan.__struct_fields__ if name not in {"rows", "copies"}}
    return DeletionPlan(**fields, rows=counts, copies=copies)


def find_deletion(connection: Connection, job_id: int) -> Deletion | None:
    """Return the tombstone of a job; None where it was not deleted."""
    found = select(*columns_of(Deletion, deleted_jobs)).where(deleted_jobs.c.job_id == job_id)
    row = connection.execute(found).mappings().one_or_none()
    return None if row is None else deletion_of(row)


def deletion_of(row: Mapping[Any, Any]) -> Deletion:
    """Return a tombstone from its row."""
    parts = msgspec.convert(row["parts"], dict[PartName, DeletionPart])
    return Deletion(**{**row, "parts": parts})


def begin_deletion(
    connection: Connection,
    job_id: int,
    choice: Choice,
    *,
    by: str,
    reason: str | None = None,
    force: bool = False,
) -> Deletion:
    """Write the tombstone and remove the job's own row, in the caller's transaction; return the tombstone.

    From its commit on the job is in no list, and nothing more of it is stored or delivered. Workers delete the
    rest. Of a job that was deleted before, what was left is tried again, and what was kept and shall not be now.
    Raises `UnknownJob`, and `StillAtWork` unless `force`.
    """
    # Waits for the drains that have locked the job, and makes those that come find the tombstone.
    connection.execute(_LOCK, {"job_id": job_id})
    plan = plan_deletion(connection, job_id)
    if plan is None:
        return _repeat(connection, job_id, choice)
    if plan.is_at_work and not force:
        raise StillAtWork(
            f"job {job_id} is {plan.status}: end its trainer first, or force the deletion (then what its trainer "
            "sends from now on is discarded)"
        )
    tombstone = {
        "job_id": job_id,
        "by": by,
        "reason": reason and reason[:MAX_REASON_CHARS].replace("\0", "\ufffd"),
        "parts": _json(_first_parts(plan, choice)),
    }
    connection.execute(_BURY, tombstone)
    connection.execute(_REMOVE, {"job_id": job_id})
    return _known(connection, job_id)


def forget_deletion(connection: Connection, job_id: int) -> None:
    """Remove the tombstone, so that the number can be used again; raise `UnknownJob` or `StillDeleting`."""
    connection.execute(_LOCK_TOMBSTONE, {"job_id": job_id})
    deletion = find_deletion(connection, job_id)
    if deletion is None:
        raise UnknownJob(f"job {job_id} was not deleted")
    if not deletion.is_complete:
        raise StillDeleting(
            f"job {job_id} is not deleted completely: its number can be used again once nothing of it is left"
        )
    connection.execute(_FORGET, {"job_id": job_id})


def announce_deletion(client: redis.Redis, deletion: Deletion) -> None:
    """Publish that a job was deleted; raise what redis-py raises."""
    event = encode_event(TrainingDeleted(job_id=deletion.job_id, attempt=deletion.attempt))
    for channel in (events_channel(deletion.job_id), JOBS_CHANNEL):
        client.publish(channel, event)


def forget_acks(streams: redis.Redis, job_id: int) -> None:
    """Remove what trainers read of a deleted job, once its number is free; raise what redis-py raises."""
    streams.delete(acks_key(job_id))


def save_part(connection: Connection, job_id: int, name: PartName, part: DeletionPart) -> None:
    """Write how far the deletion is in one store; the other parts may be changed meanwhile."""
    values = {"job_id": job_id, "name": name, "part": msgspec.json.encode(part).decode()}
    connection.execute(_SAVE, values)


def _first_parts(plan: DeletionPlan, choice: Choice) -> dict[PartName, DeletionPart]:
    planned = {**plan.copies, "s3": plan.file_count, "postgres": sum(plan.rows.values())}
    parts = {
        name: DeletionPart(state="kept" if choice.keeps(name) else "open", planned=planned.get(name, 0))
        for name in PARTS
    }
    return parts | {name: DeletionPart(state="done") for name in SINKS if name not in plan.copies}


def _repeat(connection: Connection, job_id: int, choice: Choice) -> Deletion:
    connection.execute(_LOCK_TOMBSTONE, {"job_id": job_id})
    known = find_deletion(connection, job_id)
    if known is None:
        raise UnknownJob(f"no job {job_id} in the database")
    parts = {name: _reopened(name, part, choice) for name, part in known.parts.items()}
    if parts == known.parts:
        return known
    connection.execute(_REOPEN, {"job_id": job_id, "parts": _json(parts)})
    return _known(connection, job_id)


def _reopened(name: PartName, part: DeletionPart, choice: Choice) -> DeletionPart:
    """Return a part that is to be tried again; of files that were kept nothing is known any more."""
    was_kept = part.state == "kept" and name != "s3" and not choice.keeps(name)
    return replace(part, state="open", notes=[]) if part.state == "left" or was_kept else part


def _known(connection: Connection, job_id: int) -> Deletion:
    known = find_deletion(connection, job_id)
    assert known is not None  # noqa: S101 - this transaction has just written it
    return known


def _json(parts: Mapping[PartName, DeletionPart]) -> str:
    return msgspec.json.encode(parts).decode()


_LOCK: Final = text("SELECT FROM training_jobs WHERE id = :job_id FOR UPDATE")
_LOCK_TOMBSTONE: Final = text("SELECT FROM deleted_jobs WHERE job_id = :job_id FOR UPDATE")
_BURY: Final = text(
    "INSERT INTO deleted_jobs (job_id, name, attempt, job_created_at, deleted_by, reason, parts, next_attempt_at) "
    "SELECT id, name, attempt, created_at, :by, :reason, CAST(:parts AS jsonb), now() FROM training_jobs "
    "WHERE id = :job_id"
)
_REMOVE: Final = text("DELETE FROM training_jobs WHERE id = :job_id")
_FORGET: Final = text("DELETE FROM deleted_jobs WHERE job_id = :job_id")
_SAVE: Final = text(
    "UPDATE deleted_jobs SET parts = jsonb_set(parts, ARRAY[:name], CAST(:part AS jsonb)) WHERE job_id = :job_id"
)
_REOPEN: Final = text(
    "UPDATE deleted_jobs SET parts = CAST(:parts AS jsonb), finished_at = NULL, attempts = 0, "
    "next_attempt_at = now() WHERE job_id = :job_id"
)
_FILES: Final = (
    "(SELECT DISTINCT ON (uri) uri, size_bytes, seq FROM training_checkpoints WHERE job_id = :job_id "
    "AND deleted_at IS NULL AND starts_with(uri, 's3://') ORDER BY uri, seq DESC) AS files"
)
_COUNTED: Final = (
    "training_checkpoints",
    "training_attempts",
    "source_positions",
    "dead_letters",
    "delivery_cursors",
)
_COUNTS: Final = ", ".join(
    f"(SELECT count(*) FROM {table} WHERE job_id = :job_id) AS {table}"  # noqa: S608 - our own names
    for table in _COUNTED
)
# Null: the job has never had a row for the sink. One with another work list may have copies all the same.
_COPIES: Final = ", ".join(
    f"CASE WHEN {sink.rows.last_seq} > 0 OR '{sink.work_list}' <> 'delivery_cursors' "
    f"THEN {sink.copy_count.format(name=sink.name)} END AS copies_{sink.name}"
    for sink in SINKS.values()
)
_PLAN: Final = text(
    f"""
    SELECT id AS job_id, name, status, attempt, created_at,
        last_log_seq - removed_log_seq AS training_logs, last_metric_seq - removed_metric_seq AS training_metrics,
        {_COUNTS}, {_COPIES},
        ARRAY(
            SELECT mirror_run_id FROM training_attempts WHERE job_id = id AND mirror_run_id IS NOT NULL
            ORDER BY training_attempts.attempt
        ) AS mlflow_runs,
        ARRAY(
            SELECT mlflow_run_id FROM training_attempts WHERE job_id = id AND mlflow_run_id IS NOT NULL
            AND mlflow_run_id IS DISTINCT FROM mirror_run_id ORDER BY training_attempts.attempt
        ) AS own_runs,
        ARRAY(SELECT uri FROM {_FILES} ORDER BY seq DESC LIMIT 1000) AS files,
        (SELECT count(*) FROM {_FILES}) AS file_count,
        (SELECT CAST(coalesce(sum(size_bytes), 0) AS bigint) FROM {_FILES}) AS file_bytes,
        (SELECT count(*) FROM gateway_tokens WHERE job_id = id AND revoked_at IS NULL) AS tokens
    FROM training_jobs WHERE id = :job_id
    """  # noqa: S608 - our own names
)
