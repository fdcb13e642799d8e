"""An outbox with a disk behind it: little memory, nothing lost with the process, a stated end when it is full."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from trainwire.ingest.origin import Origin
from trainwire.ingest.sending import outbox as outbox_module
from trainwire.ingest.sending.buffer import Intake
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.settings import FullPolicy
from trainwire.ingest.spool.folder import About, SourceFolder
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.keys import Kind
from trainwire.schemas.messages import Checkpoint, Completion, Logs, Point
from trainwire.schemas.wire import LOST, decode_body, decode_loss, open_envelope

ORIGIN = Origin(42, 1, "0-test", 0, since_ns=5)
NO_LIMIT = 1 << 40


def open_spool(path: Path, limit_bytes: int = NO_LIMIT) -> Spool:
    """Make the spool of a new source."""
    about = About(ORIGIN.job_id, ORIGIN.attempt, ORIGIN.source, ORIGIN.rank, "redis:6379/0", ORIGIN.since_ns)
    return Spool(SourceFolder.create(path, about), limit_bytes)


def make(spool: Spool, policy: FullPolicy = "drop_oldest_logs") -> tuple[Intake, Outbox]:
    """Make an intake and the outbox behind it."""
    intake = Intake(1 << 30, threading.Event())
    return intake, Outbox(ORIGIN, intake, lambda: spool, policy)


def said(outbox: Outbox, kind: Kind = "logs") -> list[Any]:
    """Return the bodies that would be sent next, by seq without a hole."""
    batch = outbox.to_send(NO_LIMIT).get(kind, [])
    assert [held.seq for held in batch] == list(range(batch[0].seq, batch[-1].seq + 1))
    bodies = []
    for held in batch:
        fields = {str(name).encode(): _raw(value) for name, value in held.entry.items()}
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


def say(intake: Intake, outbox: Outbox, lines: range) -> None:
    """Say lines, each a message of its own."""
    for number in lines:
        intake.add_lines([noise(number)], "stdout", number)
        outbox.cut()


def test_memory_is_bounded_and_the_rest_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound messages are on the disk alone, and go out in order all the same."""
    monkeypatch.setattr(outbox_module, "MEMORY_BYTES", 500_000)
    intake, outbox = make(open_spool(tmp_path))
    say(intake, outbox, range(50))
    assert intake.size_bytes <= 500_000
    assert numbers(said(outbox)) == list(range(50))
    outbox.mark_sent("logs", range(1, 51))
    outbox.release("logs", 20)
    outbox.send_again("logs", [(30, 35)])
    assert numbers(said(outbox)) == list(range(29, 35))
    outbox.release("logs", 50)
    assert intake.size_bytes == 0


def test_another_process_sends_what_is_left(tmp_path: Path) -> None:
    """All four kinds survive their process, with their numbers."""
    spool = open_spool(tmp_path)
    intake, outbox = make(spool)
    intake.add_lines(["a", "b"], "stdout", 1)
    intake.add_metric(Point(ts=2, values={"loss": 0.0}))
    intake.add_checkpoint(Checkpoint(ts=3, kind="best", uri="/x"))
    intake.close(Completion(ts=4, status="completed"))
    while outbox.cut():
        pass
    outbox.close()
    (path,) = tmp_path.iterdir()
    folder = SourceFolder.claim(path)
    assert folder is not None
    resumed = Outbox.resumed(Spool(folder, NO_LIMIT))
    assert resumed.origin == ORIGIN
    assert said(resumed)[0].lines == ["a", "b"]
    assert said(resumed, "metrics")[0].points[0].values == {"loss": 0.0}
    assert said(resumed, "checkpoints")[0].uri == "/x"
    assert said(resumed, "completions")[0].produced == {
        "logs": 1,
        "metrics": 1,
        "checkpoints": 1,
        "completions": 1,
    }
    for kind, batch in resumed.to_send(NO_LIMIT).items():
        resumed.mark_sent(kind, [held.seq for held in batch])
        resumed.release(kind, 1)
    assert resumed.is_all_acked
    resumed.close()
    assert not path.exists()


def leave(path: Path, dropped: int = 0) -> None:
    """Leave two lines as a process that was killed, which has dropped some before."""
    intake, outbox = make(open_spool(path))
    intake.count_dropped("logs", dropped)
    intake.add_lines(["a", "b"], "stdout", 1)
    outbox.cut()
    outbox.forget()


def resumed_from(path: Path) -> Outbox:
    """Take over what the one source there has left."""
    (folder,) = path.iterdir()
    claimed = SourceFolder.claim(folder)
    assert claimed is not None
    return Outbox.resumed(Spool(claimed, NO_LIMIT))


def ended(resumed: Outbox) -> Outbox:
    """Return the outbox of the end that is inferred of a source."""
    assert resumed.inferred_end is not None
    outbox = Outbox.of_inferred_end(resumed.origin, resumed.inferred_end)
    outbox.cut()
    return outbox


