"""Two Postgres servers in DATABASE_URL: the one that accepts writes is used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import psycopg
import pytest
from sqlalchemy import text

from tests.processes import ROOT
from trainwire.stack.postgres import DATABASE, EmbeddedPostgres
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.errors import Unavailable
from trainwire.workers.settings import load_settings

USER: Final = "failover"
PASSWORD: Final = "verysecret"


class Pair:
    """Two servers with the same user."""

    def __init__(self, folder: Path) -> None:
        self.servers = [EmbeddedPostgres(folder / name) for name in ("first", "second")]
        for server in self.servers:
            server.start()
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(f"CREATE ROLE {USER} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")

    @property
    def url(self) -> str:
        """The address of both servers."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"postgresql://{USER}:{PASSWORD}@{hosts}/{DATABASE}?target_session_attrs=read-write"

    def read_only(self, number: int, mode: str) -> None:
        """Switch a server's default_transaction_read_only."""
        url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.servers[number].port}/{DATABASE}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {mode}")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = {mode}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two embedded servers."""
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    for server in pair.servers:
        server.stop()


def trainwire(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "trainwire", *arguments],
        cwd=ROOT,
        env=_without_servers(os.environ) | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def _without_servers(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}


def test_the_server_that_takes_writes_is_used(pair: Pair) -> None:
    """Sessions go from the first server to the second when the first becomes read-only, and back."""
    engine = open_engine(load_settings(database_url=pair.url, redis_url="redis://127.0.0.1:1/0"))

    def write() -> int:
        with postgres_errors(), engine.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS written (at timestamptz)"))
            return int(connection.execute(text("SELECT inet_server_port()")).scalar_one())

    ports = [server.port for server in pair.servers]
    try:
        assert write() == ports[0]
        pair.read_only(0, "on")
        with pytest.raises(Unavailable, match="read-only"):
            write()
        assert write() == ports[1]
        pair.read_only(0, "off")
        pair.read_only(1, "on")
        with pytest.raises(Unavailable, match="read-only"):
            write()
        assert write() == ports[0]
        pair.read_only(1, "off")
    finally:
        engine.dispose()


def test_the_first_server_is_down(pair: Pair, redis_url: str) -> None:
    """Migrations, `status` and `doctor` reach the second; `env` shows both; errors hide the password."""
    both = {"DATABASE_URL": pair.url, "REDIS_URL": redis_url, "LOKI_ENABLED": "false"}
    pair.servers[0].stop()
    try:
        migrated = trainwire("migrate", **both)
        assert migrated.returncode == 0, migrated.stderr
        assert "no job 7" in trainwire("status", "7", **both).stderr
        looked = trainwire("doctor", "--json", **both).stdout
        assert '"has the tables of this version"' in looked
        assert pair.url in trainwire("env", **both).stdout.replace("'", "")
        pair.servers[1].stop()
        try:
            failed = trainwire("status", "7", **both)
        finally:
            pair.servers[1].start()
    finally:
        pair.servers[0].start()
    assert failed.returncode != 0
    assert ", ".join(f"127.0.0.1:{server.port}" for server in pair.servers) in " ".join(failed.stderr.split())
    assert PASSWORD not in failed.stderr + looked
