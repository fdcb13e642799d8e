"""What a deletion removes outside of Postgres: keys in Redis, lines in Loki, runs in MLflow, files in S3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from msgspec.structs import replace
from sqlalchemy import Connection, text

from schemas.checkpoint_keys import SCHEME, S3Uri
from schemas.routes import JOB_DELETED_FIELD, LOKI_SINK, acks_key, alive_key, keys_of_job, shard_of
from stores.deletion import Deletion, DeletionPart, announce_deletion
from stores.folders import WrongManifest
from stores.lending import lending_places, lies_in
from stores.loki_config import MAX_AGE_NS
from stores.loki_deletion import LokiKeepsLines, request_deletion
from stores.loki_http import LokiUnavailable, loki_http
from stores.mlflow import (
    JOB_TAG,
    MIRROR_SOURCE,
    SOURCE_TAG,
    delete_run,
    experiment_ids,
    get_run,
    search_runs,
    tag_filter,
)
from stores.mlflow_http import MlflowApi, MlflowRefused, MlflowUnavailable
from stores.s3 import NoSuchObject, NotAllowed
from workers.resources import Resources
from workers.retention import ObjectStore, delete_objects
from workers.settings import Settings
from workers.sinks.mlflow.http import mlflow_api
from workers.sinks.mlflow.run import CREATED_TAG
from workers.streams import ACKS_TTL_S, redis_errors

PAGE_FILES: Final = 100
MAX_RUNS: Final = 1000
_SCANNED_AT_ONCE: Final = 1000


class NotSetUp(Exception):  # noqa: N818 - said as it stands
    """A store that has something of the job is not named by the settings of this process."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run or file; the rows that name it stay while it `is_left`."""

    is_deleted: bool = False
    is_left: bool = False
    note: str | None = None


def delete_keys(resources: Resources, deletion: Deletion) -> DeletionPart:
    """Remove what Redis has of the job, and publish that it was deleted; raise `Unavailable`.

    Entries in the streams stay until their drain, which discards them.
    """
    client, job_id, deleted = resources.streams, deletion.job_id, 0
    with redis_errors():
        for pattern in keys_of_job(job_id):
            for key in client.scan_iter(match=pattern, count=_SCANNED_AT_ONCE):
                deleted += int(client.delete(key))
        alive = alive_key(shard_of(job_id, resources.settings.ingest_shards))
        for field, _ in client.hscan_iter(alive, match=f"{job_id}:*", count=_SCANNED_AT_ONCE):
            deleted += int(client.hdel(alive, field))
        acks = acks_key(job_id)
        deleted += int(client.delete(acks))
        # Trainers that still live read here why nothing is stored any more.
        client.hset(acks, JOB_DELETED_FIELD, 1)
        client.expire(acks, ACKS_TTL_S)
        announce_deletion(resources.redis, deletion)
    return DeletionPart(state="done", deleted=deleted)


def delete_lines(settings: Settings, deletion: Deletion, newest_ns: int) -> DeletionPart:
    """Have Loki delete the job's lines; raise `NotSetUp` or `LokiUnavailable`.

    `newest_ns` is the time of the newest line that Loki was sent.
    """
    part = deletion.parts["loki"]
    if not settings.loki_enabled:
        if part.planned:
            raise NotSetUp("LOKI_ENABLED is false here")
        return replace(part, state="done")
    if newest_ns >= time.time_ns():
        at = f"{datetime.fromtimestamp(newest_ns // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"
        raise LokiUnavailable(f"Loki deletes lines of the past only, and the newest one is of {at}")
    start_ns = int(deletion.job_created_at.timestamp()) * 10**9 - MAX_AGE_NS
    try:
        request_deletion(loki_http(settings), deletion.job_id, start_ns)
    except LokiKeepsLines as exc:
        return replace(part, state="left" if part.planned else "done").noted(str(exc))
    except LokiUnavailable as exc:
        if part.planned:
            raise
        return replace(part, state="done").noted(f"{exc}; it has confirmed no line of this job")
    note = "Loki hides the lines within minutes and deletes them after delete_request_cancel_period (default 24 h)"
    return replace(part, state="requested", deleted=part.planned).noted(note)


