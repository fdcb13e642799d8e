"""The sink of JSON lines: each row is once in the files despite kills, and is confirmed only after the write."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from tests.factories import Sender, completion, drain, logs, one
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.tables import delivery_cursors
from trainwire.stores.files.s3 import open_s3
from trainwire.stores.postgres.deletion import Choice, begin_deletion, find_deletion
from trainwire.stores.postgres.deliveries import job_deliveries
from trainwire.workers.operations.job_deletion import JobDeleter
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.base import Delivered, SinkUnavailable
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.jsonl import files
from trainwire.workers.sinks.jsonl.backlog import JsonlBacklog, JsonlBatch
from trainwire.workers.sinks.jsonl.files import JsonLine
from trainwire.workers.sinks.jsonl.plugin import (
    JsonlPlugin,
    JsonlSettings,
    JsonlSink,
    _verdict,
)
from trainwire.workers.sinks.plugin import NotSetUp

DAY = "2026-11-29"
StoreLines = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of all jobs, which does not exist yet."""
    return tmp_path / "backup" / "logs"


@pytest.fixture
def store_lines(resources: Resources, sender: Sender) -> StoreLines:
    """Give a function that stores lines of a job."""

    def stored(*lines: str, job: int = 1) -> None:
        sender.send(logs(*lines), job=job)
        drain(resources, job=job)

    return stored


def deliver(resources: Resources, folder: Path, *, retry_s: float = 0, **settings: Any) -> None:
    """Deliver all waiting rows."""
    sink = JsonlSink(JsonlSettings(jsonl_dir=folder, **settings), folder)
    backlog, backoff = JsonlBacklog("jsonl", folder), Backoff(first_s=retry_s, cap_s=retry_s)
    Delivery(resources.engine, backlog, sink, slice_s=60, backoff=backoff).run()


def plugin_of(folder: Path | None) -> JsonlPlugin:
    """Return a plugin with settings of its own."""
    plugin = JsonlPlugin()
    plugin.settings = JsonlSettings(jsonl_dir=folder)
    return plugin


def documents(folder: Path, job: int = 1) -> list[dict[str, Any]]:
    """Return all lines of a job, decoded, in the order of its files."""
    (of_job,) = folder.glob(f"{job}-*")
    return [json.loads(line) for _, line in files.read_lines(of_job)]


def contents(folder: Path, job: int = 1) -> list[str]:
    """Return the texts of a job's lines; their numbers have neither hole nor repetition."""
    found = documents(folder, job)
    first = found[0]["seq"] if found else 1
    assert [line["seq"] for line in found] == list(range(first, first + len(found)))
    return [line["content"] for line in found]


def lines(first: int, last: int, day: str = DAY) -> list[JsonLine]:
    """Return short lines with these numbers."""
    return [JsonLine(seq, day, b'{"seq":%d}\n' % seq) for seq in range(first, last + 1)]


def numbers(folder: Path) -> list[int | None]:
    """Return the numbers in all files of a folder."""
    return [seq for seq, _ in files.read_lines(folder)]


def names(folder: Path) -> list[str]:
    """Return the names of a folder's files in their order."""
    return [str(name) for name in files.file_names(folder)]


def confirmed(resources: Resources, job: int = 1) -> int:
    """Return the last row that the cursor has confirmed."""
    return int(one(resources.engine, delivery_cursors, sink="jsonl", job_id=job)["confirmed_seq"])


def test_rows_are_lines_that_jq_reads(resources: Resources, sender: Sender, folder: Path) -> None:
    """A line has all values of the row, such as the time in nanoseconds; there is one file per day."""
    sender.send(logs("50% done\r\x1b[0m", "näh \u2028 \U0001f600"))
    drain(resources)
    deliver(resources, folder)
    first, second = documents(folder)
    assert first == {
        "job_id": 1,
        "seq": 1,
        "attempt": 1,
        "rank": None,
        "source": "0-test",
        "log_type": "stdout",
        "level": None,
        "logged_at": "2026-09-21T14:13:20.123456789Z",
        "content": "50% done\r\x1b[0m",
    }
    assert second["content"] == "näh \u2028 \U0001f600"
    with resources.engine.connect() as connection:
        made_at = connection.execute(text("SELECT created_at FROM training_jobs")).scalar_one()
    (of_job,) = folder.iterdir()
    assert of_job.name == f"1-{made_at.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    assert names(of_job) == [f"{made_at.astimezone(UTC).date()}.jsonl"]


