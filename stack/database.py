"""The connection that the commands read through, with its failures said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from trainwire.schemas.migrations import WrongSchemaRevision, check_revision, upgrade
from trainwire.schemas.sinks import SinkEntry
from trainwire.stack.errors import Problem
from trainwire.stack.locate import Address
from trainwire.stores.postgres.connections import open_engine, postgres_trouble
from trainwire.stores.settings import WrongSettings, shown_servers
from trainwire.workers.settings import Settings, load_settings
from trainwire.workers.sinks.plugin import sinks_on

UNUSED_REDIS_URL: Final = "redis://localhost:6379/0"


def settings_for(address: Address, *, with_redis: bool = False) -> Settings:
    """Return the workers' settings for these servers; raise `Problem` where a URL is missing or wrong."""
    # The settings ask for both servers; a command that only reads Postgres need not know the other.
    redis_url = address.need_redis_url() if with_redis else address.redis_url or UNUSED_REDIS_URL
    try:
        return load_settings(database_url=address.need_database_url(), redis_url=redis_url)
    except WrongSettings as exc:
        raise Problem(str(exc)) from exc


def sinks_for(settings: Settings) -> list[SinkEntry]:
    """Return the sinks that are switched on; raise `Problem` where a setting of one of them is wrong."""
    try:
        return sinks_on(settings)
    except WrongSettings as exc:
        raise Problem(str(exc)) from exc


@contextmanager
def open_database(settings: Settings) -> Iterator[Engine]:
    """Give an engine; what the database refuses becomes a `Problem` that names the server, not the password."""
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
    """Give a connection to a database of our schema revision, each statement its own transaction."""
    with open_database(settings_for(address)) as engine:
        with engine.connect() as connection:
            check_revision(connection)
        # Autocommit: `logs -f` stays connected for hours and must not hold a snapshot for so long.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection


@contextmanager
def writing(address: Address) -> Iterator[Connection]:
    """Give one transaction on a database of our schema revision."""
    with open_database(settings_for(address)) as engine, engine.begin() as connection:
        check_revision(connection)
        yield connection


def migrate(address: Address) -> None:
    """Bring the database to the schema revision of this version."""
    with open_database(settings_for(address)) as engine, engine.begin() as connection:
        upgrade(connection)


def forget_outages(address: Address) -> None:
    """Remove the outages of sinks that are switched off: nobody finds out when they answer again."""
    on = [sink.name for sink in sinks_for(settings_for(address))]
    with writing(address) as connection:
        connection.execute(text("DELETE FROM sink_states WHERE sink <> ALL(:sinks)"), {"sinks": on})


def _server(settings: Settings) -> str:
    url = settings.sqlalchemy_url()
    return f"Postgres at {shown_servers(url)}, database {url.database!r}, user {url.username!r}"


def _sentence(exc: DBAPIError) -> str:
    # libpq repeats the address, which we have said; the server's own words come last.
    return postgres_trouble(exc).rpartition("failed: ")[2].removeprefix("FATAL:").strip()
