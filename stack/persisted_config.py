"""Saves passwords and ports of the embedded servers in `secrets.json` of the data folder, for the next start."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Final
from urllib.parse import urlsplit

from trainwire.ingest.settings.running_stacks import SECRETS_NAME
from trainwire.stack.errors import PartEnded, Problem

PORTS: Final = range(15_000, 32_000)
"""Range for random ports, below the ephemeral ports of the kernel.

A client that reconnects to a stopped server can get an ephemeral port as its own, and would connect to itself if
it were the server's.
"""
_write_lock: Final = Lock()
"""Serialises writes to the file: web servers start in parallel threads, and each saves its port."""
PORT_ATTEMPTS: Final = 5
"""Number of ports to try: another process can bind a free port before the server does."""


class Port:
    """The port of one server on `host`; it stays the same over restarts, unless another process has bound it.

    `first` is preferred over the saved port. A `fixed` port is never replaced by another one.
    """

    def __init__(
        self,
        data_dir: Path,
        part: str,
        *,
        host: str = "127.0.0.1",
        first: int | None = None,
        fixed: int | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._part = part
        self._host = host
        self._first = first
        self._number = fixed
        self._is_final = fixed is not None
        self.wanted = fixed or first or saved_port(data_dir, part)
        """The port that the user set, or the default, or that of the last start; None if there is none."""

    @property
    def number(self) -> int:
        """The port number. After the server has been ready once, it no longer changes, because clients use it."""
        if self._number is None:
            self._number = usable_port(self._data_dir, self._part, self._first, self._host)
        return self._number

    def start(self, start: Callable[[], None]) -> None:
        """Start a server on this port by calling `start`.

        If another process has bound the port, so that `start` raises `PartEnded`, choose another port and retry,
        with at most PORT_ATTEMPTS ports.
        """
        for _ in range(PORT_ATTEMPTS - 1):
            try:
                start()
            except PartEnded:
                if self._is_final or is_free(self.number, self._host):
                    raise
                self._number = None
            else:
                break
        else:
            start()
        self._is_final = True


def moved(port: Port) -> str | None:
    """Return a sentence for the terminal if a server does not listen on its usual port; None if it does."""
    if port.wanted is None or port.number == port.wanted:
        return None
    return f"port {port.wanted} is taken by another program: listening on {port.number}"


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically by `text`, readable only by its owner."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def saved_password(data_dir: Path, part: str) -> str | None:
    """Return the saved password of a server; None if there is none."""
    value = _read(data_dir).get(f"{part}_password")
    return None if value is None else str(value)


def is_embedded_url(data_dir: Path, part: str, url: str) -> bool:
    """Return whether `url` is the address of the embedded server `part` of this data folder.

    The server is recognised by its saved random password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    password = saved_password(data_dir, part)
    return password is not None and (parts.hostname, parts.password) == ("127.0.0.1", password)


def new_password(data_dir: Path, part: str) -> str:
    """Generate a password for server `part`, save it and return it."""
    password = secrets.token_urlsafe(24)
    _save(data_dir, f"{part}_password", password)
    return password


def usable_port(data_dir: Path, part: str, first: int | None = None, host: str = "127.0.0.1") -> int:
    """Return `first` if it is free, or else the port of the last start if it is free, or else a random free port.

    The port is one of `host`. It is saved for the next start.
    """
    saved = saved_port(data_dir, part)
    for port in (first, saved):
        if port is not None and is_free(port, host):
            break
    else:
        port = free_port(host)
    if port != saved:
        _save(data_dir, f"{part}_port", port)
    return port


def saved_port(data_dir: Path, part: str) -> int | None:
    """Return the port that server `part` had at the last start; None at the first start."""
    port = _read(data_dir).get(f"{part}_port")
    return port if isinstance(port, int) else None


def free_port(host: str = "127.0.0.1") -> int:
    """Return a random free port of `host`; raise `Problem` if none is found."""
    for port in random.sample(PORTS, 200):
        if is_free(port, host):
            return port
    raise Problem(f"no free port on {host} between {PORTS.start} and {PORTS.stop}")


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on `port` of `host` now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()  # a bind alone succeeds beside another that does not listen yet
        except OSError:
            return False
    return True


def _save(data_dir: Path, name: str, value: str | int) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    with _write_lock:
        write_private(data_dir / SECRETS_NAME, json.dumps(_read(data_dir) | {name: value}, indent=1))


def _read(data_dir: Path) -> dict[str, Any]:
    path = data_dir / SECRETS_NAME
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise Problem(f"{path} is not JSON ({exc}); it holds the passwords of the servers in this folder") from exc
    if not isinstance(content, dict):
        raise Problem(f"{path} is not a JSON object; it holds the passwords of the servers in this folder")
    return content