def test_the_end_of_a_killed_source_is_inferred(tmp_path: Path) -> None:
    """How much it made and dropped, and when it began, under a name that leaves the completion's number free."""
    leave(tmp_path, dropped=3)
    outbox = resumed_from(tmp_path)
    assert "completions" not in outbox.to_send(NO_LIMIT)
    end_outbox = ended(outbox)
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
        outbox = resumed_from(tmp_path)
        names.append(ended(outbox).origin.source)
        outbox.forget()
    assert names[0] == names[1]
    assert outbox.inferred_end is not None
    outbox.inferred_end.produced = {"logs": 2}
    assert ended(outbox).origin.source != names[0]


def test_of_a_source_that_left_its_completion_no_end_is_inferred(tmp_path: Path) -> None:
    """It counted itself."""
    intake, outbox = make(open_spool(tmp_path))
    intake.close(Completion(ts=1, status="completed"))
    outbox.cut()
    outbox.forget()
    assert resumed_from(tmp_path).inferred_end is None


def test_of_a_source_that_said_nothing_there_is_no_end(tmp_path: Path) -> None:
    """Killed before its first message: its folder goes, and nobody hears of it."""
    open_spool(tmp_path).close()
    outbox = resumed_from(tmp_path)
    assert outbox.is_all_acked
    outbox.close()
    assert not list(tmp_path.iterdir())


def test_what_is_dropped_is_noted_on_the_disk(tmp_path: Path) -> None:
    """Each cut keeps the counts, whatever was dropped and why; a damaged note says nothing."""
    intake, outbox = make(open_spool(tmp_path))
    intake.add_lines(["a"], "stdout", 1)
    outbox.cut()
    for dropped in range(1, 4):
        intake.count_dropped("metrics", dropped)
        intake.count_dropped("values")
        outbox.cut()
    outbox.forget()
    left = resumed_from(tmp_path)
    assert left.receipt().dropped == {"metrics": 6, "values": 3}
    left.forget()
    (note,) = tmp_path.glob("*/drops.rec")
    note.write_bytes(note.read_bytes()[:-1])
    assert resumed_from(tmp_path).receipt().dropped == {}


def test_the_receipt_counts_what_is_on_the_disk(tmp_path: Path) -> None:
    """What is not stored and on the disk is spooled; where somebody deleted the folder nothing is."""
    intake, outbox = make(open_spool(tmp_path))
    say(intake, outbox, range(5))
    outbox.mark_sent("logs", [1, 2, 3])
    outbox.release("logs", 2)
    receipt = outbox.receipt()
    assert (receipt.produced, receipt.stored, receipt.spooled) == ({"logs": 5}, {"logs": 2}, {"logs": 3})
    shutil.rmtree(tmp_path)
    assert outbox.receipt().spooled == {"logs": 0}


def test_a_full_spool_drops_the_oldest_logs_and_counts_them(tmp_path: Path) -> None:
    """Metrics, checkpoints and the completion stay; of the logs the newest; what went is in the completion."""
    intake, outbox = make(open_spool(tmp_path, limit_bytes=5_000_000))
    intake.add_metric(Point(ts=1, values={"loss": 1.0}))
    say(intake, outbox, range(100))
    intake.add_checkpoint(Checkpoint(ts=3, kind="best", uri="/x"))
    intake.close(Completion(ts=4, status="completed"))
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
    intake, outbox = make(open_spool(tmp_path, limit_bytes=3_000_000))
    say(intake, outbox, range(29))
    outbox.mark_sent("logs", range(1, 30))
    say(intake, outbox, range(29, 60))
    outbox.send_again("logs", [(1, 29)])
    kept = numbers(said(outbox))
    assert kept[:29] == list(range(29))
    assert len(kept) + intake.dropped["logs"] == 60


def test_drop_newest_keeps_the_oldest(tmp_path: Path) -> None:
    """With that policy what is said to a full spool is left out and counted, and leaves no gap."""
    intake, outbox = make(open_spool(tmp_path, limit_bytes=3_000_000), "drop_newest")
    say(intake, outbox, range(60))
    kept = numbers(said(outbox))
    assert kept == list(range(len(kept)))
    assert 20 < len(kept) == 60 - intake.dropped["logs"]
    assert outbox.receipt().produced == {"logs": len(kept)}


def test_block_waits_for_room(tmp_path: Path) -> None:
    """With that policy nothing is dropped: what waits is cut once there is room, or when the run ends."""
    intake, outbox = make(open_spool(tmp_path, limit_bytes=3_000_000), "block")
    say(intake, outbox, range(60))
    kept = numbers(said(outbox))
    assert 20 < len(kept) < 60
    outbox.mark_sent("logs", range(1, len(kept) + 1))
    outbox.release("logs", len(kept))
    intake.close(Completion(ts=4, status="completed"))
    while outbox.cut():
        pass
    assert numbers(said(outbox)) == list(range(len(kept), 60))
    assert intake.dropped == {}