def test_later_rows_are_appended(resources: Resources, store_lines: StoreLines, folder: Path) -> None:
    """Each delivery continues where the last one ended, job by job."""
    store_lines("a", "b")
    deliver(resources, folder)
    store_lines("c")
    store_lines("x", job=5)
    deliver(resources, folder)
    deliver(resources, folder)
    assert contents(folder) == ["a", "b", "c"]
    assert contents(folder, 5) == ["x"]
    assert confirmed(resources) == 3


class Crashing(JsonlSink):
    """A sink whose process is killed after it has written, before the cursor is moved."""

    def deliver(self, job_id: int, batch: JsonlBatch) -> Iterator[Delivered]:
        """Write, and end."""
        for _ in super().deliver(job_id, batch):
            raise KeyboardInterrupt
        yield from ()


def test_unconfirmed_lines_are_written_once(resources: Resources, store_lines: StoreLines, folder: Path) -> None:
    """Lines that a killed delivery has written, and half a line at the end, are cut off and written again."""
    store_lines("a")
    deliver(resources, folder)
    store_lines("b", "c")
    crashing = Crashing(JsonlSettings(jsonl_dir=folder), folder)
    with pytest.raises(KeyboardInterrupt):
        Delivery(resources.engine, JsonlBacklog("jsonl", folder), crashing, slice_s=60).run()
    assert (confirmed(resources), len(documents(folder))) == (1, 3)
    (of_job,) = folder.iterdir()
    with (of_job / names(of_job)[-1]).open("ab") as file:
        file.write(b'{"seq": 4, "cont')
    deliver(resources, folder)
    assert contents(folder) == ["a", "b", "c"]


KILLED = """
import sys
from pathlib import Path
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.settings import load_settings
from trainwire.workers.sinks.jsonl.backlog import JsonlBacklog
from trainwire.workers.sinks.jsonl.plugin import JsonlSettings, JsonlSink

folder = Path(sys.argv[3])
settings = load_settings(database_url=sys.argv[1], redis_url=sys.argv[2])
sink = JsonlSink(JsonlSettings(jsonl_dir=folder, jsonl_max_file_bytes=20_000), folder)
print("ready", flush=True)
Delivery(open_engine(settings), JsonlBacklog("jsonl", folder), sink, slice_s=60).run()
"""


def test_deliveries_that_are_killed_write_every_row_once(
    resources: Resources, store_lines: StoreLines, folder: Path, tmp_path: Path
) -> None:
    """SIGKILL at ten moments of a long delivery; the next ones continue, through all files."""
    expected = [f"line {number} " + "x" * 40 for number in range(60_000)]
    for begin in range(0, len(expected), 10_000):
        store_lines(*expected[begin : begin + 10_000])
    urls = [getattr(resources.settings, name).get_secret_value() for name in ("database_url", "redis_url")]
    script = tmp_path / "deliver.py"
    script.write_text(KILLED)
    for number in range(10):
        environ = os.environ | {"PYTHONPATH": os.getcwd()}
        command = [sys.executable, str(script), *urls, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.03 * number)  # the moment of the kill
            process.send_signal(signal.SIGKILL)
    deliver(resources, folder, jsonl_max_file_bytes=20_000)
    assert contents(folder) == expected


