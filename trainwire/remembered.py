"""What a data folder remembers between two starts: the passwords and ports of its servers."""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from pathlib import Path
from typing import Any, Final

from trainwire.errors import Problem

FILE_NAME: Final = "secrets.json"
PORTS: Final = range(15_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections: a client that calls a server which is just
restarting could otherwise be given that very port, and connect to itself."""


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, readable by its owner only."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def remembered_password(data_dir: Path, part: str) -> str | None:
    """Return the password of `part`, None when the folder has none."""
    value = _read(data_dir).get(f"{part}_password")
    return None if value is None else str(value)


def new_password(data_dir: Path, part: str) -> str:
    """Make a random password for `part`, remember it, and return it."""
    password = secrets.token_urlsafe(24)
    _remember(data_dir, f"{part}_password", password)
    return password


def usable_port(data_dir: Path, part: str, first: int | None = None) -> int:
    """Return the port that `part` had the last time, or a new one where that is taken: `first` if it is free."""
    port = _read(data_dir).get(f"{part}_port")
    if isinstance(port, int) and is_free(port):
        return port
    port = first if first is not None and is_free(first) else free_port()
    _remember(data_dir, f"{part}_port", port)
    return port


def free_port() -> int:
    """Return a port on 127.0.0.1 on which nobody listens."""
    for port in random.sample(PORTS, 200):
        if is_free(port):
            return port
    raise Problem(f"no free port on 127.0.0.1 between {PORTS.start} and {PORTS.stop}")


def is_free(port: int) -> bool:
    """Tell whether a server could listen on `port` of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _remember(data_dir: Path, name: str, value: str | int) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    write_private(data_dir / FILE_NAME, json.dumps(_read(data_dir) | {name: value}, indent=1))


def _read(data_dir: Path) -> dict[str, Any]:
    path = data_dir / FILE_NAME
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise Problem(f"{path} is not JSON ({exc}); it holds the passwords of the servers beside it") from exc
    if not isinstance(content, dict):
        raise Problem(f"{path} is not a JSON object; it holds the passwords of the servers beside it")
    return content
