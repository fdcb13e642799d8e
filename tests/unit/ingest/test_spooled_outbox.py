"""An outbox with a disk behind it: little memory, nothing lost with the process, a stated end when it is full."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.sending import outbox as outbox_module
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.sending.recovery import outbox_of_inferred_end, resumed
from trainwire.ingest.settings.setting_groups import FullPolicy
from trainwire.ingest.spool.folder import About, SourceFolder
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import LOST, decode_loss, open_envelope
from trainwire.schemas.wire.messages import Checkpoint, Completion, Logs, Point

ORIGIN = Origin(42, 1, "0-test", 0, since_ns=5)
NO_LIMIT = 1 << 40


def open_spool(path: Path, limit_bytes: int = NO_LIMIT) -> Spool:
    """Make the spool of a new source."""
    about = About(ORIGIN.job_id, ORIGIN.attempt, ORIGIN.source, ORIGIN.rank, "redis:6379/0", ORIGIN.since_ns)
    return Spool(SourceFolder.create(path, about), limit_bytes)


def make(spool: Spool, policy: FullPolicy = "drop_oldest_logs") -> tuple[Buffer, Outbox]:
    """Make a buffer and the outbox behind it."""
    buffer = Buffer(1 << 30, threading.Event())
    return buffer, Outbox(ORIGIN, buffer, lambda: spool, policy)


def said(outbox: Outbox, kind: Kind = "logs") -> list[Any]:
    """Return the bodies that would be sent next, by seq without a hole."""
    batch = outbox.to_send(NO_LIMIT).get(kind, [])
    assert [message.seq for message in batch] == list(range(batch[0].seq, batch[-1].seq + 1))
    bodies = []
    for message in batch:
        fields = {str(name).encode(): _raw(value) for name, value in message.entry.items()}
        bodies.append(decode_body(kind, open_envelope(fields)))
    return bodies


def _raw(value: str | int | bytes) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def noise(number: int) -> str:
    """A line of 200 kB that no compression makes smaller than 100 kB."""
    return f"{number} {os.urandom(100_000).hex()}"


def numbers(bodies: list[Logs]) -> list[int]:
    """Return the numbers of the lines."""
    return [int(line.partition(" ")[0]) for body in bodies for line in body.lines]


def say(buffer: Buffer, outbox: Outbox, lines: range) -> None:
    """Add lines, each as a message of its own."""
    for number in lines:
        buffer.add_lines([noise(number)], "stdout", number)
        outbox.cut()


def test_memory_is_bounded_and_the_rest_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound messages are on the disk alone, and go out in order all the same."""
    monkeypatch.setattr(outbox_module, "MEMORY_BYTES", 500_000)
    buffer, outbox = make(open_spool(tmp_path))
    say(buffer, outbox, range(50))
    assert buffer.size_bytes <= 500_000
    assert numbers(said(outbox)) == list(range(50))
    outbox.mark_sent("logs", range(1, 51))
    outbox.release("logs", 20)
    outbox.send_again("logs", [(30, 35)])
    assert numbers(said(outbox)) == list(range(29, 35))
    outbox.release("logs", 50)
    assert buffer.size_bytes == 0


def test_another_process_sends_what_is_left(tmp_path: Path) -> None:
    """All four kinds survive their process, with their numbers."""
    spool = open_spool(tmp_path)
    buffer, outbox = make(spool)
    buffer.add_lines(["a", "b"], "stdout", 1)
    buffer.add_metric(Point(ts=2, values={"loss": 0.0}))
    buffer.add_checkpoint(Checkpoint(ts=3, kind="best", uri="/x"))
    buffer.close(Completion(ts=4, status="completed"))
    while outbox.cut():
        pass
    outbox.close()
    (path,) = tmp_path.iterdir()
    folder = SourceFolder.claim(path)
    assert folder is not None
    rest, _ = resumed(Spool(folder, NO_LIMIT))
    assert rest.origin == ORIGIN
    assert said(rest)[0].lines == ["a", "b"]
    assert said(rest, "metrics")[0].points[0].values == {"loss": 0.0}
    assert said(rest, "checkpoints")[0].uri == "/x"
    assert said(rest, "completions")[0].produced == {
        "logs": 1,
        "metrics": 1,
        "checkpoints": 1,
        "completions": 1,
    }
    for kind, batch in rest.to_send(NO_LIMIT).items():
        rest.mark_sent(kind, [message.seq for message in batch])
        rest.release(kind, 1)
    assert rest.is_all_acked
    rest.close()
    assert not path.exists()


