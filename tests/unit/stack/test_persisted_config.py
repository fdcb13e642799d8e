"""Passwords and ports are kept over restarts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trainwire.stack.errors import Problem
from trainwire.stack.persisted_config import (
    is_embedded_url,
    is_free,
    new_password,
    saved_password,
    usable_port,
)


def test_secrets_are_private_and_stay(tmp_path: Path) -> None:
    """A password is the same at the next start, in a file that only its owner can read."""
    password = new_password(tmp_path, "postgres")
    new_password(tmp_path, "valkey")
    assert saved_password(tmp_path, "postgres") == password
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_free_port_is_used_again(tmp_path: Path) -> None:
    """The port is kept as long as no other process uses it."""
    port = usable_port(tmp_path, "postgres")
    assert usable_port(tmp_path, "postgres") == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not is_free(port)
        assert usable_port(tmp_path, "postgres") != port


def test_an_exported_address_is_known_by_its_password(tmp_path: Path) -> None:
    """The folder's own server is recognized on any port; other servers are not."""
    password = new_password(tmp_path, "postgres")
    own = f"postgresql://trainwire:{password}@127.0.0.1:15000/trainwire"
    assert is_embedded_url(tmp_path, "postgres", own)
    assert is_embedded_url(tmp_path, "postgres", own.replace("15000", "15001"))
    others = ("postgresql://127.0.0.1/trainwire", "postgresql://u:@127.0.0.1/db", "postgresql://[", "")
    for url in (own.replace("127.0.0.1", "db.example"), own.replace(password, "other"), *others):
        assert not is_embedded_url(tmp_path, "postgres", url)
        assert not is_embedded_url(tmp_path / "empty", "postgres", url)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """An unreadable file is reported with its path, and not overwritten."""
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(Problem, match=r"secrets\.json is not JSON"):
        usable_port(tmp_path, "postgres")
    assert (tmp_path / "secrets.json").read_text() == "{"
