"""Executes deletions of jobs (`trainwire.stores.postgres.deletion`) store by store, in small transactions.

The process can be killed at any time: the tombstone records which stores are not done, and the next run continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, text

from trainwire.schemas.backoff import Backoff
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.schemas.sinks import SINKS
from trainwire.schemas.tables import ROLLUPS_CURSOR
from trainwire.stores.files.s3 import S3Store
from trainwire.stores.postgres.alerts import CURSOR as ALERT_CURSOR
from trainwire.stores.postgres.deletion import Deletion, DeletionPart, PartName, find_deletion, save_part
from trainwire.stores.postgres.deletion_plan import DERIVED, TABLES
from trainwire.workers.checkpoints import orphans
from trainwire.workers.checkpoints.runs import s3_errors
from trainwire.workers.checkpoints.surplus import shared_addresses
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.operations import deletion_parts
from trainwire.workers.operations.deletion_parts import JobFiles
from trainwire.workers.resources import Resources
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.plugin import NotSetUp, plugin

log = structlog.get_logger("trainwire.workers.operations.job_deletion")

RUN_S: Final = 10.0
"""Time limit of a run in seconds, so that the worker executes other tasks in between."""
BATCH_ROWS: Final = 5_000
JOBS_AT_ONCE: Final = 50
_RETRIED: Final = ": it is tried again"
_WITHOUT_SEQ: Final = "ctid IN (SELECT ctid FROM {table} WHERE job_id = :job_id LIMIT :rows)"
_BY_SEQ: Final = (
    "job_id = :job_id AND seq <= (SELECT max(seq) FROM "
    "(SELECT seq FROM {table} WHERE job_id = :job_id ORDER BY seq LIMIT :rows) AS next_rows)"
)
_WORK_LISTS: Final[dict[PartName, str]] = {"s3": "training_checkpoints"} | {
    sink.name: sink.work_list for sink in SINKS.values()
}
"""By store: the table whose rows are needed to delete the job there, and are kept until that is done."""


@dataclass(frozen=True, slots=True)
class DeletionRun:
    """One run of the deletion of a job, with its deadline and a function to call after each step."""

    deadline: float
    on_progress: Callable[[Deletion], None]


class JobDeleter:
    """Deletes the data of jobs that have a tombstone, each job by one process at a time.

    With `is_worker=False` (in a command) results are not logged, and stores that are not configured are left to
    workers. Rows are deleted in batches of `batch_rows`.
    """

    def __init__(
        self,
        resources: Resources,
        open_store: Callable[[], S3Store],
        *,
        is_worker: bool = True,
        batch_rows: int = BATCH_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resources = resources
        self._engine: Engine = resources.engine
        self._open_store = open_store
        self._is_worker = is_worker
        self._batch_rows = batch_rows
        self._clock = clock
        self._backoff = Backoff(first_s=5, cap_s=300)

    def run_due(self, run_s: float = RUN_S) -> None:
        """Continue the deletions that are due, up to `JOBS_AT_ONCE` of them, for about `run_s` seconds.

        The next run continues the rest. Raises `Unavailable` if Postgres does not answer.
        """
        deadline = self._clock() + run_s
        with postgres_errors(), self._engine.begin() as connection:
            due = list(connection.execute(_DUE, {"limit": JOBS_AT_ONCE}).scalars())
        for job_id in due:
            left_s = deadline - self._clock()
            if left_s <= 0:
                return
            try:
                self.run(job_id, left_s)
            except Unavailable as exc:
                log.warning("deletion.unavailable", job_id=job_id, store="postgres", reason=str(exc))
                with postgres_errors():
                    self._finish(job_id, has_failed=True)

    def run(
        self, job_id: int, run_s: float = RUN_S, on_progress: Callable[[Deletion], None] = lambda _deletion: None
    ) -> bool:
        """Delete the remaining data of one job, for about `run_s` seconds.

        Calls `on_progress` after each step. Returns False if another process is deleting the job, else True, also
        if data is left. Stores that are unavailable are retried later. Raises `Unavailable` if Postgres does not
        answer, or if a delivery of the job does not end within `lock_timeout`; `LookupError` if the job has no
        tombstone.
        """
        run = DeletionRun(self._clock() + run_s, on_progress)
        with postgres_errors(), self._engine.begin() as lease:
            if not lease.execute(_TAKE_TURN, {"job_id": job_id}).scalar_one():
                return False
            if self._read(job_id).is_finished:
                return True
            self._await_deliveries(job_id)
            has_failed = False
            for name, delete in self._steps().items():
                has_failed |= self._delete_part(job_id, name, delete, run)
            self._finish(job_id, has_failed=has_failed)
        return True

    def _steps(self) -> dict[PartName, Callable[[Deletion, DeletionRun], DeletionPart]]:
        return {
            "redis": lambda deletion, _: deletion_parts.delete_keys(self._resources, deletion),
            **{sink: partial(self._delete_copies, sink) for sink in SINKS},
            "s3": self._delete_files,
            "postgres": self._delete_rows,
        }

    def _delete_part(
        self,
        job_id: int,
        name: PartName,
        delete: Callable[[Deletion, DeletionRun], DeletionPart],
        run: DeletionRun,
    ) -> bool:
        """Delete the job's data in one store; return whether this failed and has to be retried later."""
        deletion = self._read(job_id)
        # A tombstone that is older than a sink has no part for it, and the sink has no copies.
        if name not in deletion.parts or deletion.parts[name].state != "open":
            return False
        try:
            with s3_errors():
                part = delete(replace(deletion, parts=deletion.parts | {name: _begun(deletion.parts[name])}), run)
        except (NotSetUp, Unavailable) as exc:
            if isinstance(exc, Unavailable) and name == "postgres":
                raise
            is_final = isinstance(exc, NotSetUp) and self._is_worker
            known = _begun(self._read(job_id).parts[name])
            part = replace(known, state="left" if is_final else "open")
            part = part.noted(str(exc) if is_final else f"{exc}{_RETRIED}")
            if self._is_worker:
                log.warning("deletion.unavailable", job_id=job_id, store=name, reason=str(exc))
        with self._engine.begin() as connection:
            save_part(connection, job_id, name, part)
        run.on_progress(self._read(job_id))
        return part.state == "open" and self._clock() < run.deadline

    def _await_deliveries(self, job_id: int) -> None:
        """Wait until no delivery, rollup or alert evaluation of the job runs.

        None begins later, because the job has no row in `training_jobs`.
        """
        with self._engine.begin() as connection:
            for sink in (*SINKS, ROLLUPS_CURSOR, ALERT_CURSOR):
                cursors.await_lease(connection, sink, job_id)

    def _delete_copies(self, sink: str, deletion: Deletion, _run: DeletionRun) -> DeletionPart:
        return plugin(sink).delete(self._resources, deletion, deletion.parts[sink])

    def _delete_files(self, deletion: Deletion, run: DeletionRun) -> DeletionPart:
        """Delete the job's files, each with its rows, then its orphans, until the deadline of `run`.

        If a file cannot be deleted, its rows stay.
        """
        files = JobFiles(self._resources.settings, deletion.job_id, self._open_store)
        part, is_left, after = deletion.parts["s3"], False, ""
        while True:
            with self._engine.begin() as connection:
                page = files.page(connection, after)
                shared = shared_addresses(connection, deletion.job_id, [file.uri for file in page])
            if not page:
                part = replace(part, state="left" if is_left else "done")
                return self._delete_orphans(deletion.job_id, files.folder, part, run)
            for file in page:
                if self._clock() >= run.deadline:
                    return part
                outcome = files.delete(file, is_shared=file.uri in shared)
                is_left |= outcome.is_left
                part = replace(part, deleted=part.deleted + outcome.is_deleted).noted(outcome.note)
                with self._engine.begin() as connection:
                    if not outcome.is_left:
                        files.forget(connection, file)
                    save_part(connection, deletion.job_id, "s3", part)
            after = page[-1].uri
            run.on_progress(self._read(deletion.job_id))

    def _delete_orphans(
        self, job_id: int, folder: S3Uri | None, part: DeletionPart, run: DeletionRun
    ) -> DeletionPart:
        """Delete uploads in the job's folder that no row refers to, for example because a trainer was killed."""
        if folder is None:
            return part
        swept = orphans.sweep(
            self._engine,
            self._open_store(),
            job_id,
            folder,
            before=datetime.max.replace(tzinfo=UTC),
            is_late=lambda: self._clock() >= run.deadline,
        )
        part = replace(part, deleted=part.deleted + swept.deleted)
        for refusal in swept.refusals:
            part = part.noted(refusal)
        if not swept.is_complete:
            return replace(part, state="open")
        return replace(part, state="left") if swept.refusals else part

    def _delete_rows(self, deletion: Deletion, run: DeletionRun) -> DeletionPart:
        """Delete the job's rows from all tables in batches, until the deadline of `run`.

        Rows that are needed for another store stay until that store is done.
        """
        part, job_id = deletion.parts["postgres"], deletion.job_id
        needed: dict[str, str] = {}
        for state in ("left", "open"):
            stores = [name for name, known in deletion.parts.items() if known.state == state]
            needed |= {_WORK_LISTS[name]: state for name in stores if name in _WORK_LISTS}
        for table in TABLES:
            while table not in needed:
                if self._clock() >= run.deadline:
                    return part
                with self._engine.begin() as connection:
                    rows = _delete_batch(connection, table, job_id, self._batch_rows)
                    part = replace(part, deleted=part.deleted + (0 if table in DERIVED else rows))
                    save_part(connection, job_id, "postgres", part)
                if rows:
                    run.on_progress(self._read(job_id))
                if rows < self._batch_rows:
                    break
        if "open" in needed.values():
            return part
        if not needed:
            return replace(part, state="done")
        return replace(part, state="left").noted(
            f"rows of {', '.join(needed)} stay until the other stores are done"
        )

    def _finish(self, job_id: int, *, has_failed: bool) -> None:
        """Record that the deletion is complete, or when its next run is due."""
        with self._engine.begin() as connection:
            deletion = find_deletion(connection, job_id)
            if deletion is None:
                return
            delay_s = self._backoff.delay_s(deletion.attempts + 1) if has_failed else 0.0
            finished = connection.execute(
                _FINISH, {"job_id": job_id, "delay_s": delay_s, "failures": int(has_failed)}
            ).scalar_one()
        if finished and self._is_worker:
            parts = {name: f"{part.state}, {part.deleted:,} deleted" for name, part in deletion.parts.items()}
            log.info("deletion.finished", job_id=job_id, **parts)

    def _read(self, job_id: int) -> Deletion:
        with self._engine.begin() as connection:
            found = find_deletion(connection, job_id)
        if found is None:
            raise LookupError(f"job {job_id} was not deleted")
        return found


