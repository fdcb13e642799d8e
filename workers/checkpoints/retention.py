"""Deletes checkpoints from the object store that are not retained (`trainwire.workers.checkpoints.surplus`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Final

import structlog
from sqlalchemy import Engine, TextClause, text

from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.stores.files.folders import WrongManifest, address_of, read_manifest
from trainwire.stores.files.s3 import NoSuchObject, NotAllowed, S3Store
from trainwire.stores.postgres.checkpoints import DIFFERENT
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.workers.checkpoints import orphans
from trainwire.workers.checkpoints.runs import exclusive_run
from trainwire.workers.checkpoints.surplus import (
    RUN_FILES,
    RetentionPolicy,
    Rule,
    Surplus,
    begun_files,
    plan,
    retention_policy,
    surplus_files,
)
from trainwire.workers.resources import Resources

log = structlog.get_logger("trainwire.workers.checkpoints.retention")

RUN_S: Final = 20.0
"""Seconds after which a run deletes no further checkpoint. A task has up to three runs, within its time limit."""
MAX_REFUSALS: Final = 10
"""Number of responses 403 after which a run ends: the workers' keys probably do not allow any deletion."""
DELETES_AT_ONCE: Final = 8
"""Number of files of one folder that are deleted concurrently."""


def retain(resources: Resources, open_store: Callable[[], S3Store]) -> None:
    """Delete checkpoints and orphans by all retention rules that the settings switch on.

    Does nothing if no bucket is set. Raises `Unavailable` if the object store or Postgres does not answer.
    """
    settings = resources.settings
    if not settings.trainwire_checkpoint_bucket:
        return
    retention = Retention(resources.engine, open_store, retention_policy(settings))
    if settings.checkpoint_remove_superseded != "off":
        retention.run(dry_run=settings.checkpoint_remove_superseded == "dry-run", rule="superseded")
    if settings.checkpoint_retention != "off":
        dry_run = settings.checkpoint_retention == "dry-run"
        retention.run(dry_run=dry_run)
        orphans.OrphanSweep(resources, open_store).run(dry_run=dry_run)


class Retention:
    """Deletes checkpoints that a rule does not retain; only one worker at a time does this."""

    def __init__(
        self,
        engine: Engine,
        open_store: Callable[[], S3Store],
        policy: RetentionPolicy,
    ) -> None:
        self._engine = engine
        self._open_store = open_store
        self._policy = policy

    def run(self, *, dry_run: bool, rule: Rule = "surplus") -> list[Surplus]:
        """Delete up to `RUN_FILES` checkpoints that `rule` selects, or in a dry run only log them; return them.

        Deletions that were interrupted are completed first. Ends after about `RUN_S` seconds, or at once, with an
        empty list, if another worker does this. Raises `Unavailable` if the object store or Postgres does not
        answer; the next run continues.
        """
        with exclusive_run(self._engine, "retention") as lease:
            if lease is None:
                return []
            # Each statement is its own transaction: the check for use before each deletion reads current rows.
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                if not dry_run:
                    begun = begun_files(connection, self._policy)
                    return self._delete_all(chain(begun, surplus_files(connection, self._policy, rule)))
                planned = plan(connection, self._policy, rule)
        for surplus in planned:
            log.info("retention.would_delete", **_where(surplus), rule=rule)
        return planned

    def _delete_all(self, files: Iterator[Surplus]) -> list[Surplus]:
        deadline = time.monotonic() + RUN_S
        deleted: list[Surplus] = []
        refusals = 0
        while len(deleted) < RUN_FILES and time.monotonic() < deadline and (surplus := next(files, None)):
            try:
                if self._delete(self._open_store(), surplus):
                    deleted.append(surplus)
            except NotAllowed as exc:
                log.warning("retention.not_allowed", **_where(surplus), reason=str(exc))
                refusals += 1
                if refusals == MAX_REFUSALS:
                    break
        return deleted

    def _delete(self, store: S3Store, surplus: Surplus) -> bool:
        """Delete one checkpoint; return False if it must not be deleted because its manifest is wrong.

        Its row is marked before the first object is deleted, so that an incomplete checkpoint is never listed as
        verified. Raises `NotAllowed` if the workers' keys do not allow the deletion, and `S3Unavailable`.
        """
        where = _where(surplus)
        self._execute(_MARK, where)
        deleted: list[S3Uri] = []
        try:
            delete_objects(store, surplus.uri, surplus.sha256, deleted)
        except NotAllowed:
            # Not after other errors: a store that did not answer may have deleted the object.
            if not deleted:
                self._execute(_UNMARK, where)
            raise
        except WrongManifest as exc:
            # The manifest may list files of others: nothing is deleted, and the checkpoint counts as different.
            log.warning("retention.refused", **where, reason=str(exc))
            self._execute(_UNMARK, where)
            self._execute(_UNVERIFY, where | {"error": storable_text(f"{DIFFERENT}: {exc}")})
            return False
        self._execute(_STAMP, where)
        log.info("retention.deleted", **where, rule=surplus.rule)
        return True

    def _execute(self, statement: TextClause, names: Mapping[str, object]) -> None:
        with self._engine.begin() as connection:
            connection.execute(statement, names)


def _where(surplus: Surplus) -> dict[str, object]:
    return {"job_id": surplus.job_id, "seq": surplus.seq, "uri": surplus.uri}


def delete_objects(store: S3Store, address: str, sha256: str | None, deleted: list[S3Uri]) -> None:
    """Delete the object at `address`, or all objects of a folder; append each deleted URI to `deleted`.

    The manifest of a folder is deleted last, so that a later run can delete the rest after an interruption. A
    folder without a manifest counts as deleted. Raises the errors of the store, and `WrongManifest` if the
    manifest is not valid or does not have the checksum `sha256`.
    """

    def delete(uri: S3Uri) -> None:
        store.delete(uri)
        deleted.append(uri)

    uri = S3Uri.parse(address)
    if not uri.is_folder:
        delete(uri)
        return
    try:
        shards = read_manifest(store, uri, sha256)
    except NoSuchObject:
        return  # an earlier run has deleted all files
    with ThreadPoolExecutor(DELETES_AT_ONCE) as pool:
        for _ in pool.map(lambda shard: delete(address_of(uri, shard)), shards):
            pass
    delete(uri.manifest)


_ROWS: Final = "WHERE job_id = :job_id AND uri = :uri AND seq <= :seq AND deleted_at IS NULL"
_MARK: Final = text(f"UPDATE training_checkpoints SET deletion_began_at = now() {_ROWS}")  # noqa: S608 - our words
_UNMARK: Final = text(f"UPDATE training_checkpoints SET deletion_began_at = NULL {_ROWS}")  # noqa: S608 - our words
_STAMP: Final = text(f"UPDATE training_checkpoints SET deleted_at = now() {_ROWS}")  # noqa: S608 - our words
_UNVERIFY: Final = text(
    "UPDATE training_checkpoints SET verified_at = NULL, verify_after = NULL, verify_error = :error "
    "WHERE job_id = :job_id AND seq = :seq"
)
