"""The temporary folder of a launcher."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from trainwire.ingest.process.launcher_folder import LEFTOVER_S, LauncherFolder


def test_folders_of_launchers_that_were_killed_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher removes folders of killed ones after a day, and leaves those of running ones and of others."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = tmp_path / "trainwire-others"
    others.mkdir()
    old = time.time() - LEFTOVER_S - 60
    killed = []
    with LauncherFolder() as running:
        assert running.path is not None
        for name in ("trainwire-old", "trainwire-new"):
            killed.append(tmp_path / name)
            killed[-1].mkdir()
            (killed[-1] / "launcher").touch()
        for path in (running.path, others, killed[0]):
            os.utime(path, (old, old))
        with LauncherFolder() as other:
            assert other.path is not None
            assert set(tmp_path.iterdir()) == {others, running.path, killed[1], other.path}
