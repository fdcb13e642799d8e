"""A Postgres that is read-only, ends sessions or has no space is unavailable; later the work succeeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import Connection, Engine, text

from tests.factories import Sender, drain, logs, rows
from tests.processes import wait_until, workers_running
from trainwire.schemas.keys import stream_key
from trainwire.schemas.tables import training_jobs, training_logs
from trainwire.schemas.tables.kinds import ROW_KINDS
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.drain import store
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings

JOB_IDS: Final = replace(ROW_KINDS["logs"], table=training_jobs, columns=("id",))
WRITE: Final = "UPDATE training_jobs SET name = name"


@pytest.fixture
def pooled(settings: Settings, engine: Engine) -> Iterator[Engine]:
    """An engine of this test alone, with two sessions in its pool."""
    assert engine
    pooled = open_engine(settings, name="pooled")
    with pooled.connect(), pooled.connect():
        pass
    yield pooled
    pooled.dispose()


def pids(pooled: Engine) -> set[int]:
    """Return the server processes of two sessions of the pool."""
    with pooled.connect() as one, pooled.connect() as other:
        return {each.execute(text("SELECT pg_backend_pid()")).scalar_one() for each in (one, other)}


def _read_only(connection: Connection) -> None:
    connection.execute(text("SET TRANSACTION READ ONLY"))
    connection.execute(text(WRITE))


def _copied_read_only(connection: Connection) -> None:
    connection.execute(text("SET TRANSACTION READ ONLY"))
    with store.copying(connection, JOB_IDS) as write_row:
        write_row((1,))


def _idle_in_transaction(connection: Connection) -> None:
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
    time.sleep(0.3)
    connection.execute(text(WRITE))


def _terminated(connection: Connection) -> None:
    connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def _terminated_copy(connection: Connection) -> None:
    with store.copying(connection, JOB_IDS) as write_row:
        pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        with connection.engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        for number in range(1, 100_000):
            write_row((number,))


def _raised(state: str) -> Callable[[Connection], None]:
    def fail(connection: Connection) -> None:
        connection.execute(text(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$"))

    return fail


def _slow(connection: Connection) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 50"))
    connection.execute(text("SELECT pg_sleep(5)"))


def _without_room(connection: Connection) -> None:
    connection.execute(text("SET LOCAL temp_file_limit = 64"))
    connection.execute(text("SET LOCAL work_mem = 64"))
    connection.execute(
        text("SELECT count(*) FROM (SELECT md5(n::text) FROM generate_series(1, 200000) AS n ORDER BY 1)")
    )


ENDS: Final[dict[str, Callable[[Connection], None]]] = {
    "read-only": _read_only,
    "read-only in a COPY": _copied_read_only,
    "idle in its transaction for too long": _idle_in_transaction,
    "terminated": _terminated,
    "terminated in a COPY": _terminated_copy,
    "transaction_timeout": _raised("25P04"),
    "shutdown": _raised("57P01"),
    "crash of another session": _raised("57P02"),
    "starting up": _raised("57P03"),
    "idle_session_timeout": _raised("57P05"),
    "connection failure": _raised("08006"),
}
STAYS: Final[dict[str, Callable[[Connection], None]]] = {
    "statement timeout": _slow,
    "no room for a temporary file": _without_room,
    "disk full": _raised("53100"),
    "out of memory": _raised("53200"),
    "too many connections": _raised("53300"),
    "deadlock": _raised("40P01"),
    "lock timeout": _raised("55P03"),
    "input or output error": _raised("58030"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_useless_session_is_dropped_with_those_of_its_age(pooled: Engine, name: str) -> None:
    """The error is `Unavailable`, and later transactions have new sessions that accept writes."""
    before = pids(pooled)
    with pytest.raises(Unavailable), store.postgres_errors(), pooled.begin() as connection:
        ENDS[name](connection)
    if not name.endswith("COPY"):
        assert not before & pids(pooled)
    for _ in range(2):
        with pooled.begin() as one, pooled.begin() as other:
            assert one.execute(text(WRITE)).rowcount == other.execute(text(WRITE)).rowcount == 0


@pytest.mark.parametrize("name", STAYS)
def test_trouble_that_passes_is_unavailable(pooled: Engine, name: str) -> None:
    """The error is `Unavailable`, and the session is used again."""
    before = pids(pooled)
    with pytest.raises(Unavailable), store.postgres_errors(), pooled.begin() as connection:
        STAYS[name](connection)
    assert pids(pooled) == before


def read_only(settings: Settings, mode: str) -> None:
    """Switch default_transaction_read_only of the database `on` or `off`, and end all sessions."""
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        database = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = {mode}')
        if mode == "on":
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


def test_workers_outlast_a_read_only_server(resources: Resources, sender: Sender, tmp_path: Path) -> None:
    """Sessions that were opened while the server was read-only do not stay, and no traceback is logged."""
    settings = resources.settings
    with workers_running(settings, tmp_path) as (worker,):
        sender.send(logs("before"))
        wait_until(lambda: rows(resources.engine, training_logs, "content") == ["before"], "the first line")
        read_only(settings, "on")
        try:
            sender.send(logs("meanwhile"))
            wait_until(lambda: worker.output.count("drain.unavailable") > 2, "the drain's failures")
            assert "read-only" in worker.output
        finally:
            read_only(settings, "off")
        resources.engine.dispose()
        wait_until(lambda: len(rows(resources.engine, training_logs, "content")) == 2, "the line of meanwhile")
        failed = worker.output.count("drain.unavailable")
        for _ in range(10):
            sender.send(logs("more"))
            wait_until(lambda: not resources.redis.xlen(stream_key("logs", 1)), "more")
        # Each pool process may have one session of before that it has not used yet.
        assert worker.output.count("drain.unavailable") - failed <= 3
        for _ in range(5):
            with resources.engine.connect() as connection:
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            sender.send(logs("after"))
            time.sleep(0.2)
        wait_until(lambda: len(rows(resources.engine, training_logs, "content")) == 17, "the lines of after")
        assert "Traceback" not in worker.output


def test_a_read_only_server_stores_nothing_and_loses_nothing(resources: Resources, sender: Sender) -> None:
    """A drain in such a session raises `Unavailable` that names the remedy; the next one stores the line."""
    sender.send(logs("line"))
    read_only(resources.settings, "on")
    try:
        resources.engine.dispose()
        with pytest.raises(Unavailable, match="point DATABASE_URL to the primary"):
            drain(resources)
    finally:
        read_only(resources.settings, "off")
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["line"]
