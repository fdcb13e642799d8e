"""Deletion of jobs: the tombstone of a deleted job, and the progress of the deletion in each store.

Workers execute the deletion (`trainwire.workers.operations.job_deletion`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, select, text

from trainwire.schemas.events import TrainingDeleted, encode_event
from trainwire.schemas.keys import JOBS_CHANNEL, acks_key, events_channel
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.schemas.tables import deleted_jobs
from trainwire.stores.postgres.columns import columns_of
from trainwire.stores.postgres.deletion_plan import DeletionPlan, plan_deletion
from trainwire.stores.postgres.jobs.job_values import SHOWN_NAME

if TYPE_CHECKING:
    import redis

MAX_NOTES: Final = 50
"""Largest number of notes of a `DeletionPart`, before `… and more`; a note names one file or MLflow run."""
MAX_REASON_CHARS: Final = 500

PartName: TypeAlias = str
PARTS: Final[tuple[PartName, ...]] = ("redis", *SINKS, "s3", "postgres")
State = Literal["open", "done", "requested", "kept", "left"]


class StillAtWork(Exception):  # noqa: N818 - shown to users
    """The job has not ended, and the caller did not force its deletion."""


class NoSuchJob(LookupError):  # noqa: N818 - shown to users
    """There is neither a job nor a tombstone with this number."""


class StillDeleting(Exception):  # noqa: N818 - shown to users
    """The job number cannot be reused before the deletion is complete."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a deletion: whether to delete uploaded files, and the sinks whose copies to keep."""

    with_files: bool = False
    keep: frozenset[str] = frozenset()

    def keeps(self, part: PartName) -> bool:
        """Return whether the job's data in the store `part` is kept."""
        return part in self.keep or (part == "s3" and not self.with_files)


