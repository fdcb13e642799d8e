"""Migrations: from nothing to the tables that the code describes, and the sentences when they do not fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, make_url, text

from schemas.migrations import WrongSchemaRevision, check_revision, current_revision, head_revision, upgrade
from schemas.tables import metadata


@pytest.fixture
def empty(database_url: str) -> Iterator[Engine]:
    """An empty database beside the others."""
    url = make_url(database_url).set(drivername="postgresql+psycopg")
    server = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    name = f"{url.database}_empty"
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = sqlalchemy.create_engine(url.set(database=name))
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))
    server.dispose()


def test_an_empty_database_gets_the_tables_of_the_code(empty: Engine) -> None:
    """After the migrations nothing differs from schemas/tables.py, and a second run changes nothing."""
    for _ in range(2):
        with empty.begin() as connection:
            upgrade(connection)
    with empty.connect() as connection:
        check_revision(connection)
        assert current_revision(connection) == head_revision()
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_a_database_without_tables_is_told_what_to_run(empty: Engine) -> None:
    """Workers on an empty database refuse with the command to run."""
    with (
        empty.connect() as connection,
        pytest.raises(WrongSchemaRevision, match=r"has no trainwire tables, .* run `trainwire migrate`"),
    ):
        check_revision(connection)


def test_a_database_from_the_future_is_left_alone(empty: Engine) -> None:
    """A revision that this version does not know is named, and not migrated."""
    with empty.begin() as connection:
        upgrade(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with empty.connect() as connection:
        with pytest.raises(WrongSchemaRevision, match="at schema revision '9999'"):
            check_revision(connection)
        with pytest.raises(WrongSchemaRevision, match="'9999', which this trainwire does not know"):
            upgrade(connection)