def _begun(part: DeletionPart) -> DeletionPart:
    """Return a copy of `part`, the deletion in one store, without the notes about earlier failed tries."""
    return replace(part, notes=[note for note in part.notes if not note.endswith(_RETRIED)])


def _delete_batch(connection: Connection, table: str, job_id: int, rows: int) -> int:
    has_seq = table in {"training_logs", "training_metrics", "training_checkpoints"}
    condition = (_BY_SEQ if has_seq else _WITHOUT_SEQ).format(table=table)
    statement = text(f"DELETE FROM {table} WHERE {condition}")  # noqa: S608 - our own table
    return connection.execute(statement, {"job_id": job_id, "rows": rows}).rowcount


_DUE: Final = text(
    "SELECT job_id FROM deleted_jobs WHERE finished_at IS NULL AND coalesce(next_attempt_at <= now(), true) "
    "ORDER BY next_attempt_at NULLS FIRST LIMIT :limit"
)
_TAKE_TURN: Final = text("SELECT pg_try_advisory_xact_lock(hashtextextended('delete:' || :job_id, 0))")
_FINISH: Final = text(
    """
    UPDATE deleted_jobs SET attempts = attempts + :failures,
        finished_at = CASE WHEN is_done THEN now() END,
        next_attempt_at = CASE WHEN NOT is_done THEN now() + make_interval(secs => :delay_s) END
    FROM (
        SELECT job_id AS id, NOT EXISTS (
            SELECT FROM jsonb_each(parts) AS part(name, value) WHERE value->>'state' = 'open'
        ) AS is_done FROM deleted_jobs WHERE job_id = :job_id FOR UPDATE
    ) AS state WHERE job_id = state.id RETURNING is_done
    """
)
