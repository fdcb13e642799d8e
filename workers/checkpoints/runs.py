"""Lets only one worker at a time process checkpoint files, and translates errors of Postgres and S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, text

from trainwire.stores.files.s3 import S3Unavailable
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.errors import Unavailable


@contextmanager
def exclusive_run(engine: Engine, work: str) -> Iterator[Connection | None]:
    """Take the lease for `work`, one kind of checkpoint processing; yield the connection that has the lease.

    Yields None if another worker has the lease. Raises `Unavailable` if Postgres or the object store does not
    answer.
    """
    # The lease ends with this transaction, or with this process, whichever is first.
    with postgres_errors(), s3_errors(), engine.begin() as connection:
        yield connection if connection.execute(_TRY_LEASE, {"work": work}).scalar_one() else None


@contextmanager
def s3_errors() -> Iterator[None]:
    """Translate `S3Unavailable` in the block to `Unavailable`."""
    try:
        yield
    except S3Unavailable as exc:
        raise Unavailable(str(exc)) from exc


_TRY_LEASE: Final = text("SELECT pg_try_advisory_xact_lock(hashtextextended('checkpoints:' || :work, 0))")