def leave(path: Path, dropped: int = 0) -> None:
    """Leave two lines as a process that was killed, which has dropped some before."""
    buffer, outbox = make(open_spool(path))
    buffer.count_dropped("logs", dropped)
    buffer.add_lines(["a", "b"], "stdout", 1)
    outbox.cut()
    outbox.forget()


def resumed_from(path: Path) -> tuple[Outbox, Completion | None]:
    """Resume the one source of a spool; return its outbox and the inferred end."""
    (folder,) = path.iterdir()
    claimed = SourceFolder.claim(folder)
    assert claimed is not None
    return resumed(Spool(claimed, NO_LIMIT))


def ended(end: Completion | None) -> Outbox:
    """Return the outbox of the inferred end of a source."""
    assert end is not None
    outbox = outbox_of_inferred_end(ORIGIN, end)
    outbox.cut()
    return outbox


def test_the_end_of_a_killed_source_is_inferred(tmp_path: Path) -> None:
    """How much it made and dropped, and when it began, under a name that leaves the completion's number free."""
    leave(tmp_path, dropped=3)
    outbox, inferred = resumed_from(tmp_path)
    assert "completions" not in outbox.to_send(NO_LIMIT)
    end_outbox = ended(inferred)
    (end,) = said(end_outbox, "completions")
    assert (end.status, end.of, end.is_of_job) == ("ended", ORIGIN.source, False)
    assert end.produced == {"logs": 1}
    assert end.dropped == outbox.receipt().dropped == {"logs": 3}
    assert (end.started_at, end.rank) == (5, ORIGIN.rank)
    assert end_outbox.origin.source.startswith("0-test~end-")


def test_the_same_leftovers_have_the_same_end(tmp_path: Path) -> None:
    """Sent twice it is a resend; that of a later copy is another message."""
    leave(tmp_path)
    names = []
    for _ in range(2):
        outbox, end = resumed_from(tmp_path)
        names.append(ended(end).origin.source)
        outbox.forget()
    assert names[0] == names[1]
    assert end is not None
    end.produced = {"logs": 2}
    assert ended(end).origin.source != names[0]


def test_of_a_source_that_left_its_completion_no_end_is_inferred(tmp_path: Path) -> None:
    """It counted itself."""
    buffer, outbox = make(open_spool(tmp_path))
    buffer.close(Completion(ts=1, status="completed"))
    outbox.cut()
    outbox.forget()
    assert resumed_from(tmp_path)[1] is None


def test_of_a_source_that_said_nothing_there_is_no_end(tmp_path: Path) -> None:
    """Killed before its first message: its folder is deleted, and no end is sent."""
    open_spool(tmp_path).close()
    outbox, _ = resumed_from(tmp_path)
    assert outbox.is_all_acked
    outbox.close()
    assert not list(tmp_path.iterdir())


def test_what_is_dropped_is_noted_on_the_disk(tmp_path: Path) -> None:
    """Each call writes the counts of drops by kind; a damaged file counts as none."""
    buffer, outbox = make(open_spool(tmp_path))
    buffer.add_lines(["a"], "stdout", 1)
    outbox.cut()
    for dropped in range(1, 4):
        buffer.count_dropped("metrics", dropped)
        buffer.count_dropped("values")
        outbox.cut()
    outbox.forget()
    left, _ = resumed_from(tmp_path)
    assert left.receipt().dropped == {"metrics": 6, "values": 3}
    left.forget()
    (note,) = tmp_path.glob("*/drops.rec")
    note.write_bytes(note.read_bytes()[:-1])
    assert resumed_from(tmp_path)[0].receipt().dropped == {}


