"""`trainwire spool` with an unreadable folder: it is named, and does not affect the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Trainwire
from trainwire.ingest.sending.recovery import Leftover
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.ingest.spool.folder import About, SourceFolder
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Logs, Message, Metrics


def leave(spool: Path, job_id: int) -> Path:
    """Leave a message as a killed trainer does; return its folder."""
    folder = SourceFolder.create(spool, About(job_id, 1, "0-test", None, "redis:6379/0"))
    left = Spool(folder, 1 << 40)
    body = Logs(log_type="stdout", lines=["x"], ts=[1])
    left.append("logs", 1, 1, encode_entry(Message("logs", job_id, 1, "0-test", 1, body)))
    left.close()
    return folder.path


def test_a_job_in_the_spool_is_shown_by_its_name(trainwire: Trainwire, tmp_path: Path) -> None:
    """A number, a name or the beginning of one; where several jobs fit, the error has their numbers."""
    spool = tmp_path / "spool"
    for job_id, name in ((1, "digits"), (2, "digits-2"), (3, "cats")):
        left = Spool(SourceFolder.create(spool, About(job_id, 1, "0-test", None, "redis:6379/0")), 1 << 40)
        begin = Message("metrics", job_id, 1, "0-test", 1, Metrics(ts=1, name=name))
        line = Message("logs", job_id, 1, "0-test", 1, Logs(log_type="stdout", lines=[f"line {job_id}"], ts=[1]))
        left.append("metrics", 1, 1, encode_entry(begin))
        left.append("logs", 1, 1, encode_entry(line))
        left.close()
    leave(spool, 4)
    listed = json.loads(trainwire("spool", "list", "--json", "--spool", str(spool)).out)
    assert {each["job_id"]: each["name"] for each in listed} == {1: "digits", 2: "digits-2", 3: "cats", 4: None}
    for text, shown in (
        ("2", "line 2"),
        ("digits", "line 1"),
        ("digits-", "line 2"),
        ("ca", "line 3"),
    ):
        assert trainwire("spool", "show", text, "--spool", str(spool)).out == f"{shown}\n"
    several, none = (trainwire("spool", "show", text, "--spool", str(spool)) for text in ("di", "dogs"))
    assert (several.code, none.code) == (1, 1)
    assert "choose one by its number: 1, 2" in " ".join(several.err.split())
    assert "no messages of job dogs" in " ".join(none.err.split())


def test_send_has_the_timing_of_the_trainers_settings(
    connected: Trainwire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TRAINWIRE_SETTLE_S` applies to `spool send`; a value that is no number of seconds is named."""
    timings: list[Timing] = []

    def record(_: Path, __: str, timing: Timing, *___: object, **____: object) -> Iterator[Leftover]:
        timings.append(timing)
        yield from ()

    monkeypatch.setattr("trainwire.cli.commands.operations.spool.send_leftovers", record)
    monkeypatch.setenv("TRAINWIRE_SETTLE_S", "45")
    assert connected("spool", "send", "--spool", str(tmp_path)).code == 0
    assert [timing.settle_s for timing in timings] == [45]
    monkeypatch.setenv("TRAINWIRE_SETTLE_S", "soon")
    refused = connected("spool", "send", "--spool", str(tmp_path))
    assert refused.code == 1
    assert "TRAINWIRE_SETTLE_S='soon' is not a number of seconds from 0 to 600" in " ".join(refused.err.split())


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """The oldest folder of a spool, with a lock that cannot be opened."""
    path = leave(tmp_path / "spool", 1)
    (path / "lock").unlink()
    (path / "lock").mkdir()
    os.utime(path, (1, 1))
    return path


def test_a_folder_that_cannot_be_read_is_named(trainwire: Trainwire, unreadable: Path) -> None:
    """The list names the folder, and does not report an empty spool."""
    shown = trainwire("spool", "list", "--spool", str(unreadable.parent))
    assert shown.err == f"trainwire: {unreadable} cannot be read: it may be another user's\n"
    assert shown.out == ""