def test_a_file_ends_at_its_limit_and_with_its_day(tmp_path: Path) -> None:
    """A full file is continued in the next one, a new day begins a file, and the day never goes back."""
    files.append(tmp_path / "1", lines(1, 3), 25)
    assert names(tmp_path / "1") == [f"{DAY}.jsonl", f"{DAY}.2.jsonl"]
    files.append(tmp_path / "1", lines(4, 4), 25)
    files.append(tmp_path / "1", [*lines(5, 5, "2026-11-30"), *lines(6, 6)], 25)
    files.append(tmp_path / "1", [JsonLine(7, "2026-12-01", b'{"seq":7,"content":"longer than a file"}\n')], 25)
    assert names(tmp_path / "1") == [f"{DAY}.jsonl", f"{DAY}.2.jsonl", "2026-11-30.jsonl", "2026-12-01.jsonl"]
    assert numbers(tmp_path / "1") == [1, 2, 3, 4, 5, 6, 7]


def test_files_sort_by_number(tmp_path: Path) -> None:
    """The tenth file of a day comes after the ninth."""
    files.append(tmp_path / "1", lines(1, 12), 10)
    assert names(tmp_path / "1")[-1] == f"{DAY}.12.jsonl"
    files.append(tmp_path / "1", lines(13, 13), 10)
    assert numbers(tmp_path / "1") == list(range(1, 14))


@pytest.mark.parametrize(
    "rubbish",
    [b"\0" * 300_000, b"x" * 100_000 + b"\n", b'{"seq":"7"}\n{"seq":-7}\n', b"\xff\n", b"{}\n[]\n", b"\n\n"],
)
def test_rubbish_at_the_end_is_cut_off(tmp_path: Path, rubbish: bytes) -> None:
    """The remains of a write that a crash of the machine interrupted are truncated."""
    files.append(tmp_path / "1", lines(1, 30_000), 10**9)
    with (tmp_path / "1" / f"{DAY}.jsonl").open("ab") as file:
        file.write(rubbish)
    (tmp_path / "1" / f"{DAY}.2.jsonl").write_bytes(rubbish)
    files.append(tmp_path / "1", lines(30_001, 30_001), 10**9)
    assert numbers(tmp_path / "1") == list(range(1, 30_002))


@pytest.mark.parametrize("first", [1, 2, 999, 5000, 9999, 10_000])
def test_rows_are_written_again_from_anywhere(tmp_path: Path, first: int) -> None:
    """A replay replaces all lines from its first row on, in any file."""
    files.append(tmp_path / "1", lines(1, 10_000), 50_000)
    files.append(tmp_path / "1", lines(first, 10_001), 50_000)
    assert numbers(tmp_path / "1") == list(range(1, 10_002))


def newest_file(folder: Path) -> Path:
    """Return the newest file of job 1."""
    (of_job,) = folder.glob("1-*")
    return of_job / names(of_job)[-1]


def note(resources: Resources) -> str | None:
    """Return the note of `trainwire status` on the files of job 1."""
    with resources.engine.connect() as connection:
        return job_deliveries(connection, 1)["jsonl"][0].note


@pytest.mark.parametrize("left", [0, 1, 300, -1, None], ids=str)
def test_rows_removed_from_the_newest_file_are_written_again(
    resources: Resources, store_lines: StoreLines, folder: Path, left: int | None
) -> None:
    """The next delivery finds it truncated (to so many bytes) or removed, and writes each row once."""
    store_lines(*"abc")
    deliver(resources, folder)
    store_lines(*"de")
    deliver(resources, folder)
    file = newest_file(folder)
    if left is None:
        file.unlink()
    else:
        os.truncate(file, left if left >= 0 else file.stat().st_size + left)
    store_lines("f")
    with capture_logs() as events:
        deliver(resources, folder)
    assert contents(folder) == [*"abcdef"]
    lost = [event for event in events if event["event"] == "jsonl.rows_lost"]
    assert [(event["file"], event["last_seq"]) for event in lost] == [(file.name, 5)]
    first = lost[0]["first_seq"]
    assert (note(resources) or "").startswith(f"{file.name} had lost rows {first} to 5")
    store_lines("g")
    with capture_logs() as events:
        deliver(resources, folder)
    assert contents(folder) == [*"abcdefg"]
    assert not [event for event in events if event["event"] == "jsonl.rows_lost"]
    assert note(resources)


