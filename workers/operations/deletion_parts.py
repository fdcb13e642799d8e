"""Deletes the Redis keys and the checkpoint files of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from trainwire.schemas.checkpoint_keys import SCHEME, S3Uri
from trainwire.schemas.keys import JOB_DELETED_FIELD, acks_key, alive_key, keys_of_job, shard_of
from trainwire.stores.files.folders import WrongManifest
from trainwire.stores.files.presign_policy import lies_in, served_prefixes
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, S3Store
from trainwire.stores.postgres.deletion import Deletion, DeletionPart, publish_deletion
from trainwire.workers.checkpoints.retention import delete_objects
from trainwire.workers.drain.stream import ACKS_TTL_S, redis_errors
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.plugin import Outcome

PAGE_FILES: Final = 100
_SCANNED_AT_ONCE: Final = 1000


def delete_keys(resources: Resources, deletion: Deletion) -> DeletionPart:
    """Delete the job's Redis keys and heartbeats, and publish that it was deleted.

    Entries in the streams remain until a drain discards them. Raises `Unavailable` if Redis does not answer.
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
        # Running trainers read this field, and stop sending.
        client.hset(acks, JOB_DELETED_FIELD, 1)
        client.expire(acks, ACKS_TTL_S)
        publish_deletion(resources.redis, deletion)
    return DeletionPart(state="done", deleted=deleted)


@dataclass(frozen=True, slots=True)
class JobFile:
    """A checkpoint file of a job that is being deleted.

    Several rows may have the same URI: `sha256` and `is_deleted` (whether the file was deleted earlier) are
    those of the newest.
    """

    uri: str
    sha256: str | None
    is_deleted: bool


class JobFiles:
    """Reads and deletes the checkpoint files, and their rows, of one job that is being deleted."""

    def __init__(self, settings: Settings, job_id: int, open_store: Callable[[], S3Store]) -> None:
        self._job_id = job_id
        self._places = served_prefixes(settings)
        self._bucket = settings.trainwire_checkpoint_bucket
        self._open_store = open_store
        prefix = settings.trainwire_checkpoint_prefix.strip("/")
        self._root = f"{SCHEME}{self._bucket}/{prefix}/" if prefix else f"{SCHEME}{self._bucket}/"

    @property
    def folder(self) -> S3Uri | None:
        """The folder to which trainers upload files of the job; None if no bucket is set."""
        return S3Uri.parse(f"{self._root}{self._job_id}/") if self._bucket else None

    def page(self, connection: Connection, after: str) -> list[JobFile]:
        """Return the first `PAGE_FILES` files, or fewer, whose URIs are after `after`, sorted by URI.

        Returns an empty list if there are none.
        """
        names = {"job_id": self._job_id, "after": after, "limit": PAGE_FILES}
        return [JobFile(*row) for row in connection.execute(_FILES, names)]

    def delete(self, file: JobFile, *, is_shared: bool) -> Outcome:
        """Delete a file unless it has to stay; the note in the result is the reason why it stays.

        `is_shared` is True if another job refers to the file: then it stays. Raises `S3Unavailable` if the object
        store does not answer.
        """
        if file.is_deleted:
            return Outcome()
        if reason := self._reason_to_keep(file.uri, is_shared=is_shared):
            return Outcome(note=f"{file.uri} {reason}: it stays")
        uri = S3Uri.parse(file.uri)
        if not lies_in(uri, self._places):
            remedy = f"name it in CHECKPOINT_LEND_ALSO={SCHEME}{uri.bucket}/ if it is to be deleted"
            return Outcome(is_left=True, note=f"{uri} lies where trainwire touches nothing: {remedy}")
        try:
            delete_objects(self._open_store(), file.uri, file.sha256, [])
        except NoSuchObject:
            return Outcome()
        except (NotAllowed, WrongManifest) as exc:
            return Outcome(is_left=True, note=str(exc))
        return Outcome(is_deleted=True)

    def forget(self, connection: Connection, file: JobFile) -> int:
        """Delete the rows of a file in Postgres; return their number."""
        return connection.execute(_FORGET, {"job_id": self._job_id, "uri": file.uri}).rowcount

    def _reason_to_keep(self, uri: str, *, is_shared: bool) -> str | None:
        if not uri.startswith(SCHEME):
            return "is on the trainer's machine"
        if is_shared:
            return "is a checkpoint of another job too"
        try:
            S3Uri.parse(uri)
        except ValueError as exc:
            return f"is no address of a file ({exc})"
        # The upload folder of another job.
        folder = uri.removeprefix(self._root).partition("/")[0] if uri.startswith(self._root) else ""
        is_of_another = folder.isdecimal() and folder != str(self._job_id)
        return "lies in the folder of another job" if is_of_another else None


_FILES: Final = text(
    "SELECT DISTINCT ON (uri) uri, sha256, deleted_at IS NOT NULL FROM training_checkpoints "
    "WHERE job_id = :job_id AND uri > :after ORDER BY uri, seq DESC LIMIT :limit"
)
_FORGET: Final = text("DELETE FROM training_checkpoints WHERE job_id = :job_id AND uri = :uri")
