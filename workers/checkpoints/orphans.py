"""Deletes orphans: uploads to the object store that no checkpoint row refers to.

Their trainer was killed before it sent the message, or a deletion was interrupted. Only upload folders of the SDK
are deleted, below the folder of one job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from typing import Final

import structlog
from sqlalchemy import Connection, Engine, text

from trainwire.schemas.checkpoint_keys import S3Uri, upload_folder_of
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, OpenUpload, S3Store, StoredObject
from trainwire.workers.checkpoints.runs import exclusive_run
from trainwire.workers.checkpoints.surplus import retention_policy, shared_addresses
from trainwire.workers.resources import Resources

log = structlog.get_logger("trainwire.workers.checkpoints.retention")

RUN_S: Final = 20.0
JOBS_AT_ONCE: Final = 20
PAGE_FOLDERS: Final = 100


@dataclass(frozen=True, slots=True)
class Orphan:
    """The folder of an upload that no row refers to, with its objects or its open multipart uploads."""

    folder: S3Uri
    objects: list[StoredObject]
    open_uploads: list[OpenUpload]


@dataclass(slots=True)
class Swept:
    """How many upload folders of a job were deleted because no checkpoint row refers to them.

    `is_complete` is False if the time was too short to delete all of them.
    """

    deleted: int = 0
    is_complete: bool = True
    refusals: list[str] = field(default_factory=list)
    """The reasons why the object store did not delete some folders."""


def orphans(
    connection: Connection, store: S3Store, job_id: int, job_folder: S3Uri, before: datetime
) -> Iterator[Orphan]:
    """Yield the uploads of a job that no row refers to and whose last write was before `before`.

    A checkpoint row protects its upload until all its objects are deleted. Other uses protect it as well
    (`shared_addresses`): rows of other jobs, best and last paths, and params and tags of running jobs. They do not
    protect an open multipart upload beside the objects: its trainer began it, received no answer, and began anew.
    """
    found = _written(store, job_folder)
    while page := list(islice(found, PAGE_FOLDERS)):
        uris = [str(orphan.folder) for orphan in page]
        claimed = set(connection.execute(_CLAIMED, {"job_id": job_id, "uris": uris}).scalars())
        claimed |= shared_addresses(connection, job_id, uris)
        for orphan in page:
            times = [each.written_at for each in orphan.objects] + [each.began_at for each in orphan.open_uploads]
            is_claimed = bool(orphan.objects) and str(orphan.folder) in claimed
            if not is_claimed and max(times) < before:
                yield orphan


def sweep(
    engine: Engine,
    store: S3Store,
    job_id: int,
    job_folder: S3Uri,
    *,
    before: datetime,
    is_late: Callable[[], bool],
) -> Swept:
    """Delete the orphans of a job whose last write was before `before`; stop when `is_late` returns True.

    Raises `S3Unavailable` if the object store does not answer.
    """
    swept = Swept()
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for orphan in orphans(connection, store, job_id, job_folder, before):
                if is_late():
                    swept.is_complete = False
                    return swept
                _delete(store, orphan, swept)
    except NoSuchObject:
        pass  # no such bucket
    except NotAllowed as exc:
        swept.refusals.append(str(exc))
    return swept


class OrphanSweep:
    """Deletes the orphans of jobs that ended `checkpoint_orphan_days` ago or earlier.

    Each job is examined completely once after it has ended; in a dry run, each time.
    """

    def __init__(self, resources: Resources, open_store: Callable[[], S3Store]) -> None:
        self._engine = resources.engine
        self._open_store = open_store
        self._policy = retention_policy(resources.settings)
        self._age = timedelta(days=resources.settings.checkpoint_orphan_days)

    def run(self, *, dry_run: bool) -> int:
        """Delete the orphans of up to `JOBS_AT_ONCE` jobs that were not examined yet; return their number.

        In a dry run, orphans are only logged. Ends after about `RUN_S` seconds, or at once, with 0, if another
        worker does this. Raises `Unavailable` if the object store or Postgres does not answer.
        """
        deadline = time.monotonic() + RUN_S
        count = 0
        with exclusive_run(self._engine, "orphans") as lease:
            if lease is None:
                return 0
            due = lease.execute(_DUE_JOBS, {"age": self._age, "limit": JOBS_AT_ONCE}).scalars().all()
            for job_id in due:
                if time.monotonic() >= deadline:
                    break
                count += self._log(job_id) if dry_run else self._sweep(job_id, deadline)
        return count

    def _sweep(self, job_id: int, deadline: float) -> int:
        swept = sweep(
            self._engine,
            self._open_store(),
            job_id,
            self._policy.folder_of(job_id),
            before=datetime.now(UTC) - self._age,
            is_late=lambda: time.monotonic() >= deadline,
        )
        for refusal in swept.refusals:
            log.warning("retention.not_allowed", job_id=job_id, reason=refusal)
        if swept.is_complete:
            with self._engine.begin() as connection:
                connection.execute(_SWEPT, {"job_id": job_id})
        if swept.deleted:
            log.info("retention.deleted_orphans", job_id=job_id, uploads=swept.deleted)
        return swept.deleted

    def _log(self, job_id: int) -> int:
        count = 0
        before = datetime.now(UTC) - self._age
        folder = self._policy.folder_of(job_id)
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            try:
                for orphan in orphans(connection, self._open_store(), job_id, folder, before):
                    rule = "orphan" if orphan.objects else "open-upload"
                    log.info("retention.would_delete", job_id=job_id, uri=str(orphan.folder), rule=rule)
                    count += 1
            except (NoSuchObject, NotAllowed) as exc:
                log.warning("retention.not_allowed", job_id=job_id, reason=str(exc))
        return count


def _written(store: S3Store, job_folder: S3Uri) -> Iterator[Orphan]:
    """Yield the upload folders of a job that contain objects, then those that have open multipart uploads.

    The latter are omitted if the workers' keys may not list them.
    """
    for folder, objects in groupby(store.objects(job_folder), lambda found: _folder(job_folder, found.uri)):
        if folder is not None:
            yield Orphan(folder, list(objects), [])
    try:
        open_uploads = sorted(store.open_uploads(job_folder))
    except (NotAllowed, NoSuchObject) as exc:
        # Listing them needs a right of its own; a lifecycle rule of the bucket can remove them instead.
        log.info("retention.open_uploads_unknown", folder=str(job_folder), reason=str(exc))
        return
    for folder, found in groupby(open_uploads, lambda upload: _folder(job_folder, upload.uri)):
        if folder is not None:
            yield Orphan(folder, [], list(found))


def _folder(job_folder: S3Uri, uri: S3Uri) -> S3Uri | None:
    return upload_folder_of(job_folder, uri.key)


def _delete(store: S3Store, orphan: Orphan, swept: Swept) -> None:
    try:
        for upload in orphan.open_uploads:
            store.abort(upload)
        for found in orphan.objects:
            store.delete(found.uri)
    except NotAllowed as exc:
        swept.refusals.append(str(exc))
    else:
        swept.deleted += 1


_CLAIMED: Final = text(
    "SELECT DISTINCT mine.uri FROM unnest(CAST(:uris AS text[])) AS mine(uri) JOIN training_checkpoints AS named "
    "ON named.job_id = :job_id AND named.deleted_at IS NULL AND starts_with(named.uri, mine.uri)"
)
_ENDED_AT: Final = "greatest(created_at, last_seen_at, completed_at, quiet_since)"
_DUE_JOBS: Final = text(
    f"""
    SELECT id FROM training_jobs WHERE status NOT IN ('pending', 'running', 'stalled')
        AND {_ENDED_AT} < now() - CAST(:age AS interval)
        AND coalesce(files_swept_at < {_ENDED_AT} + CAST(:age AS interval), true)
    ORDER BY {_ENDED_AT}, id LIMIT :limit
    """  # noqa: S608 - our own words
)
_SWEPT: Final = text("UPDATE training_jobs SET files_swept_at = now() WHERE id = :job_id")