def test_a_folder_that_cannot_be_sent_holds_up_no_other(
    connected: Trainwire, unreadable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other folders are sent, this one is named, and the exit code is not 0."""
    leave(unreadable.parent, 2)
    sent = connected("spool", "send", "--any-server", "--spool", str(unreadable.parent))
    assert "job 2, source 0-test: all messages are sent, 2 wait for a worker" in sent.out
    assert "nothing is left" not in sent.out
    assert f"{unreadable} cannot be sent, and stays" in caplog.text
    assert sent.code == 1


def test_a_folder_that_is_none_is_named(trainwire: Trainwire, tmp_path: Path) -> None:
    """A folder that does not exist is an error, not an empty spool."""
    shown = trainwire("spool", "list", "--spool", str(tmp_path / "none"))
    assert shown.code == 1
    assert f"--spool {tmp_path / 'none'} is not a folder" in shown.err


def test_discarding_lists_first(trainwire: Trainwire, tmp_path: Path) -> None:
    """Without --yes nothing is deleted; with it only the job's folders are."""
    spool = tmp_path / "spool"
    one, other = leave(spool, 1), leave(spool, 2)
    shown = trainwire("spool", "discard", "1", "--spool", str(spool))
    assert "job 1, source 0-test: 1 messages" in shown.out
    assert "add --yes" in shown.out
    assert "job 2" not in shown.out
    assert one.exists()
    assert "deleted\n" in trainwire("spool", "discard", "1", "--yes", "--spool", str(spool)).out
    assert not one.exists()
    assert other.exists()
    assert trainwire("spool", "discard", "--source", "0-test", "--yes", "--spool", str(spool)).code == 0
    assert not other.exists()


def test_discarding_needs_a_job_or_all(trainwire: Trainwire, tmp_path: Path) -> None:
    """Neither a job nor --all, or both, is an error, and so is a job without messages."""
    spool = tmp_path / "spool"
    leave(spool, 1)
    for arguments in ((), ("1", "--all")):
        assert "--all" in trainwire("spool", "discard", *arguments, "--spool", str(spool)).err
    missing = trainwire("spool", "discard", "3", "--yes", "--spool", str(spool))
    assert missing.code == 1
    assert "trainwire spool list" in missing.err
    assert trainwire("spool", "discard", "--all", "--yes", "--spool", str(spool)).code == 0
    assert not list(spool.iterdir())


def test_a_folder_in_use_is_neither_discarded_nor_nothing(connected: Trainwire, tmp_path: Path) -> None:
    """Messages of a living process stay, and `send` names them and does not report an empty spool."""
    spool = tmp_path / "spool"
    path = leave(spool, 1)
    claimed = SourceFolder.claim(path)
    assert claimed is not None
    try:
        assert "in use, stays" in connected("spool", "discard", "--all", "--yes", "--spool", str(spool)).out
        assert path.exists()
        sent = connected("spool", "send", "--any-server", "--spool", str(spool))
        assert "has messages (1) that running processes (1) send themselves" in sent.out
        assert (sent.code, "nothing is left" in sent.out) == (0, False)
    finally:
        claimed.forget()


def test_a_folder_that_another_sender_has_is_left(connected: Trainwire, tmp_path: Path) -> None:
    """While `trainwire up` sends a spool, `send` reports this and leaves it."""
    spool = tmp_path / "spool"
    path = leave(spool, 1)
    about = path / "source.json"
    about.write_bytes(about.read_bytes().replace(f'"pid":{os.getpid()}'.encode(), b'"pid":4194304'))
    claimed = SourceFolder.claim(path)
    assert claimed is not None
    try:
        sent = connected("spool", "send", "--any-server", "--spool", str(spool))
    finally:
        claimed.forget()
    assert "job 1, source 0-test: another process sends its 1 messages now" in sent.out
    assert (sent.code, "nothing is left" in sent.out) == (1, False)
