"""Retention: of each finished job the last checkpoints and the best stay, older ones are deleted from the store.

Whoever can send a message can name any URI. So only what lies under `{prefix}/{job_id}/` of our own bucket is
ever deleted, by rows of that job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

import structlog
from sqlalchemy import Connection, Engine, text

from schemas.checkpoint_keys import SCHEME, S3Uri
from stores.checkpoints import DIFFERENT
from stores.folders import Reader, WrongManifest, address_of, read_manifest
from stores.s3 import NoSuchObject, NotAllowed, StoreAway
from workers import checkpoints
from workers.decoding import visible
from workers.errors import Unavailable
from workers.settings import Settings
from workers.store import postgres_errors

log = structlog.get_logger("workers.retention")

RUN_FILES: Final = 200
"""Most checkpoints that one run deletes, or in a dry run names."""
PAGE_FILES: Final = 500
RUN_S: Final = 30.0
DELETES_AT_ONCE: Final = 8
"""Of one folder."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How many checkpoints of a job stay besides its best, and the only place where others are deleted."""

    last: int
    bucket: str
    prefix: str

    @property
    def root(self) -> str:
        """What the URI of everything that may be deleted begins with, before the job's number."""
        prefix = self.prefix.strip("/")
        return f"{SCHEME}{self.bucket}/{prefix}/" if prefix else f"{SCHEME}{self.bucket}/"


def keeping_of(settings: Settings) -> Keeping:
    """Return what the settings say; raise `ValueError` where they do not name the bucket."""
    if not settings.trainwire_checkpoint_bucket:
        raise ValueError("TRAINWIRE_CHECKPOINT_BUCKET is not set: name the bucket that trainers upload to")
    return Keeping(
        settings.checkpoint_keep_last, settings.trainwire_checkpoint_bucket, settings.trainwire_checkpoint_prefix
    )


@dataclass(frozen=True, slots=True)
class Surplus:
    """A checkpoint that need not stay."""

    job_id: int
    seq: int
    kind: str
    uri: str
    size_bytes: int | None
    sha256: str | None


class ObjectStore(Reader, Protocol):
    """What is asked of an object store; its methods raise the errors of `stores.s3`."""

    def delete(self, uri: S3Uri) -> None:
        """Delete an object; one that is not there is as good as deleted."""


def surplus_files(connection: Connection, keeping: Keeping) -> Iterator[Surplus]:
    """Yield what need not stay and nobody uses now, the oldest jobs first."""
    names = {"keep": keeping.last, "root": keeping.root, "limit": PAGE_FILES, "job_id": 0, "seq": 0}
    while page := [Surplus(*row) for row in connection.execute(_SURPLUS, names)]:
        for surplus in page:
            if _is_free(connection, surplus):
                yield surplus
            names |= {"job_id": surplus.job_id, "seq": surplus.seq}


def plan(connection: Connection, keeping: Keeping) -> list[Surplus]:
    """Return what the next run deletes."""
    return list(islice(surplus_files(connection, keeping), RUN_FILES))


