"""Passwords and ports outlive a restart."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trainwire.errors import Problem
from trainwire.remembered import is_free, new_password, remembered_password, usable_port


def test_secrets_are_private_and_stay(tmp_path: Path) -> None:
    """A password is the same at the next start, in a file that only its owner reads."""
    password = new_password(tmp_path, "postgres")
    new_password(tmp_path, "valkey")
    assert remembered_password(tmp_path, "postgres") == password
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_free_port_is_used_again(tmp_path: Path) -> None:
    """The port stays as long as nobody else takes it."""
    port = usable_port(tmp_path, "postgres")
    assert usable_port(tmp_path, "postgres") == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert not is_free(port)
        assert usable_port(tmp_path, "postgres") != port


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A file that cannot be read is said by its path, not overwritten."""
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(Problem, match=r"secrets\.json is not JSON"):
        usable_port(tmp_path, "postgres")
    assert (tmp_path / "secrets.json").read_text() == "{"