def delete_runs(settings: Settings, deletion: Deletion, mirrors: list[str], own_runs: list[str]) -> DeletionPart:
    """Mark the runs that workers made as deleted in MLflow; raise `NotSetUp` or `MlflowUnavailable`."""
    part = deletion.parts["mlflow"]
    for run_id in own_runs:
        part = part.noted(f"run {run_id} was made by the trainer itself: it stays")
    if settings.mlflow_tracking_uri is None:
        if mirrors:
            raise NotSetUp("MLFLOW_TRACKING_URI is not set here")
        return replace(part, state="done")
    api = mlflow_api(settings.mlflow_tracking_uri)
    try:
        # A worker may have made a run and been killed before Postgres had its id.
        unknown = sorted(set(_runs_of(api, deletion)) - set(mirrors))
    except MlflowUnavailable as exc:
        if mirrors or part.planned:
            raise
        return replace(part, state="done").noted(f"{exc}; no run of this job is known")
    outcomes = [_delete_run(api, deletion.job_id, run_id) for run_id in [*mirrors, *unknown]]
    for outcome in outcomes:
        part = replace(part, deleted=part.deleted + outcome.is_deleted).noted(outcome.note)
    if part.deleted:
        part = part.noted("MLflow keeps deleted runs until `mlflow gc` removes them")
    return replace(part, state="left" if any(outcome.is_left for outcome in outcomes) else "done")


def _delete_run(api: MlflowApi, job_id: int, run_id: str) -> Outcome:
    run = get_run(api, run_id)
    if run is None or run.is_deleted:
        return Outcome()
    if not run.is_mirror or run.tags.get(JOB_TAG) != str(job_id):
        return Outcome(note=f"run {run_id} is not tagged as one that trainwire made for this job: it stays")
    try:
        delete_run(api, run_id)
    except MlflowRefused as exc:
        return Outcome(is_left=True, note=str(exc))
    return Outcome(is_deleted=True)


def _runs_of(api: MlflowApi, deletion: Deletion) -> Iterator[str]:
    identity = {JOB_TAG: str(deletion.job_id), CREATED_TAG: deletion.job_created_at.isoformat()}
    wanted = tag_filter(identity | {SOURCE_TAG: MIRROR_SOURCE})
    for run in search_runs(api, experiment_ids(api), wanted, MAX_RUNS):
        yield run.run_id


@dataclass(frozen=True, slots=True)
class JobFile:
    """One address that checkpoint rows of the job name, as the newest of them records it."""

    uri: str
    sha256: str | None
    is_deleted: bool


class JobFiles:
    """The files of one job, page by page; those that nothing allows to delete are named."""

    def __init__(self, settings: Settings, job_id: int, open_store: Callable[[], ObjectStore]) -> None:
        self._job_id = job_id
        self._places = lending_places(settings)
        self._open_store = open_store
        bucket, prefix = settings.trainwire_checkpoint_bucket, settings.trainwire_checkpoint_prefix.strip("/")
        self._root = f"{SCHEME}{bucket}/{prefix}/" if prefix else f"{SCHEME}{bucket}/"

    def page(self, connection: Connection, after: str) -> list[JobFile]:
        """Return the next files in the order of their addresses."""
        names = {"job_id": self._job_id, "after": after, "limit": PAGE_FILES}
        return [JobFile(*row) for row in connection.execute(_FILES, names)]

    def shared(self, connection: Connection, files: list[JobFile]) -> set[str]:
        """Return the addresses that other jobs name too, or that lie in one another with theirs."""
        names = {"job_id": self._job_id, "uris": [file.uri for file in files]}
        return set(connection.execute(_SHARED, names).scalars())

    def delete(self, file: JobFile, *, is_shared: bool) -> Outcome:
        """Delete a file, or say why not; raise `stores.s3.StoreAway`."""
        if file.is_deleted:
            return Outcome()
        if why := self._why_it_stays(file.uri, is_shared=is_shared):
            return Outcome(note=f"{file.uri} {why}: it stays")
        uri = S3Uri.parse(file.uri)
        if not lies_in(uri, self._places):
            remedy = f"name it in CHECKPOINT_LEND_ALSO={SCHEME}{uri.bucket}/ if it is to be deleted"
            return Outcome(is_left=True, note=f"{uri} lies where trainwire touches nothing: {remedy}")
        try:
            delete_objects(self._open_store(), file.uri, file.sha256)
        except NoSuchObject:
            return Outcome()
        except (NotAllowed, WrongManifest) as exc:
            return Outcome(is_left=True, note=str(exc))
        return Outcome(is_deleted=True)

    def forget(self, connection: Connection, file: JobFile) -> int:
        """Remove the rows that name a file; return how many."""
        return connection.execute(_FORGET, {"job_id": self._job_id, "uri": file.uri}).rowcount

    def _why_it_stays(self, uri: str, *, is_shared: bool) -> str | None:
        if not uri.startswith(SCHEME):
            return "is on the trainer's machine"
        if is_shared:
            return "is a checkpoint of another job too"
        try:
            S3Uri.parse(uri)
        except ValueError as exc:
            return f"is no address of a file ({exc})"
        # The folder that trainwire gives to the job of another number.
        folder = uri.removeprefix(self._root).partition("/")[0] if uri.startswith(self._root) else ""
        is_of_another = folder.isdecimal() and folder != str(self._job_id)
        return "lies in the folder of another job" if is_of_another else None


