"""Opens the database for the commands, and converts database errors to a `Problem` of one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from trainwire.schemas.migrations import WrongSchemaRevision, check_revision, upgrade
from trainwire.schemas.sinks import SinkEntry
from trainwire.stack.errors import Problem, as_problem
from trainwire.stack.locate import Address
from trainwire.stores.postgres.connections import open_engine, postgres_trouble
from trainwire.stores.settings import WrongSettings, shown_servers
from trainwire.workers.settings import Settings, load_settings

UNUSED_REDIS_URL: Final = "redis://localhost:6379/0"


def settings_for(address: Address, *, with_redis: bool = False) -> Settings:
    """Return the workers' settings from the environment, with the URLs of `address`.

    Raises `Problem` if a setting is invalid, if the URL of Postgres is unknown, or if that of Redis is unknown and
    `with_redis` is True. Otherwise `UNUSED_REDIS_URL` replaces an unknown URL of Redis; commands must not use it.
    """
    # The settings require both servers; a command that only reads Postgres does not need Redis.
    redis_url = address.need_redis_url() if with_redis else address.redis_url or UNUSED_REDIS_URL
    with as_problem(WrongSettings):
        return load_settings(database_url=address.need_database_url(), redis_url=redis_url)


def sinks_for(settings: Settings) -> list[SinkEntry]:
    """Return the enabled sinks; raise `Problem` if a setting of one of them is invalid."""
    from trainwire.workers.sinks.plugin import sinks_on  # noqa: PLC0415 - most commands need no sinks

    with as_problem(WrongSettings):
        return sinks_on(settings)


@contextmanager
def open_database(settings: Settings) -> Iterator[Engine]:
    """Open an engine; database errors become a `Problem` that names the server, without its password."""
    engine = open_engine(settings, name="trainwire-cli")
    try:
        yield engine
    except DBAPIError as exc:
        raise Problem(f"{_server(settings)}: {_sentence(exc)}") from exc
    except SQLAlchemyError as exc:
        raise Problem(f"{_server(settings)}: {type(exc).__name__}: {exc}") from exc
    except WrongSchemaRevision as exc:
        raise Problem(str(exc)) from exc
    finally:
        engine.dispose()


@contextmanager
def reading(address: Address) -> Iterator[Connection]:
    """Open a connection in autocommit mode.

    Raises `Problem` if the database fails, or if this version cannot use its schema (`check_revision`).
    """
    with open_database(settings_for(address)) as engine:
        with engine.connect() as connection:
            check_revision(connection)
        # Autocommit: `logs -f` stays connected for hours and must not hold a snapshot.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection


@contextmanager
def writing(address: Address) -> Iterator[Connection]:
    """Open one transaction, committed at the end of the block.

    Raises `Problem` if the database fails, or if this version cannot use its schema (`check_revision`).
    """
    with open_database(settings_for(address)) as engine, engine.begin() as connection:
        check_revision(connection)
        yield connection


def migrate(address: Address) -> None:
    """Upgrade the database schema to the revision of this version."""
    with open_database(settings_for(address)) as engine, engine.begin() as connection:
        upgrade(connection)


def forget_outages(address: Address) -> None:
    """Delete the recorded outages of disabled sinks, because no delivery will ever end them."""
    on = [sink.name for sink in sinks_for(settings_for(address))]
    with writing(address) as connection:
        connection.execute(text("DELETE FROM sink_states WHERE sink <> ALL(:sinks)"), {"sinks": on})


def _server(settings: Settings) -> str:
    url = settings.sqlalchemy_url()
    return f"Postgres at {shown_servers(url)}, database {url.database!r}, user {url.username!r}"


def _sentence(exc: DBAPIError) -> str:
    # libpq repeats the address, which the message has already; the server's text comes last.
    return postgres_trouble(exc).rpartition("failed: ")[2].removeprefix("FATAL:").strip()