def test_a_disk_that_fails_leaves_the_messages_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the disk is said once; nothing is lost while the process lives, and it is no gap afterwards."""
    spool = open_spool(tmp_path)
    intake, outbox = make(spool)
    say(intake, outbox, range(2))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(spool, "append", fail)
        say(intake, outbox, range(2, 4))
    say(intake, outbox, range(4, 6))
    assert numbers(said(outbox)) == list(range(6))
    assert outbox.receipt().spooled == {"logs": 4}
    assert [record.getMessage() for record in caplog.records] == [
        f"job 42: the spool {spool.folder.path} does not take messages (No space left on device): "
        "messages are kept in memory"
    ]


def test_without_a_place_for_it_there_is_no_spool(caplog: pytest.LogCaptureFixture) -> None:
    """A folder that cannot be made is said once, and the messages are kept in memory."""
    intake = Intake(1 << 30, threading.Event())
    outbox = Outbox(ORIGIN, intake, lambda: open_spool(Path("/proc/no/spool")))
    say(intake, outbox, range(3))
    assert numbers(said(outbox)) == [0, 1, 2]
    outbox.close()
    assert len(caplog.records) == 1
    assert "there is no spool (No such file or directory)" in caplog.text


def losses(outbox: Outbox) -> list[tuple[int, int, str]]:
    """Return which messages would be declared lost next: first, last and the reason."""
    found = []
    for held in outbox.to_send(NO_LIMIT).get("logs", []):
        if held.entry["enc"] == LOST:
            envelope = open_envelope({str(name).encode(): _raw(value) for name, value in held.entry.items()})
            loss = decode_loss(envelope)
            assert loss.last == held.seq
            assert loss.started_at == ORIGIN.since_ns
            found.append((envelope.seq, loss.last, loss.reason))
    return found


def test_acks_that_go_back_bring_back_what_is_on_the_disk(tmp_path: Path) -> None:
    """Of messages that Postgres has lost the spool's are sent again; one entry declares the deleted ones lost."""
    intake, outbox = make(open_spool(tmp_path))
    say(intake, outbox, range(50))
    outbox.mark_sent("logs", range(1, 51))
    outbox.release("logs", 50)
    kept = min(int(path.stem.partition("-")[2]) for path in tmp_path.glob("*/logs-*.seg"))
    assert 10 < kept < 50
    assert outbox.step_back("logs", 7)
    assert outbox.awaited() == {"logs": 50}
    outbox.send_again("logs", [(8, 50)])
    assert losses(outbox) == [(8, kept - 1, "restored")]
    sent = [held.seq for held in outbox.to_send(NO_LIMIT)["logs"]]
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
    intake = Intake(1 << 30, threading.Event())
    outbox = Outbox(ORIGIN, intake)
    say(intake, outbox, range(10))
    outbox.mark_sent("logs", range(1, 11))
    outbox.release("logs", 8)
    outbox.step_back("logs", 2)
    outbox.send_again("logs", [(3, 10)])
    assert losses(outbox) == [(3, 8, "restored")]
    assert [held.seq for held in outbox.to_send(NO_LIMIT)["logs"]] == [8, 9, 10]


def test_damaged_messages_are_declared_lost_by_the_process_that_sends_the_rest(tmp_path: Path) -> None:
    """A spool with a file of zeros: one entry for all of its messages, and then the readable ones."""
    intake, outbox = make(open_spool(tmp_path))
    say(intake, outbox, range(30))
    outbox.close()
    first, second, *_ = sorted(tmp_path.glob("*/logs-*.seg"))
    first.write_bytes(bytes(first.stat().st_size))
    readable = int(second.stem.partition("-")[2])
    resumed = resumed_from(tmp_path)
    assert losses(resumed) == [(1, readable - 1, "damaged")]
    assert [held.seq for held in resumed.to_send(NO_LIMIT)["logs"]] == list(range(readable - 1, 31))


def test_an_ack_of_before_a_restore_releases_nothing_unsent(tmp_path: Path) -> None:
    """A process that sends a leftover sends all of it, though Redis has an old ack that covers it."""
    intake, outbox = make(open_spool(tmp_path))
    say(intake, outbox, range(3))
    outbox.close()
    resumed = resumed_from(tmp_path)
    assert resumed.sent_kinds() == []
    resumed.release("logs", 3)
    assert [held.seq for held in resumed.to_send(NO_LIMIT)["logs"]] == [1, 2, 3]
    resumed.mark_sent("logs", [1, 2, 3])
    assert resumed.sent_kinds() == ["logs"]