def newest_line_ns(connection: Connection, job_id: int) -> int:
    """Return the time of the newest line that Loki was sent, 0 for none."""
    found = connection.execute(_NEWEST, {"sink": LOKI_SINK, "job_id": job_id}).scalar_one_or_none()
    return max((found or {}).values(), default=0)


def runs_of_attempts(connection: Connection, job_id: int) -> tuple[list[str], list[str]]:
    """Return the MLflow runs that workers made for the attempts, and those that the trainer made itself."""
    rows: list[Any] = list(connection.execute(_RUNS, {"job_id": job_id}))
    mirrors = [mirror for mirror, _ in rows if mirror]
    return mirrors, [own for _, own in rows if own and own not in mirrors]


_NEWEST: Final = text("SELECT newest_ns FROM delivery_cursors WHERE sink = :sink AND job_id = :job_id")
_RUNS: Final = text(
    "SELECT mirror_run_id, mlflow_run_id FROM training_attempts WHERE job_id = :job_id ORDER BY attempt"
)
_FILES: Final = text(
    "SELECT DISTINCT ON (uri) uri, sha256, deleted_at IS NOT NULL FROM training_checkpoints "
    "WHERE job_id = :job_id AND uri > :after ORDER BY uri, seq DESC LIMIT :limit"
)
_FORGET: Final = text("DELETE FROM training_checkpoints WHERE job_id = :job_id AND uri = :uri")
_MINE: Final = "unnest(CAST(:uris AS text[])) AS mine(uri)"
_NESTED: Final = (
    "(right(mine.uri, 1) = '/' AND starts_with(other.uri, mine.uri) "
    "OR right(other.uri, 1) = '/' AND starts_with(mine.uri, other.uri))"
)
# The first by a hash join; the others compare each with each, of folders only.
_SHARED: Final = text(
    f"""
    WITH others AS (
        SELECT uri FROM training_checkpoints WHERE job_id <> :job_id AND deleted_at IS NULL
        UNION SELECT best_checkpoint_path FROM training_jobs WHERE best_checkpoint_path IS NOT NULL
        UNION SELECT last_checkpoint_path FROM training_jobs WHERE last_checkpoint_path IS NOT NULL
    )
    SELECT mine.uri FROM {_MINE} JOIN others AS other ON other.uri = mine.uri
    UNION SELECT mine.uri FROM {_MINE} JOIN others AS other ON {_NESTED}
    UNION SELECT mine.uri FROM {_MINE} JOIN training_jobs AS job ON status IN ('pending', 'running', 'stalled')
        AND (strpos(CAST(params AS text), mine.uri) > 0 OR strpos(CAST(tags AS text), mine.uri) > 0)
    """  # noqa: S608 - our own words
)