def test_the_rows_of_a_removed_folder_are_written_again(
    resources: Resources, store_lines: StoreLines, folder: Path
) -> None:
    """Also in several deliveries, and where the job has other files: only those of the newest one."""
    store_lines(*("x" * 300 for _ in range(10)))
    deliver(resources, folder, jsonl_max_file_bytes=1024)
    (of_job,) = folder.glob("1-*")
    shutil.rmtree(of_job)
    store_lines("y")
    deliver(resources, folder, jsonl_max_file_bytes=1024)
    found = documents(folder)
    assert [line["seq"] for line in found] == list(range(found[0]["seq"], 12))
    assert found[0]["seq"] > 1


def test_a_file_that_was_rotated_or_is_of_an_earlier_day_is_not_written_again(
    resources: Resources, store_lines: StoreLines, folder: Path
) -> None:
    """Compressed files have lost no rows; a new day begins a new file, and older ones may be removed."""
    store_lines("a")
    deliver(resources, folder)
    newest = newest_file(folder)
    newest.rename(f"{newest}.gz")
    store_lines("b")
    deliver(resources, folder)
    assert contents(folder) == ["b"]
    newest_file(folder).unlink()
    Path(f"{newest}.gz").unlink()
    with resources.engine.begin() as connection:
        state = "jsonb_set(state, '{tail,0}', '\"2026-01-01.jsonl\"')"
        connection.execute(text(f"UPDATE delivery_cursors SET state = {state}"))
    store_lines("c")
    deliver(resources, folder)
    assert contents(folder) == ["c"]
    assert note(resources) is None


def test_a_replay_writes_nothing_twice(resources: Resources, store_lines: StoreLines, folder: Path) -> None:
    """After a replay the files are the same."""
    store_lines("a", "b", "c")
    deliver(resources, folder)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE delivery_cursors SET confirmed_seq = 1"))
    deliver(resources, folder)
    assert contents(folder) == ["a", "b", "c"]


def test_a_replay_keeps_lines_whose_rows_are_gone(
    resources: Resources, store_lines: StoreLines, folder: Path
) -> None:
    """Lines of rows that retention has removed from Postgres are the only copy: they stay."""
    store_lines("a", "b", "c")
    deliver(resources, folder)
    with resources.engine.begin() as connection:
        connection.execute(text("DELETE FROM training_logs WHERE seq <= 2"))
        connection.execute(text("UPDATE training_jobs SET removed_log_seq = 2"))
        connection.execute(text("UPDATE delivery_cursors SET confirmed_seq = 0"))
    deliver(resources, folder)
    assert contents(folder) == ["a", "b", "c"]
    with resources.engine.connect() as connection:
        found = plugin_of(folder).verify(resources.settings, connection, 1)
    assert found.is_verified


def test_verify_finds_a_removed_file_until_the_next_delivery(
    resources: Resources, store_lines: StoreLines, folder: Path
) -> None:
    """`verify` reports the missing lines; once they are written again, it reports none."""
    store_lines("a", "b")
    deliver(resources, folder)
    newest_file(folder).unlink()
    with resources.engine.connect() as connection:
        found = plugin_of(folder).verify(resources.settings, connection, 1)
    assert not found.is_verified
    assert found.lines[0].startswith(
        "differs: 2 lines in Postgres ≠ 0 in the files + 0 waiting; 2 missing, 0 twice"
    )
    assert found.lines[1:] == ["missing in the files: 1-2"]
    store_lines("c")
    deliver(resources, folder)
    with resources.engine.connect() as connection:
        assert plugin_of(folder).verify(resources.settings, connection, 1).is_verified


def test_every_difference_is_named(resources: Resources, store_lines: StoreLines, folder: Path) -> None:
    """Changed, repeated, unknown and unreadable lines are reported by number; waiting rows are no difference."""
    store_lines("a", "b", "c")
    deliver(resources, folder)
    store_lines("d")
    (of_job,) = folder.iterdir()
    path = of_job / names(of_job)[0]
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second + second + third.replace(b'"c"', b'"C"') + b"rubbish\n" + b'{"seq":77}\n')
    with resources.engine.connect() as connection:
        found = plugin_of(folder).verify(resources.settings, connection, 1)
    assert found.lines == [
        "differs: 4 lines in Postgres = 3 in the files + 1 waiting; 0 missing, 1 twice, 1 different",
        "twice in the files: 2",
        "different in the files: 3",
        "in the files, not in Postgres: 77",
        "lines that are no JSON with a number: 1",
    ]


