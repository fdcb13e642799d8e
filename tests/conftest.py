"""Real servers for the tests: the embedded ones, or those of TEST_DATABASE_URL and TEST_REDIS_URL."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis
import sqlalchemy
import structlog
from sqlalchemy import Engine, make_url

from tests.factories import Sender
from tests.orphans import end_with_this_process
from trainwire.schemas.migrations import upgrade
from trainwire.schemas.tables import metadata
from trainwire.stack.postgres import EmbeddedPostgres
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.stores.postgres.connections import open_engine, open_redis
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings, load_settings

# Not to stdout, structlog's default: a gateway in a thread logs while another test reads the output of a command.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))

_RESTART_IDENTITIES = sqlalchemy.text(
    "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false) "
    "FROM pg_sequences WHERE last_value IS NOT NULL"
)

# A shell without job control starts `make test &` with these ignored; processes of the tests would inherit that.
for _signum, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, _default)

end_with_this_process()

# A first example imports and fills caches, and a machine with much else to do is slow.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

PROCESSES_TIMEOUT_S = 600

pytest_plugins = ["tests.gateway_server", "tests.mlflow_server", "tests.tls_servers"]


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder of this test process, with the developer's caches and settings of other programs."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable, folder in (("XDG_CACHE_HOME", ".cache"), ("XDG_CONFIG_HOME", ".config")):
            patch.setenv(variable, os.environ.get(variable) or str(Path.home() / folder))
        patch.setenv("HOME", str(home))
        yield home


@pytest.fixture(autouse=True)
def _spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _home: Path) -> Iterator[None]:
    """Trainers of a test use their own spool, find no stack of the developer's, and record no provenance.

    Fails a test whose processes use the data or the state of the home folder.
    """
    monkeypatch.setenv("TRAINWIRE_PROVENANCE", "off")
    monkeypatch.setenv("TRAINWIRE_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    yield
    if (used := _home / ".local").exists():
        written = [str(path.relative_to(_home)) for path in used.rglob("*")]
        shutil.rmtree(used)
        pytest.fail(f"a process of this test wrote to the home folder: {written}")


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database of this test process alone."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield _own_database(given)
        return
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres")) as server:
        yield _migrated(server.url)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this test process alone; of a given server, the database of the xdist worker's number."""
    if given := os.environ.get("TEST_REDIS_URL"):
        number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        yield f"{given.rsplit('/', 1)[0] if given.count('/') > 2 else given}/{number}"
        return
    # A title is written over the environment, by which tests/orphans.py knows the process.
    settings = {"set-proc-title": "no"}
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey"), settings=settings) as server:
        yield server.url


@pytest.fixture(scope="session")
def session_settings(database_url: str, redis_url: str) -> Settings:
    """The settings of workers on the test servers; no time slice ends before the stream is empty."""
    return load_settings(database_url=database_url, redis_url=redis_url, drain_slice_s=30)


@pytest.fixture(scope="session")
def _engine(session_settings: Settings) -> Iterator[Engine]:
    engine = open_engine(session_settings, name="tests")
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def _redis(session_settings: Settings) -> Iterator[redis.Redis]:
    client = open_redis(session_settings)
    yield client
    client.close()


@pytest.fixture
def engine(_engine: Engine) -> Engine:
    """The test database, with all tables empty."""
    names = [table.name for table in metadata.sorted_tables]
    filled = " UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT FROM {name})" for name in names)
    with _engine.begin() as connection:
        # Waits for rows that a thread of the last test has not committed yet.
        connection.execute(sqlalchemy.text(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE"))
        # Only those with rows: TRUNCATE of all 15 tables, with new files for each, takes 40 ms of CPU time.
        if found := connection.scalars(sqlalchemy.text(filled)).all():
            connection.execute(sqlalchemy.text(f"TRUNCATE {', '.join(found)}"))
        connection.execute(_RESTART_IDENTITIES)
    return _engine


@pytest.fixture
def client(_redis: redis.Redis) -> redis.Redis:
    """The test Redis, empty."""
    _redis.flushdb()
    return _redis


@pytest.fixture
def settings(session_settings: Settings) -> Settings:
    """The settings of workers on the test servers."""
    return session_settings


@pytest.fixture
def resources(settings: Settings, engine: Engine, client: redis.Redis) -> Resources:
    """The resources of a worker's tasks."""
    return Resources(settings, engine, client)


@pytest.fixture
def sender(client: redis.Redis) -> Sender:
    """A trainer that publishes with bare XADD commands."""
    return Sender(client)


def _migrated(url: str) -> str:
    engine = sqlalchemy.create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()
    return url


def _own_database(given: str) -> str:
    name = f"trainwire_test_{os.environ.get('PYTEST_XDIST_WORKER', 'gw0')}"
    server = sqlalchemy.create_engine(
        make_url(given).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with server.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    server.dispose()
    return _migrated(make_url(given).set(database=name).render_as_string(hide_password=False))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt all modules and tests from garbage collection, which would search them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's layer after its folder, so that `-m unit` and the like work without decorators.

    Tests of whole processes have twice the time of others: on a busy machine some starts take a minute each.
    """
    for item in items:
        layer = Path(item.path).relative_to(Path(__file__).parent).parts[0]
        if layer in {"unit", "integration", "system", "chaos", "browser"}:
            item.add_marker(getattr(pytest.mark, layer))
        if layer in {"system", "browser"} and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PROCESSES_TIMEOUT_S))
