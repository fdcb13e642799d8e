"""The embedded PostgreSQL as a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from trainwire.stack.errors import PartFailed, Problem
from trainwire.stack.persisted_config import new_password, saved_password
from trainwire.stack.postgres import EmbeddedPostgres, give_to_unprivileged, unprivileged


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Give a running server in a folder whose name needs quoting."""
    with EmbeddedPostgres(tmp_path / "a b'c") as running:
        yield running


def _execute(server: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def test_data_survives_restart_and_kill(server: EmbeddedPostgres) -> None:
    """Committed rows survive a stop and a kill, at the same address."""
    url = server.url
    _execute(server, "CREATE TABLE kept (number int)")
    _execute(server, "INSERT INTO kept VALUES (1)")
    server.stop()
    server.start()
    _execute(server, "INSERT INTO kept VALUES (2)")
    server.kill()
    with pytest.raises(psycopg.OperationalError):
        _execute(server, "SELECT 1")
    server.start()
    assert _execute(server, "SELECT number FROM kept ORDER BY number") == [(1,), (2,)]
    assert server.url == url


def test_a_second_object_on_the_folder_uses_the_same_data(tmp_path: Path) -> None:
    """The next `trainwire up` finds the data, the password and the port."""
    with EmbeddedPostgres(tmp_path) as first:
        _execute(first, "CREATE TABLE kept (number int)")
        url = first.url
    with EmbeddedPostgres(tmp_path) as second:
        assert second.url == url
        assert _execute(second, "SELECT count(*) FROM kept") == [(0,)]


def test_the_database_is_as_the_design_wants_it(server: EmbeddedPostgres) -> None:
    """Commits are durable, text is UTF-8, order is by byte, checksums are on, and only TCP is served."""
    names = ("synchronous_commit", "server_encoding", "data_checksums", "fsync", "unix_socket_directories")
    shown = [_execute(server, f"SHOW {name}")[0][0] for name in names]
    assert shown == ["on", "UTF8", "on", "on", ""]
    collation = "SELECT datcollate FROM pg_database WHERE datname = current_database()"
    assert _execute(server, collation) == [("C",)]


def test_a_password_is_asked_for(server: EmbeddedPostgres) -> None:
    """Another user of the machine cannot connect without the password."""
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host="127.0.0.1", port=server.port, user="trainwire", dbname="trainwire")


def test_an_interrupted_first_start_is_no_obstacle(tmp_path: Path) -> None:
    """Leftovers of a killed initdb are removed at the next start."""
    left = tmp_path / "postgres.new" / "base"
    left.mkdir(parents=True)
    new_password(tmp_path, "postgres")
    with EmbeddedPostgres(tmp_path) as server:
        assert _execute(server, "SELECT 1") == [(1,)]
    assert not (tmp_path / "postgres.new").exists()
    assert not (tmp_path / "initdb.password").exists()


def test_lost_and_wrong_passwords_are_reported(tmp_path: Path) -> None:
    """A folder with missing or wrong secrets is refused with one error, and its data is kept."""
    with EmbeddedPostgres(tmp_path):
        kept = saved_password(tmp_path, "postgres")
    (tmp_path / "secrets.json").rename(tmp_path / "put aside")
    with pytest.raises(Problem, match=r"secrets\.json has lost the password"):
        EmbeddedPostgres(tmp_path).start()
    assert new_password(tmp_path, "postgres") != kept
    with pytest.raises(PartFailed, match=r"the password in .*secrets\.json is not the one of"):
        EmbeddedPostgres(tmp_path).start()
    (tmp_path / "put aside").rename(tmp_path / "secrets.json")
    with EmbeddedPostgres(tmp_path) as server:
        assert _execute(server, "SELECT 1") == [(1,)]


def test_data_of_another_version_is_refused(tmp_path: Path) -> None:
    """A folder of another PostgreSQL version is not changed; the error has that version."""
    cluster = tmp_path / "postgres"
    cluster.mkdir()
    with pytest.raises(Problem, match="is not a PostgreSQL data folder"):
        EmbeddedPostgres(tmp_path).start()
    (cluster / "PG_VERSION").write_text("15\n")
    with pytest.raises(Problem, match="made by PostgreSQL 15"):
        EmbeddedPostgres(tmp_path).start()


def test_a_wrong_setting_is_reported_with_the_servers_log(tmp_path: Path) -> None:
    """The error of a server that does not start has the last lines of its log."""
    with pytest.raises(PartFailed, match=r"postgres ended at once(.|\n)*shared_buffers"):
        EmbeddedPostgres(tmp_path, settings={"shared_buffers": "lots"}).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs setpriv")
def test_root_without_setpriv_gets_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root without util-linux the error names both remedies."""
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(Problem, match="run as a normal user, or install util-linux"):
        unprivileged(["postgres"])


@pytest.mark.skipif(os.geteuid() != 0, reason="every test here runs as a normal user already")
def test_a_normal_user_needs_no_other_user(tmp_path: Path) -> None:
    """Without root the server runs as the current user, without setpriv."""
    give_to_unprivileged(tmp_path)
    code = (
        "from pathlib import Path; from trainwire.stack.postgres import EmbeddedPostgres\n"
        f"with EmbeddedPostgres(Path({str(tmp_path)!r})) as server: print(server.url)"
    )
    command = unprivileged([sys.executable, "-c", f"import shutil; shutil.which = None; {code}"])
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.startswith("postgresql://trainwire:"), done.stderr