def test_the_receipt_counts_what_is_on_the_disk(tmp_path: Path) -> None:
    """Unstored messages on the disk are spooled; none are if the folder was deleted."""
    buffer, outbox = make(open_spool(tmp_path))
    say(buffer, outbox, range(5))
    outbox.mark_sent("logs", [1, 2, 3])
    outbox.release("logs", 2)
    receipt = outbox.receipt()
    assert (receipt.produced, receipt.stored, receipt.spooled) == ({"logs": 5}, {"logs": 2}, {"logs": 3})
    shutil.rmtree(tmp_path)
    assert outbox.receipt().spooled == {"logs": 0}


def test_a_full_spool_drops_the_oldest_logs_and_counts_them(tmp_path: Path) -> None:
    """Metrics, checkpoints, the completion and the newest logs stay; the completion counts the dropped lines."""
    buffer, outbox = make(open_spool(tmp_path, limit_bytes=5_000_000))
    buffer.add_metric(Point(ts=1, values={"loss": 1.0}))
    say(buffer, outbox, range(100))
    buffer.add_checkpoint(Checkpoint(ts=3, kind="best", uri="/x"))
    buffer.close(Completion(ts=4, status="completed"))
    while outbox.cut():
        pass
    kept = numbers(said(outbox))
    assert kept == list(range(100 - len(kept), 100))
    assert 20 < len(kept) < 60
    assert len(said(outbox)) == 100
    (completion,) = said(outbox, "completions")
    assert completion.dropped == {"logs": 100 - len(kept)}
    assert len(said(outbox, "metrics")) == len(said(outbox, "checkpoints")) == 1


def test_what_redis_has_is_not_dropped(tmp_path: Path) -> None:
    """Messages that were sent and wait for their ack are no room to make; new lines go instead."""
    buffer, outbox = make(open_spool(tmp_path, limit_bytes=3_000_000))
    say(buffer, outbox, range(29))
    outbox.mark_sent("logs", range(1, 30))
    say(buffer, outbox, range(29, 60))
    outbox.send_again("logs", [(1, 29)])
    kept = numbers(said(outbox))
    assert kept[:29] == list(range(29))
    assert len(kept) + buffer.dropped["logs"] == 60


def test_drop_newest_keeps_the_oldest(tmp_path: Path) -> None:
    """With that policy new values for a full spool are dropped and counted, without a gap."""
    buffer, outbox = make(open_spool(tmp_path, limit_bytes=3_000_000), "drop_newest")
    say(buffer, outbox, range(60))
    kept = numbers(said(outbox))
    assert kept == list(range(len(kept)))
    assert 20 < len(kept) == 60 - buffer.dropped["logs"]
    assert outbox.receipt().produced == {"logs": len(kept)}


def test_block_waits_for_room(tmp_path: Path) -> None:
    """With that policy nothing is dropped: values wait for room, or for the end of the run."""
    buffer, outbox = make(open_spool(tmp_path, limit_bytes=3_000_000), "block")
    say(buffer, outbox, range(60))
    kept = numbers(said(outbox))
    assert 20 < len(kept) < 60
    outbox.mark_sent("logs", range(1, len(kept) + 1))
    outbox.release("logs", len(kept))
    buffer.close(Completion(ts=4, status="completed"))
    while outbox.cut():
        pass
    assert numbers(said(outbox)) == list(range(len(kept), 60))
    assert buffer.dropped == {}


