"""Connection and schema errors of commands are one sentence."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, make_url, text

from tests.integration.cli.conftest import Trainwire


def test_a_wrong_password_names_the_server_not_the_password(
    connected: Trainwire, alone: pytest.MonkeyPatch, database_url: str
) -> None:
    """The error has host, port, user and the server's message, without a traceback."""
    url = make_url(database_url)
    wrong = url.set(password="s3cret-guess").render_as_string(hide_password=False)
    alone.setenv("DATABASE_URL", wrong)
    shown = connected("jobs")
    assert shown.code == 1
    assert shown.err == (
        f"trainwire: Postgres at {url.host}:{url.port}, database {url.database!r}, user {url.username!r}: "
        f'password authentication failed for user "{url.username}": correct user and password in DATABASE_URL\n'
    )


def test_a_server_that_is_switched_off_is_named(connected: Trainwire, alone: pytest.MonkeyPatch) -> None:
    """A server that does not listen is one error with the address."""
    alone.setenv("DATABASE_URL", "postgresql://me:hush@127.0.0.1:1/db")
    shown = connected("status", "1")
    assert shown.code == 1
    assert shown.err.startswith("trainwire: Postgres at 127.0.0.1:1, database 'db', user 'me': ")
    assert "refused" in shown.err
    assert "hush" not in shown.err
    assert shown.err.count("\n") == 1


def test_a_wrong_url_is_named(connected: Trainwire, alone: pytest.MonkeyPatch) -> None:
    """A URL of another kind of database is refused with the name of the variable."""
    alone.setenv("DATABASE_URL", "mysql://me:hush@127.0.0.1/db")
    shown = connected("jobs")
    assert (shown.code, shown.out) == (1, "")
    assert "DATABASE_URL" in shown.err
    assert "hush" not in shown.err


def test_an_unknown_schema_revision_names_the_command(connected: Trainwire, engine: Engine) -> None:
    """A newer schema with all needed columns is read; for an older one the error names `migrate`."""
    at = text("UPDATE alembic_version SET version_num = :revision")
    with engine.begin() as connection:
        before = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(at, {"revision": "9999"})
    try:
        newer, migrated = connected("jobs"), connected("migrate")
        with engine.begin() as connection:
            connection.execute(at, {"revision": "0001"})
        older = connected("jobs")
    finally:
        with engine.begin() as connection:
            connection.execute(at, {"revision": before})
    assert newer.code == 0
    assert migrated.code == older.code == 1
    assert "install the newer trainwire" in migrated.err
    assert "run `trainwire migrate`" in older.err
    assert connected("migrate").out.startswith("the database is at schema revision")


def test_without_a_stack_every_command_names_the_remedy(trainwire: Trainwire) -> None:
    """Without known servers the error names `trainwire up`."""
    for command in (["jobs"], ["status", "1"], ["env"], ["migrate"], ["dead-letters", "list"]):
        shown = trainwire(*command)
        assert shown.code == 1
        assert shown.err.startswith("trainwire: no trainwire is running: start `trainwire up`")


def test_env_is_for_the_shell(connected: Trainwire, alone: pytest.MonkeyPatch, database_url: str) -> None:
    """`env` prints exports for a shell, with Loki's address if the environment has one."""
    shown = connected("env").out
    assert "LOKI" not in shown
    alone.setenv("LOKI_URL", "http://loki:3100")
    assert "export LOKI_URL=http://loki:3100\n" in connected("env").out
    assert f"export DATABASE_URL={database_url}\n" in shown
    assert "export REDIS_URL=" in shown
