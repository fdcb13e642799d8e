"""Between us and Postgres a PgBouncer that is not set up as we need it, or we not for it: it is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from tests.factories import Sender, drain, logs, rows
from tests.pgbouncer import PgBouncer
from tests.tls_servers import settings_of
from trainwire.gateway.http.problems import _of_postgres
from trainwire.schemas.tables import training_logs
from trainwire.stack.database import open_database
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources

ROUNDS = 10
"""More than the uses after which psycopg prepares a statement."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What ends with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def address(resources: Resources) -> str:
    """The database without a pooler."""
    return resources.settings.database_url.get_secret_value()


def through(pooler: PgBouncer, resources: Resources, stack: ExitStack, **others: Any) -> Resources:
    """Return what another process's tasks have, if they reach Postgres through the pooler."""
    settings = settings_of(resources, database_url=pooler.url, **others)
    engine = open_engine(settings)
    stack.callback(engine.dispose)
    return Resources(settings, engine, resources.redis)


def drain_in_turn(resources: Resources, sender: Sender, *processes: Resources) -> list[str]:
    """Let processes drain what is said, one after the other, time and again; return what is said."""
    said = []
    # Whoever drains a stream first needs a second connection at once: there is only one.
    drain(resources)
    for process in processes:
        for number in range(ROUNDS):
            said.append(f"{id(process)} {number}")
            sender.send(logs(said[-1]))
            drain(process)
    return said


def test_drains_by_transaction_without_the_setting(
    resources: Resources, sender: Sender, address: str, stack: ExitStack, tmp_path: Path
) -> None:
    """A second process meets the statements of the first: its drain is tried later, and says what to set."""
    pooler = stack.enter_context(PgBouncer(tmp_path, address, most=1))
    processes = [through(pooler, resources, stack) for _ in range(2)]
    with pytest.raises(Unavailable, match=r"set DATABASE_PREPARED_STATEMENTS=false here, or pool_mode = session"):
        drain_in_turn(resources, sender, *processes)


def test_drains_by_transaction_with_the_setting(
    resources: Resources, sender: Sender, address: str, stack: ExitStack, tmp_path: Path
) -> None:
    """The same with DATABASE_PREPARED_STATEMENTS=false stores everything."""
    pooler = stack.enter_context(PgBouncer(tmp_path, address, most=1))
    processes = [through(pooler, resources, stack, database_prepared_statements=False) for _ in range(2)]
    said = drain_in_turn(resources, sender, *processes)
    assert rows(resources.engine, training_logs, "content") == said


def test_a_pooler_that_refuses_our_parameters(
    resources: Resources, address: str, stack: ExitStack, tmp_path: Path
) -> None:
    """It has no `ignore_startup_parameters`: workers and commands say what to set there."""
    behind = through(stack.enter_context(PgBouncer(tmp_path, address, settings={})), resources, stack)
    with pytest.raises(Unavailable, match="set ignore_startup_parameters = options in its file"):
        drain(behind)
    refusal = pytest.raises(Problem, match="unsupported startup parameter: options: PgBouncer refuses it")
    with refusal, open_database(behind.settings) as engine:
        engine.connect()


@pytest.mark.parametrize("statement", ["PREPARE a AS SELECT 1; PREPARE a AS SELECT 1", "EXECUTE b"])
def test_a_request_that_meets_the_statements_of_others(engine: Engine, statement: str) -> None:
    """The gateway calls it Postgres' trouble, which passes, and not a fault of its own."""
    with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(text(statement))
    assert _of_postgres(caught.value).status == 503