class DeletionPart(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a deletion in one store; `planned` and `deleted` count rows, lines, MLflow runs or files.

    States: `open`, the data has still to be deleted; `done`; `requested`, Loki has accepted the request and
    deletes the lines later; `kept`, as the user chose; `left`, the data cannot be deleted now (see `notes`) and is
    retried only on request.
    """

    state: State
    planned: int = 0
    deleted: int = 0
    notes: list[str] = []

    def noted(self, note: str | None) -> DeletionPart:
        """Return a copy with `note` added to the notes, or with `… and more` after MAX_NOTES notes.

        Returns `self` if the note is None or already there, or if `… and more` is.
        """
        if note is None or note in self.notes or len(self.notes) > MAX_NOTES:
            return self
        return replace(self, notes=[*self.notes, note if len(self.notes) < MAX_NOTES else "… and more"])


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """The tombstone of a deleted job, with the progress of its deletion by store."""

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
        """Whether the state of no store is `open`; data may still be `left` in some stores."""
        return self.finished_at is not None

    @property
    def is_complete(self) -> bool:
        """Whether the deletion is finished and no store has the state `left`."""
        return self.is_finished and not any(part.state == "left" for part in self.parts.values())


def plan_or_deletion(connection: Connection, job_id: int) -> DeletionPlan | Deletion:
    """Return the plan to delete a job, or its tombstone if it was deleted; raise `NoSuchJob` without either."""
    found = plan_deletion(connection, job_id) or find_deletion(connection, job_id)
    if found is None:
        raise NoSuchJob(f"no job {job_id} in the database")
    return found


def deleted_among(connection: Connection, job_ids: Collection[int]) -> set[int]:
    """Return those of `job_ids` that were deleted, so that workers discard their messages."""
    return set(connection.execute(_DELETED, {"ids": list(job_ids)}).scalars())


def find_deletion(connection: Connection, job_id: int) -> Deletion | None:
    """Return the tombstone of a job; None if it was not deleted."""
    found = select(*columns_of(Deletion, deleted_jobs)).where(deleted_jobs.c.job_id == job_id)
    row = connection.execute(found).mappings().one_or_none()
    return None if row is None else deletion_of(row)


def deletion_of(row: Mapping[Any, Any]) -> Deletion:
    """Convert a row of deleted_jobs to a `Deletion`."""
    parts = msgspec.convert(row["parts"], dict[PartName, DeletionPart])
    return Deletion(**{**row, "parts": parts})


def start_deletion(
    engine: Engine,
    client: redis.Redis,
    job_id: int,
    choice: Choice,
    *,
    by: str,
    reason: str | None,
    force: bool,
    on_unpublished: Callable[[str], None],
) -> Deletion:
    """Begin the deletion of a job (`begin_deletion`), commit, and publish the event to gateways.

    If Redis does not respond, `on_unpublished` is called with the reason; workers publish the event later. Raises
    the exceptions of `begin_deletion`.
    """
    from redis import RedisError  # noqa: PLC0415 - commands that only read deletions need no Redis

    with engine.begin() as connection:
        deletion = begin_deletion(connection, job_id, choice, by=by, reason=reason, force=force)
    try:
        publish_deletion(client, deletion)
    except RedisError as exc:
        on_unpublished(redis_trouble(exc))
    return deletion


def begin_deletion(
    connection: Connection,
    job_id: int,
    choice: Choice,
    *,
    by: str,
    reason: str | None = None,
    force: bool = False,
) -> Deletion:
    """Write the tombstone and delete the row in training_jobs, in the caller's transaction; return the tombstone.

    After the commit the job is not listed any more, and none of its messages are stored or delivered. Workers
    delete the remaining data. `by` and `reason` (at most MAX_REASON_CHARS) are stored in the tombstone.
    If the job was deleted before, parts with the state `left` are set to `open`, and so are `kept` parts that
    `choice` does not keep; copies in sinks that are not deleted yet and that `choice` keeps are set to `kept`.
    Kept files stay `kept`, because the rows that list them are deleted.
    Raises `NoSuchJob` if there is neither a job nor a tombstone, and `StillAtWork` if the job has not ended and
    `force` is False.
    """
    # Waits for drains that have locked the job; later drains find the tombstone.
    connection.execute(_LOCK, {"job_id": job_id})
    plan = plan_deletion(connection, job_id)
    if plan is None:
        return _repeat(connection, job_id, choice)
    if plan.is_at_work and not force:
        raise StillAtWork(
            f"job {job_id} is {plan.status}: end its trainer first, or force the deletion (later messages of "
            "its trainer are then discarded)"
        )
    tombstone = {
        "job_id": job_id,
        "by": by,
        "reason": reason and reason[:MAX_REASON_CHARS].replace("\0", "\ufffd"),
        "parts": _json(_first_parts(plan, choice)),
    }
    connection.execute(_INSERT_TOMBSTONE, tombstone)
    connection.execute(_REMOVE, {"job_id": job_id})
    return _known(connection, job_id)


def forget_deletion(connection: Connection, job_id: int) -> None:
    """Delete the tombstone, so that the job number can be reused.

    Raises `NoSuchJob` if there is no tombstone, and `StillDeleting` if the deletion is not complete.
    """
    connection.execute(_LOCK_TOMBSTONE, {"job_id": job_id})
    deletion = find_deletion(connection, job_id)
    if deletion is None:
        raise NoSuchJob(f"job {job_id} was not deleted")
    if not deletion.is_complete:
        raise StillDeleting(
            f"job {job_id} is not deleted completely: its number can be used again once nothing of it is left"
        )
    connection.execute(_FORGET, {"job_id": job_id})


def publish_deletion(client: redis.Redis, deletion: Deletion) -> None:
    """Publish the event `training_deleted` of a job for gateways. Raises redis-py's errors."""
    event = encode_event(TrainingDeleted(job_id=deletion.job_id, attempt=deletion.attempt))
    for channel in (events_channel(deletion.job_id), JOBS_CHANNEL):
        client.publish(channel, event)


def forget_acks(streams: redis.Redis, job_id: int) -> None:
    """Delete a job's acknowledgements in Redis, by which trainers learn that it was deleted.

    Raises redis-py's errors.
    """
    streams.delete(acks_key(job_id))


def save_part(connection: Connection, job_id: int, name: PartName, part: DeletionPart) -> None:
    """Save the progress in the store `name`; concurrent updates of other stores are not overwritten."""
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
        raise NoSuchJob(f"no job {job_id} in the database")
    parts = {name: _reopened(name, part, choice) for name, part in known.parts.items()}
    if parts == known.parts:
        return known
    connection.execute(_REOPEN, {"job_id": job_id, "parts": _json(parts)})
    return _known(connection, job_id)


def _reopened(name: PartName, part: DeletionPart, choice: Choice) -> DeletionPart:
    """Return `part` with the state `open` if it must be processed again, otherwise unchanged.

    That is the case if it is `left`, or if it is `kept` and `choice` no longer keeps it. Kept files stay `kept`,
    because the rows that list them are deleted. A sink's copies that are `open` or `left` become `kept` if
    `choice` keeps them: the sink may never be able to delete them.
    """
    if name in choice.keep and part.state in ("open", "left"):
        return replace(part, state="kept", notes=[])
    was_kept = part.state == "kept" and name != "s3" and not choice.keeps(name)
    return replace(part, state="open", notes=[]) if part.state == "left" or was_kept else part


def _known(connection: Connection, job_id: int) -> Deletion:
    known = find_deletion(connection, job_id)
    assert known is not None  # noqa: S101 - this transaction has just written it
    return known


def _json(parts: Mapping[PartName, DeletionPart]) -> str:
    return msgspec.json.encode(parts).decode()


_DELETED: Final = text("SELECT job_id FROM deleted_jobs WHERE job_id = ANY(:ids)")
_LOCK: Final = text("SELECT FROM training_jobs WHERE id = :job_id FOR UPDATE")
_LOCK_TOMBSTONE: Final = text("SELECT FROM deleted_jobs WHERE job_id = :job_id FOR UPDATE")
_INSERT_TOMBSTONE: Final = text(
    "INSERT INTO deleted_jobs "  # noqa: S608 - our own SQL
    "(job_id, name, attempt, job_created_at, deleted_by, reason, parts, next_attempt_at) "
    f"SELECT id, {SHOWN_NAME}, attempt, created_at, :by, :reason, CAST(:parts AS jsonb), now() "
    "FROM training_jobs WHERE id = :job_id"
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
