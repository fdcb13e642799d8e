"""Messages that take further values until they are sent, and their copies on the disk."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.growing import GROWN_BYTES
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.recovery import resumed
from trainwire.ingest.spool.folder import About, SourceFolder
from trainwire.ingest.spool.listing import list_spool
from trainwire.ingest.spool.segments import SEGMENT_BYTES
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.messages import Metrics, Point, Progress

ORIGIN = Origin(42, 0, "0-test", 0, since_ns=5)
NO_LIMIT = 1 << 40
Read = Callable[[Outbox, Any], list[Any]]


@pytest.fixture
def buffer() -> Buffer:
    """Give a buffer."""
    return Buffer(1 << 30, threading.Event())


@pytest.fixture
def outbox(buffer: Buffer, tmp_path: Path) -> Outbox:
    """Give an outbox with a spool whose messages grow for a minute."""
    about = About(ORIGIN.job_id, ORIGIN.attempt, ORIGIN.source, ORIGIN.rank, "redis:6379/0", ORIGIN.since_ns)
    made = Outbox(ORIGIN, buffer, lambda: Spool(SourceFolder.create(tmp_path / "spool", about), NO_LIMIT))
    made.growth_s = 60.0
    return made


def log(buffer: Buffer, outbox: Outbox, line: str, **options: Any) -> None:
    """Add a line, and make messages of all values, as the sender does every 0.1 s."""
    buffer.add_lines([line], options.get("log_type", "stdout"), options.get("ts", 1), [options.get("level")])
    outbox.cut()


def after_a_kill(tmp_path: Path) -> Outbox:
    """Return the outbox of the process that sends what a process killed at this moment leaves on the disk."""
    copy = tmp_path / f"copy-{os.urandom(4).hex()}"
    shutil.copytree(tmp_path / "spool", copy)
    (folder,) = (path for path in copy.iterdir() if path.is_dir())
    claimed = SourceFolder.claim(folder)
    assert claimed is not None
    found, _ = resumed(Spool(claimed, NO_LIMIT))
    return found


def test_lines_join_the_message_that_was_not_sent(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """Until it is sent, a message takes lines with times and levels; one that was given out never changes."""
    log(buffer, outbox, "a", ts=1)
    log(buffer, outbox, "b", ts=2, level="ERROR")
    log(buffer, outbox, "c", ts=3)
    assert outbox.unsent_counts().unsent == 1
    (body,) = read_bodies(outbox, "logs")
    assert (body.lines, body.ts, body.levels) == (["a", "b", "c"], [1, 2, 3], [None, "ERROR", None])
    log(buffer, outbox, "d")
    assert [body.lines for body in read_bodies(outbox, "logs")] == [["a", "b", "c"], ["d"]]


def test_points_join_and_headers_do_not(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """Points and the newest progress join one message; a header begins another one."""
    for step in (1, 2):
        buffer.add_metric(Point(ts=step, step=step, values={"loss": 1.0 / step}))
        buffer.add_metric(Metrics(progress=Progress(current_epoch=step)))
        outbox.cut()
    buffer.add_metric(Metrics(name="digits"))
    outbox.cut()
    first, second = read_bodies(outbox, "metrics")
    assert [point.step for point in first.points] == [1, 2]
    assert (first.progress.current_epoch, first.name) == (2, None)
    assert second.name == "digits"


def test_a_killed_process_leaves_each_state_on_the_disk(buffer: Buffer, outbox: Outbox, tmp_path: Path) -> None:
    """After each cut, the disk has all lines so far under one number, and counts them once."""
    lines = [f"line {number}" for number in range(5)]
    for number, line in enumerate(lines):
        log(buffer, outbox, line)
        found = after_a_kill(tmp_path)
        (message,) = found.to_send(NO_LIMIT)["logs"]
        assert (message.seq, _lines(message.entry)) == (1, lines[: number + 1])
    (spooled,) = list_spool(tmp_path / "spool")
    assert spooled.messages == {"logs": 1}
    outbox.to_send(NO_LIMIT)
    outbox.mark_sent("logs", [1])
    assert outbox.release("logs", 1)
    assert (outbox.is_all_acked, buffer.unacked_bytes) == (True, 0)


def test_a_torn_last_write_loses_only_its_addition(buffer: Buffer, outbox: Outbox, tmp_path: Path) -> None:
    """A process that is killed in the middle of a write leaves the message as it was before."""
    log(buffer, outbox, "a")
    log(buffer, outbox, "b")
    (file,) = (tmp_path / "spool").rglob("*.seg")
    os.truncate(file, file.stat().st_size - 1)
    (message,) = after_a_kill(tmp_path).to_send(NO_LIMIT)["logs"]
    assert _lines(message.entry) == ["a"]


def test_a_message_grows_within_one_file(
    buffer: Buffer, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is never in two files, so that a file can be deleted or dropped with all of its messages."""
    monkeypatch.setattr("trainwire.ingest.spool.segments.SEGMENT_BYTES", 1000)
    assert SEGMENT_BYTES > GROWN_BYTES
    for number in range(40):
        log(buffer, outbox, f"{number} {'x' * 100}")
    assert len([*(tmp_path / "spool").rglob("*.seg")]) == 1
    outbox.to_send(NO_LIMIT)
    log(buffer, outbox, "next")
    assert len([*(tmp_path / "spool").rglob("*.seg")]) == 2


def test_what_a_message_does_not_take(
    buffer: Buffer, outbox: Outbox, read_bodies: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another output, a large message, an old one and a pace without waiting begin messages of their own."""
    log(buffer, outbox, "out")
    log(buffer, outbox, "err", log_type="stderr")
    log(buffer, outbox, "out again")
    log(buffer, outbox, os.urandom(GROWN_BYTES).hex())
    log(buffer, outbox, "after a large one")
    now = monotonic_s()
    monkeypatch.setattr("trainwire.ingest.sending.outbox.monotonic_s", lambda: now + 61)
    log(buffer, outbox, "after a minute")
    outbox.growth_s = 0.0
    log(buffer, outbox, "with room")
    shown = [[line[:20] for line in body.lines] for body in read_bodies(outbox, "logs")]
    assert [lines[0] for lines in shown if len(lines) == 1][:2] == ["out", "err"]
    assert [len(lines) for lines in shown] == [1, 1, 2, 1, 1, 1]


def _lines(entry: Any) -> list[str]:
    fields = {
        str(name).encode(): value if isinstance(value, bytes) else str(value).encode()
        for name, value in entry.items()
    }
    body: Any = decode_body("logs", open_envelope(fields))
    return list(body.lines)
