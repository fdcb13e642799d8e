"""Retention: deletes surplus checkpoints (`trainwire.workers.checkpoints.surplus`) from the object store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Final, Protocol

import structlog
from sqlalchemy import Engine, TextClause, text

from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.stores.files.folders import Reader, WrongManifest, address_of, read_manifest
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, StoreAway
from trainwire.stores.postgres.checkpoints import DIFFERENT
from trainwire.workers.checkpoints import orphans
from trainwire.workers.checkpoints import verification_rows as checkpoints
from trainwire.workers.checkpoints.surplus import (
    RUN_FILES,
    Keeping,
    Rule,
    Surplus,
    begun_files,
    keeping_of,
    plan,
    surplus_files,
)
from trainwire.workers.drain.decoding import visible
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources

log = structlog.get_logger("trainwire.workers.checkpoints.retention")

RUN_S: Final = 20.0
"""One task runs three of these: well within its time limit."""
MAX_REFUSALS: Final = 10
"""A run ends after so many answers 403: the workers' keys may not delete at all."""
DELETES_AT_ONCE: Final = 8
"""Of one folder."""


class Deleter(Reader, Protocol):
    """What a recorded checkpoint is deleted with."""

    def delete(self, uri: S3Uri) -> None:
        """Delete an object; one that is not there is as good as deleted."""


class ObjectStore(Deleter, orphans.ObjectStore, Protocol):
    """What is asked of an object store; its methods raise the errors of `trainwire.stores.files.s3`."""


def retain(resources: Resources, open_store: Callable[[], ObjectStore]) -> None:
    """Apply all rules that the settings switch on. Raises `Unavailable` when a store is away."""
    settings = resources.settings
    if not settings.trainwire_checkpoint_bucket:
        return
    retention = Retention(resources.engine, open_store, keeping_of(settings))
    if settings.checkpoint_remove_superseded != "off":
        retention.run(dry_run=settings.checkpoint_remove_superseded == "dry-run", rule="superseded")
    if settings.checkpoint_retention != "off":
        dry_run = settings.checkpoint_retention == "dry-run"
        retention.run(dry_run=dry_run)
        orphans.OrphanSweep(resources, open_store).run(dry_run=dry_run)


class Retention:
    """Deletes what need not stay, for about twenty seconds; one worker at a time does."""

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

    def run(self, *, dry_run: bool, rule: Rule = "surplus") -> list[Surplus]:
        """Delete, or in a dry run only log, what need not stay by a rule; return it.

        Raises `Unavailable` when the object store or Postgres is away: the next run goes on where this one ended.
        """
        with postgres_errors(), self._engine.begin() as lease:
            if not checkpoints.take_turn(lease, "retention"):
                return []
            # Each statement is its own transaction: whether a file is in use is asked right before it goes.
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                if not dry_run:
                    begun = begun_files(connection, self._keeping)
                    return self._delete_all(chain(begun, surplus_files(connection, self._keeping, rule)))
                planned = plan(connection, self._keeping, rule)
        for surplus in planned:
            log.info("retention.would_delete", **_where(surplus), rule=rule)
        return planned

    def _delete_all(self, files: Iterator[Surplus]) -> list[Surplus]:
        deadline = self._clock() + RUN_S
        deleted: list[Surplus] = []
        refusals = 0
        with _away_is_unavailable():
            while len(deleted) < RUN_FILES and self._clock() < deadline and (surplus := next(files, None)):
                try:
                    if self._delete(_Counting(self._open_store()), surplus):
                        deleted.append(surplus)
                except NotAllowed as exc:
                    log.warning("retention.not_allowed", **_where(surplus), reason=str(exc))
                    refusals += 1
                    if refusals == MAX_REFUSALS:
                        break
        return deleted

    def _delete(self, store: _Counting, surplus: Surplus) -> bool:
        """Delete one checkpoint; False where it has to stay. Raises `NotAllowed`.

        The row is marked before the first object goes: at no moment is a checkpoint listed as verified of which
        some objects are gone.
        """
        where = _where(surplus)
        self._execute(_MARK, where)
        try:
            delete_objects(store, surplus.uri, surplus.sha256)
        except NotAllowed:
            # Only then: a store that did not answer may have deleted the object all the same.
            if not store.deleted:
                self._execute(_UNMARK, where)
            raise
        except WrongManifest as exc:
            # Who knows what it would have us delete: it stays, and is no longer called verified.
            log.warning("retention.refused", **where, reason=str(exc))
            self._execute(_UNMARK, where)
            self._execute(_UNVERIFY, where | {"error": visible(f"{DIFFERENT}: {exc}")})
            return False
        self._execute(_STAMP, where)
        log.info("retention.deleted", **where, rule=surplus.rule)
        return True

    def _execute(self, statement: TextClause, names: Mapping[str, object]) -> None:
        with self._engine.begin() as connection:
            connection.execute(statement, names)


class _Counting:
    """An object store that counts the objects it has deleted."""

    def __init__(self, store: Deleter) -> None:
        self._store = store
        self.deleted = 0

    def read(self, uri: S3Uri) -> Iterator[bytes]:
        """Yield the bytes of an object."""
        return self._store.read(uri)

    def delete(self, uri: S3Uri) -> None:
        """Delete an object."""
        self._store.delete(uri)
        self.deleted += 1


def _where(surplus: Surplus) -> dict[str, object]:
    return {"job_id": surplus.job_id, "seq": surplus.seq, "uri": surplus.uri}


def delete_objects(store: Deleter, address: str, sha256: str | None) -> None:
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


@contextmanager
def _away_is_unavailable() -> Iterator[None]:
    try:
        yield
    except StoreAway as exc:
        raise Unavailable(str(exc)) from exc


_ROWS: Final = "WHERE job_id = :job_id AND uri = :uri AND seq <= :seq AND deleted_at IS NULL"
_MARK: Final = text(f"UPDATE training_checkpoints SET deletion_began_at = now() {_ROWS}")  # noqa: S608 - our words
_UNMARK: Final = text(f"UPDATE training_checkpoints SET deletion_began_at = NULL {_ROWS}")  # noqa: S608 - our words
_STAMP: Final = text(f"UPDATE training_checkpoints SET deleted_at = now() {_ROWS}")  # noqa: S608 - our words
_UNVERIFY: Final = text(
    "UPDATE training_checkpoints SET verified_at = NULL, verify_after = NULL, verify_error = :error "
    "WHERE job_id = :job_id AND seq = :seq"
)
