"""The command of `trainwire` that is printed to be copied."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trainwire.cli.invocation import own_command


def test_the_command_works_in_each_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path becomes absolute; the name alone is used only if PATH leads to the same program."""
    mine, other = tmp_path / "my venv" / "trainwire", tmp_path / "other" / "trainwire"
    for program in (mine, other):
        program.parent.mkdir()
        program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["my venv/trainwire", "up"])
    for path, command in (("/nowhere", f"'{mine}'"), (other.parent, f"'{mine}'"), (mine.parent, "trainwire")):
        monkeypatch.setenv("PATH", os.fspath(path))
        assert own_command() == command
    monkeypatch.setattr(sys, "argv", ["trainwire/__main__.py"])
    assert own_command() == f"{sys.executable} -m trainwire"