def test_a_disk_that_fails_leaves_the_messages_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk error is logged once; no message is lost while the process lives, and there is no gap afterwards."""
    spool = open_spool(tmp_path)
    buffer, outbox = make(spool)
    say(buffer, outbox, range(2))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(spool, "append", fail)
        say(buffer, outbox, range(2, 4))
    say(buffer, outbox, range(4, 6))
    assert numbers(said(outbox)) == list(range(6))
    assert outbox.receipt().spooled == {"logs": 4}
    assert [record.getMessage() for record in caplog.records] == [
        f"job 42: the spool {spool.folder.path} does not take messages (No space left on device): "
        "messages are kept in memory",
        "job 42: the disk takes messages again",
    ]


def test_without_a_place_for_it_there_is_no_spool(caplog: pytest.LogCaptureFixture) -> None:
    """A folder that cannot be created is logged once, and the messages are kept in memory."""
    buffer = Buffer(1 << 30, threading.Event())
    outbox = Outbox(ORIGIN, buffer, lambda: open_spool(Path("/proc/no/spool")))
    say(buffer, outbox, range(3))
    assert numbers(said(outbox)) == [0, 1, 2]
    outbox.close()
    assert len(caplog.records) == 1
    assert "there is no spool (No such file or directory)" in caplog.text


def losses(outbox: Outbox) -> list[tuple[int, int, str]]:
    """Return which messages would be declared lost next: first, last and the reason."""
    found = []
    for message in outbox.to_send(NO_LIMIT).get("logs", []):
        if message.entry["enc"] == LOST:
            envelope = open_envelope({str(name).encode(): _raw(value) for name, value in message.entry.items()})
            loss = decode_loss(envelope)
            assert loss.last == message.seq
            assert loss.started_at == ORIGIN.since_ns
            found.append((envelope.seq, loss.last, loss.reason))
    return found


def test_acks_that_go_back_bring_back_what_is_on_the_disk(tmp_path: Path) -> None:
    """Of messages that Postgres has lost the spool's are sent again; one entry declares the deleted ones lost."""
    buffer, outbox = make(open_spool(tmp_path))
    say(buffer, outbox, range(50))
    outbox.mark_sent("logs", range(1, 51))
    outbox.release("logs", 50)
    kept = min(int(path.stem.partition("-")[2]) for path in tmp_path.glob("*/logs-*.seg"))
    assert 10 < kept < 50
    assert outbox.step_back("logs", 7)
    assert outbox.awaited() == {"logs": 50}
    outbox.send_again("logs", [(8, 50)])
    assert losses(outbox) == [(8, kept - 1, "restored")]
    sent = [message.seq for message in outbox.to_send(NO_LIMIT)["logs"]]
    assert sent == list(range(kept - 1, 51))
    outbox.mark_sent("logs", sent)
    assert outbox.is_all_sent
    assert not outbox.step_back("logs", 7)
    outbox.release("logs", 50, lost=kept - 8)
    receipt = outbox.receipt()
    assert (receipt.stored, receipt.lost) == ({"logs": 50 - (kept - 8)}, {"logs": kept - 8})
    assert outbox.is_all_acked
    assert not receipt.unsettled
    assert not receipt.complete


def test_without_a_spool_all_that_was_acked_is_declared_lost() -> None:
    """Messages that are still in memory are sent again; the others are one range."""
    buffer = Buffer(1 << 30, threading.Event())
    outbox = Outbox(ORIGIN, buffer)
    say(buffer, outbox, range(10))
    outbox.mark_sent("logs", range(1, 11))
    outbox.release("logs", 8)
    outbox.step_back("logs", 2)
    outbox.send_again("logs", [(3, 10)])
    assert losses(outbox) == [(3, 8, "restored")]
    assert [message.seq for message in outbox.to_send(NO_LIMIT)["logs"]] == [8, 9, 10]


def test_damaged_messages_are_declared_lost_by_the_process_that_sends_the_rest(tmp_path: Path) -> None:
    """A spool with a file of zeros: one entry for all of its messages, and then the readable ones."""
    buffer, outbox = make(open_spool(tmp_path))
    say(buffer, outbox, range(30))
    outbox.close()
    first, second, *_ = sorted(tmp_path.glob("*/logs-*.seg"))
    first.write_bytes(bytes(first.stat().st_size))
    readable = int(second.stem.partition("-")[2])
    rest, _ = resumed_from(tmp_path)
    assert losses(rest) == [(1, readable - 1, "damaged")]
    assert [message.seq for message in rest.to_send(NO_LIMIT)["logs"]] == list(range(readable - 1, 31))


def test_an_ack_of_before_a_restore_releases_nothing_unsent(tmp_path: Path) -> None:
    """A process that sends a leftover sends all of it, though Redis has an old ack that covers it."""
    buffer, outbox = make(open_spool(tmp_path))
    say(buffer, outbox, range(3))
    outbox.close()
    rest, _ = resumed_from(tmp_path)
    assert rest.sent_kinds() == []
    rest.release("logs", 3)
    assert [message.seq for message in rest.to_send(NO_LIMIT)["logs"]] == [1, 2, 3]
    rest.mark_sent("logs", [1, 2, 3])
    assert rest.sent_kinds() == ["logs"]