def test_a_job_that_goes_on_is_verified(resources: Resources, store_lines: StoreLines, folder: Path) -> None:
    """A row that is stored and written while the others are compared is no difference."""
    store_lines("a")
    deliver(resources, folder)
    with resources.engine.connect() as connection:
        compared = files.compare([], next(folder.iterdir()))
        assert (compared.rows, list(compared.without_row)) == (0, [1])
        assert _verdict(compared, removed_seq=0, last_seq=1).is_verified
        assert not _verdict(compared, removed_seq=0, last_seq=0).is_verified
        assert plugin_of(folder).verify(resources.settings, connection, 1).is_verified


def test_a_job_of_another_database_keeps_its_files(
    resources: Resources, store_lines: StoreLines, folder: Path
) -> None:
    """A database that begins anew with the same numbers writes beside the older files, not over them."""
    store_lines("a", "b")
    deliver(resources, folder)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET created_at = created_at + interval '1 day'"))
        connection.execute(text("UPDATE delivery_cursors SET confirmed_seq = 0"))
    deliver(resources, folder)
    assert sorted(len(numbers(of_job)) for of_job in folder.iterdir()) == [2, 2]


def failing(monkeypatch: pytest.MonkeyPatch, error: int, written: int = 5) -> None:
    """Have the disk take a few bytes, then answer with an error."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".jsonl"):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(error, os.strerror(error))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_full_disk_loses_nothing(
    resources: Resources, store_lines: StoreLines, folder: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """While the disk refuses, the cursor stays and readers see whole lines; later all is written."""
    store_lines("a")
    deliver(resources, folder)
    store_lines("b", "c")
    with monkeypatch.context() as patch:
        failing(patch, error)
        with pytest.raises(SinkUnavailable, match=os.strerror(error)):
            deliver(resources, folder)
        assert (contents(folder), confirmed(resources)) == (["a"], 1)
    deliver(resources, folder)
    assert (contents(folder), confirmed(resources)) == (["a", "b", "c"], 3)


def test_a_disk_that_is_really_full(resources: Resources, store_lines: StoreLines, tmp_path: Path) -> None:
    """The kernel's limit on file sizes of a process causes no loss either."""
    import resource  # noqa: PLC0415 - of this test alone

    folder = tmp_path / "logs"
    store_lines("a")
    deliver(resources, folder)
    store_lines("b" * 100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(SinkUnavailable, match="File too large"):
            deliver(resources, folder)
        assert contents(folder) == ["a"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    deliver(resources, folder)
    assert contents(folder) == ["a", "b" * 100_000]


def test_a_folder_that_is_no_folder(resources: Resources, store_lines: StoreLines, folder: Path) -> None:
    """A file in place of the folder is an error with its path; after its removal all rows are written."""
    folder.parent.mkdir(parents=True)
    folder.write_text("not a folder")
    store_lines("a")
    with pytest.raises(SinkUnavailable, match=r"logs/1-\d+T\d+Z: Not a directory"):
        deliver(resources, folder)
    folder.unlink()
    deliver(resources, folder)
    assert contents(folder) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(resources: Resources, store_lines: StoreLines, folder: Path) -> None:
    """A folder that may not be written is a sink that is down."""
    folder.mkdir(parents=True, mode=0o500)
    store_lines("a")
    with pytest.raises(SinkUnavailable, match="Permission denied"):
        deliver(resources, folder)
    folder.chmod(0o700)
    deliver(resources, folder)
    assert contents(folder) == ["a"]


def test_one_job_that_cannot_be_written_does_not_stop_the_others(
    resources: Resources, store_lines: StoreLines, folder: Path
) -> None:
    """Only the job whose folder another process has locked waits."""
    store_lines("a")
    deliver(resources, folder)
    store_lines("b")
    store_lines("x", job=2)
    (of_job,) = folder.glob("1-*")
    with (of_job / files.LOCK_NAME).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SinkUnavailable, match="temporarily unavailable"):
            deliver(resources, folder, retry_s=1000)
        let_it_be_tried_again(resources)
        deliver(resources, folder, retry_s=1000)
        assert contents(folder, 2) == ["x"]
        assert contents(folder) == ["a"]
    let_it_be_tried_again(resources)
    deliver(resources, folder)
    assert contents(folder) == ["a", "b"]


def let_it_be_tried_again(resources: Resources) -> None:
    """Make the next attempts of the sink and of its jobs due."""
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE sink_states SET next_probe_at = now() WHERE next_probe_at IS NOT NULL"))
        connection.execute(text("UPDATE delivery_cursors SET next_attempt_at = NULL"))


def test_old_files_are_removed(resources: Resources, store_lines: StoreLines, folder: Path) -> None:
    """Files of days before JSONL_KEEP_DAYS go, and the folders that are then empty; other files stay."""
    old, today = folder / "7-20200101T000000Z", date.today()
    files.append(old, lines(1, 2, "2020-01-01"), 10**9)
    mixed = folder / "8-20200101T000000Z"
    files.append(mixed, [*lines(1, 1, "2020-01-01"), *lines(2, 2, (today - timedelta(days=2)).isoformat())], 10**9)
    (mixed / "notes.txt").write_text("mine")
    store_lines("a")
    deliver(resources, folder, jsonl_keep_days=3)
    assert not old.exists()
    assert numbers(mixed) == [2]
    assert (mixed / "notes.txt").exists()
    assert contents(folder) == ["a"]


def test_old_files_that_cannot_be_listed_do_not_end_a_delivery(
    resources: Resources, store_lines: StoreLines, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk while old files are searched for is logged, and the new lines are confirmed."""

    def fail(path: Path) -> Iterator[Path]:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "iterdir", fail)
    store_lines("a")
    with capture_logs() as events:
        deliver(resources, folder, jsonl_keep_days=3)
    assert "jsonl.not_removed" in [event["event"] for event in events]
    assert confirmed(resources) == 1


def test_a_deleted_job_has_no_files(resources: Resources, sender: Sender, folder: Path, monkeypatch: Any) -> None:
    """A deletion removes the folder, also compressed files; it needs a process with JSONL_DIR."""
    sender.send(logs("a", "b"))
    drain(resources)
    sender.send(completion())
    drain(resources, "completions")
    deliver(resources, folder)
    (of_job,) = folder.iterdir()
    (of_job / "2020-01-01.jsonl.gz").write_bytes(b"")
    with resources.engine.begin() as connection:
        begun = begin_deletion(connection, 1, Choice(), by="a test")
    assert begun.parts["jsonl"].planned == 2
    with pytest.raises(NotSetUp, match="JSONL_DIR is not set here"):
        plugin_of(None).delete(resources, begun, begun.parts["jsonl"])
    monkeypatch.setattr("trainwire.workers.operations.job_deletion.plugin", lambda _name: plugin_of(folder))
    assert JobDeleter(resources, open_s3).run(1)
    with resources.engine.connect() as connection:
        done = find_deletion(connection, 1)
    assert done is not None
    assert (done.parts["jsonl"].state, done.parts["jsonl"].deleted) == ("done", 2)
    assert list(folder.iterdir()) == []


def test_doctor_tries_the_folder(resources: Resources, folder: Path) -> None:
    """The doctor accepts a writable folder; another is an error with its remedy."""
    assert [each.level for each in plugin_of(folder).examine(resources.settings)][-1:] == ["ok"]
    (folder / "file").write_text("")
    (found,) = plugin_of(folder / "file").examine(resources.settings)
    assert (found.level, found.check, "JSONL_DIR" in (found.remedy or "")) == ("error", "writable", True)