class Retention:
    """Deletes what need not stay, for about half a minute; one worker at a time does."""

    def __init__(
        self,
        engine: Engine,
        open_store: Callable[[], ObjectStore],
        keeping: Keeping,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._open_store = open_store
        self._keeping = keeping
        self._clock = clock

    def run(self, *, dry_run: bool) -> list[Surplus]:
        """Delete, or in a dry run only log, what need not stay; return it.

        Raises `Unavailable` when the object store or Postgres is away: the next run goes on where this one ended.
        """
        with postgres_errors(), self._engine.begin() as lease:
            if not checkpoints.take_turn(lease, "retention"):
                return []
            # Each statement is its own transaction: whether a file is in use is asked right before it goes.
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                if not dry_run:
                    return self._delete_all(surplus_files(connection, self._keeping))
                planned = plan(connection, self._keeping)
        for surplus in planned:
            log.info("retention.would_delete", job_id=surplus.job_id, seq=surplus.seq, uri=surplus.uri)
        return planned

    def _delete_all(self, files: Iterator[Surplus]) -> list[Surplus]:
        deadline = self._clock() + RUN_S
        deleted: list[Surplus] = []
        with _away_is_unavailable():
            while len(deleted) < RUN_FILES and self._clock() < deadline and (surplus := next(files, None)):
                if self._delete(self._open_store(), surplus):
                    deleted.append(surplus)
        return deleted

    def _delete(self, store: ObjectStore, surplus: Surplus) -> bool:
        """Delete one checkpoint and stamp it; False where it has to stay."""
        where = {"job_id": surplus.job_id, "seq": surplus.seq, "uri": surplus.uri}
        try:
            delete_objects(store, surplus.uri, surplus.sha256)
        except NotAllowed as exc:
            log.warning("retention.not_allowed", **where, reason=str(exc))
            return False
        except WrongManifest as exc:
            # Who knows what it would have us delete: it stays, and is no longer called verified.
            log.warning("retention.refused", **where, reason=str(exc))
            with self._engine.begin() as connection:
                connection.execute(_UNVERIFY, where | {"error": visible(f"{DIFFERENT}: {exc}")})
            return False
        with self._engine.begin() as connection:
            connection.execute(_STAMP, where)
        log.info("retention.deleted", **where)
        return True


def delete_objects(store: ObjectStore, address: str, sha256: str | None) -> None:
    """Delete a file, or a folder with its manifest last: while there is one, a later run knows what is left."""
    uri = S3Uri.parse(address)
    if not uri.is_folder:
        store.delete(uri)
        return
    try:
        shards = read_manifest(store, uri, sha256)
    except NoSuchObject:
        return  # a run before us came so far, and no further
    with ThreadPoolExecutor(DELETES_AT_ONCE) as pool:
        for _ in pool.map(lambda shard: store.delete(address_of(uri, shard)), shards):
            pass
    store.delete(uri.manifest)


def _is_free(connection: Connection, surplus: Surplus) -> bool:
    """Tell whether no job that is at work, and no best or last path of any job, names it or what lies in it."""
    names = {"job_id": surplus.job_id, "seq": surplus.seq, "uri": surplus.uri}
    return not connection.execute(_IN_USE, names).scalar_one()


@contextmanager
def _away_is_unavailable() -> Iterator[None]:
    try:
        yield
    except StoreAway as exc:
        raise Unavailable(str(exc)) from exc


def _is_in(column: str) -> str:
    """Return SQL that tells whether a URI is `:uri`, or lies in that folder."""
    return f"({column} = :uri OR right(:uri, 1) = '/' AND starts_with({column}, :uri))"


def _holds(column: str) -> str:
    """Return SQL that tells whether a URI is a folder in which `:uri` lies."""
    return f"(right({column}, 1) = '/' AND {column} <> :uri AND starts_with(:uri, {column}))"


_AT_WORK: Final = "status IN ('pending', 'running', 'stalled')"

_SURPLUS: Final = text(
    f"""
    WITH present AS (
        SELECT *, lead(seq) OVER (PARTITION BY job_id, uri ORDER BY seq) AS overwritten_by
        FROM training_checkpoints WHERE deleted_at IS NULL AND starts_with(uri, 's3://')
    ), ranked AS (
        SELECT *, row_number() OVER newest_first AS place,
            is_best AND row_number() OVER (PARTITION BY job_id, is_best ORDER BY attempt DESC, logged_at DESC,
            seq DESC) = 1 AS is_the_best
        FROM present WHERE overwritten_by IS NULL AND verified_at IS NOT NULL
        WINDOW newest_first AS (PARTITION BY job_id ORDER BY attempt DESC, logged_at DESC, seq DESC)
    ), below AS (
        SELECT *, substr(uri, length(:root || job_id || '/') + 1) AS path
        FROM ranked WHERE starts_with(uri, :root || job_id || '/')
    )
    SELECT job_id, seq, kind, uri, size_bytes, sha256 FROM below JOIN training_jobs AS job ON job.id = job_id
    WHERE (job_id, seq) > (:job_id, :seq) AND place > :keep AND NOT is_the_best AND NOT job.{_AT_WORK}
        -- A trainer that was only cut off from Redis is lost too, and needs its checkpoints when it is back.
        AND coalesce(job.quiet_since < now() - interval '1 day', true)
        AND uri IS DISTINCT FROM job.best_checkpoint_path AND uri IS DISTINCT FROM job.last_checkpoint_path
        -- Empty and dotted parts: a server or a proxy that tidies paths would be led to another job's folder.
        AND regexp_replace(path, '/$', '') !~ '(^|/)[.]{{0,2}}(/|$)'
    ORDER BY job_id, seq LIMIT :limit
    """  # noqa: S608 - our own words
)
_IN_USE: Final = text(
    f"""
    SELECT EXISTS (
        SELECT FROM training_jobs WHERE {_is_in("best_checkpoint_path")} OR {_is_in("last_checkpoint_path")}
            -- Only the job's own folders: another's may be, by mistake, the whole bucket.
            OR (id = :job_id AND ({_holds("best_checkpoint_path")} OR {_holds("last_checkpoint_path")}))
            OR ({_AT_WORK} AND (id = :job_id OR strpos(CAST(params AS text), :uri) > 0
                OR strpos(CAST(tags AS text), :uri) > 0))
    ) OR EXISTS (
        SELECT FROM training_checkpoints AS other
        WHERE other.job_id = :job_id AND deleted_at IS NULL AND (other.uri = :uri AND other.seq > :seq
            OR other.uri <> :uri AND {_is_in("other.uri")}
            OR verified_at IS NOT NULL AND sha256 IS NOT NULL AND {_holds("other.uri")})
    ) OR EXISTS (
        SELECT FROM training_checkpoints AS other JOIN training_jobs AS job ON job.id = other.job_id
        WHERE job.{_AT_WORK} AND {_is_in("other.uri")}
    )
    """  # noqa: S608 - our own words
)
_STAMP: Final = text(
    "UPDATE training_checkpoints SET deleted_at = now() "
    "WHERE job_id = :job_id AND uri = :uri AND seq <= :seq AND deleted_at IS NULL"
)
_UNVERIFY: Final = text(
    "UPDATE training_checkpoints SET verified_at = NULL, verify_after = NULL, verify_error = :error "
    "WHERE job_id = :job_id AND seq = :seq"
)
