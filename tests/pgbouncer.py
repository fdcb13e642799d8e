"""A real PgBouncer in front of a test database; a test that needs it is skipped if it is not installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import make_url

from trainwire.stack.persisted_config import write_private
from trainwire.stack.postgres import unprivileged
from trainwire.stack.server import EmbeddedServer

NEEDED: Final[Mapping[str, str]] = {"ignore_startup_parameters": "options"}
"""The settings that docs/scaling.md asks for."""
_FOLDERS: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


class PgBouncer(EmbeddedServer):
    """A pooler by transaction on 127.0.0.1; `most` is how many connections to Postgres it opens."""

    name = "pgbouncer"
    stop_signal = signal.SIGTERM
    stop_timeout_s = 5

    def __init__(
        self, folder: Path, database_url: str, *, most: int = 40, settings: Mapping[str, str] = NEEDED
    ) -> None:
        super().__init__(folder)
        self._binary = _found()
        self._database = make_url(database_url)
        self._settings = {"pool_mode": "transaction", "default_pool_size": str(most), **settings}

    @property
    def url(self) -> str:
        """The address of the database through PgBouncer, which asks for no password."""
        return f"postgresql://anybody@127.0.0.1:{self.port}/{self._database.database}"

    def _prepare(self) -> None:
        behind = self._database
        named = f"host={behind.host} port={behind.port or 5432} dbname={behind.database}"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "max_client_conn": "200",
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        head = ["[databases]", f"{behind.database} = {named} user={behind.username} password={behind.password}"]
        self._data_dir.mkdir(parents=True, exist_ok=True)
        write_private(self._data_dir / "pgbouncer.ini", "\n".join([*head, "[pgbouncer]", *lines, ""]))

    def _command(self) -> list[str]:
        return unprivileged([self._binary, str(self._data_dir / "pgbouncer.ini")])

    def _is_ready(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return self.child.listens_on(self.port)
        return False


def _found() -> str:
    path = shutil.which("pgbouncer", path=_FOLDERS)
    if path is None:
        pytest.skip("no pgbouncer is installed (Debian: apt-get install pgbouncer)")
    return path
