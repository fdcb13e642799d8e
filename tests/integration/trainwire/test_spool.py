"""`trainwire spool` where a folder of it cannot be read: it is named, and is in nobody's way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingest.spool.folder import About, SourceFolder
from ingest.spool.spool import Spool
from schemas.messages import Logs, Message
from schemas.wire import encode_entry
from tests.integration.trainwire.conftest import Trainwire


def leave(spool: Path, job_id: int) -> Path:
    """Leave a message as a killed trainer does; return its folder."""
    folder = SourceFolder.create(spool, About(job_id, 1, "0-test", None, "redis:6379/0"))
    left = Spool(folder, 1 << 40)
    body = Logs(log_type="stdout", lines=["x"], ts=[1])
    left.append("logs", 1, 1, encode_entry(Message("logs", job_id, 1, "0-test", 1, body)))
    left.close()
    return folder.path


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """The oldest folder of a spool, with a lock that nobody can open."""
    path = leave(tmp_path / "spool", 1)
    (path / "lock").unlink()
    (path / "lock").mkdir()
    os.utime(path, (1, 1))
    return path


def test_a_folder_that_cannot_be_read_is_named(trainwire: Trainwire, unreadable: Path) -> None:
    """The list does not say that there is nothing."""
    shown = trainwire("spool", "list", "--spool", str(unreadable.parent))
    assert shown.err == f"trainwire: {unreadable} cannot be read: it may be another user's\n"
    assert shown.out == ""


def test_a_folder_that_cannot_be_sent_holds_up_no_other(
    connected: Trainwire, unreadable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What lies behind it is sent, it is said to stay, and the exit code says that something is left."""
    leave(unreadable.parent, 2)
    sent = connected("spool", "send", "--any-server", "--spool", str(unreadable.parent))
    assert "job 2, source 0-test: all is sent, 2 messages wait for a worker" in sent.out
    assert "nothing is left" not in sent.out
    assert f"{unreadable} cannot be sent, and stays" in caplog.text
    assert sent.code == 1


def test_a_folder_that_is_none_is_named(trainwire: Trainwire, tmp_path: Path) -> None:
    """A mistyped folder is not an empty one."""
    shown = trainwire("spool", "list", "--spool", str(tmp_path / "none"))
    assert shown.code == 1
    assert f"--spool {tmp_path / 'none'} is not a folder" in shown.err
