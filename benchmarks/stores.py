"""Starts and empties the embedded Postgres and Valkey for the benchmarks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

from trainwire.schemas.migrations import upgrade
from trainwire.schemas.tables import metadata
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.stores.postgres.connections import open_engine, open_redis
from trainwire.workers.resources import Resources
from trainwire.workers.settings import load_settings


@contextmanager
def open_stores() -> Iterator[Resources]:
    """Start both servers as `trainwire up` does, but with Valkey memory for a backlog of millions of lines.

    Trainers of this process, and of those that it starts from then on, have their spools beside the servers.
    """
    with (
        tempfile.TemporaryDirectory(prefix="trainwire-bench-") as folder,
        EmbeddedPostgres(Path(folder), settings={"track_commit_timestamp": "on"}) as postgres,
        EmbeddedValkey(Path(folder), maxmemory="6gb") as valkey,
    ):
        os.environ |= {"TRAINWIRE_SPOOL_DIR": f"{folder}/spool", "XDG_STATE_HOME": f"{folder}/state"}
        settings = load_settings(database_url=postgres.url, redis_url=valkey.url, drain_slice_s=30)
        engine = create_engine(settings.sqlalchemy_url())
        with engine.begin() as connection:
            upgrade(connection)
        engine.dispose()
        resources = Resources(settings, open_engine(settings, name="bench"), open_redis(settings))
        yield resources
        resources.engine.dispose()
        resources.redis.close()


def empty(resources: Resources) -> None:
    """Delete all rows and keys.

    A CHECKPOINT then writes the dirty pages, so that they do not slow the next case.
    """
    resources.redis.flushall()
    with resources.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"TRUNCATE {', '.join(table.name for table in metadata.sorted_tables)}"))
        connection.execute(text("CHECKPOINT"))
