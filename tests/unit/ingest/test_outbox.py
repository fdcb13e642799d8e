"""The hold of messages: numbering, batching, bounds, acks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.factories import checkpoint
from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.outbox import Outbox
from trainwire.schemas.wire.messages import Checkpoint, Completion, Metrics, Point, Progress

Read = Callable[[Outbox, Any], list[Any]]


@pytest.fixture
def buffer() -> Buffer:
    """Give a buffer of one megabyte."""
    return Buffer(1_000_000, threading.Event())


@pytest.fixture
def outbox(buffer: Buffer) -> Outbox:
    """Give the outbox behind it."""
    return Outbox(Origin(42, 1, "0-test", 0), buffer)


def seqs(outbox: Outbox, kind: Any) -> list[int]:
    """Return the numbers of the messages that are sent next."""
    return [message.seq for message in outbox.to_send(2**40).get(kind, [])]


def test_lines_become_bounded_batches(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """A message has at most 1000 lines, in order, numbered without gaps."""
    for number in range(2500):
        buffer.add_lines([str(number)], "stdout", number)
    bodies = read_bodies(outbox, "logs")
    assert [len(body.lines) for body in bodies] == [1000, 1000, 500]
    assert [ts for body in bodies for ts in body.ts] == list(range(2500))
    assert seqs(outbox, "logs") == [1, 2, 3]


def test_who_does_not_say_its_attempt_says_when_it_began(buffer: Buffer, read_bodies: Read) -> None:
    """In every kind of body: the first line of a launcher may come long after the completion of its child."""
    for attempt, expected in ((0, 17), (1, None)):
        outbox = Outbox(Origin(42, attempt, "0-test", 0, since_ns=17), buffer)
        buffer.add_lines(["a", "\ud800"], "stdout", 1)
        buffer.add_metric(Point(ts=1, values={"loss": 1.0}))
        buffer.add_checkpoint(checkpoint())
        for kind in ("logs", "metrics", "checkpoints"):
            assert [body.started_at for body in read_bodies(outbox, kind)] == [expected]


def test_large_lines_are_batched_by_size(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """A message stays under 256 KiB unless one line alone is larger."""
    buffer.add_lines(["a" * 200_000, "b" * 100_000, "c" * 300_000, "d"], "stdout", 0)
    assert [len(body.lines) for body in read_bodies(outbox, "logs")] == [1, 1, 1, 1]


def test_stdout_and_stderr_keep_their_order(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """Lines of both streams keep their order."""
    buffer.add_lines(["a", "b"], "stdout", 1)
    buffer.add_lines(["c"], "stderr", 2)
    buffer.add_lines(["d"], "stdout", 3)
    bodies = read_bodies(outbox, "logs")
    assert [(body.log_type, body.lines) for body in bodies] == [
        ("stdout", ["a", "b"]),
        ("stderr", ["c"]),
        ("stdout", ["d"]),
    ]


def test_points_and_progress_share_a_message(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """Headers that fall into one message are merged: the newest word on each field counts."""
    buffer.add_metric(Metrics(ts=1, name="n", progress=Progress(status="running", total_epochs=5)))
    buffer.add_metric(Point(ts=2, values={"loss": 0.5}))
    buffer.add_metric(Metrics(ts=3, progress=Progress(current_epoch=2)))
    (body,) = read_bodies(outbox, "metrics")
    assert (body.name, body.ts, len(body.points)) == ("n", 3, 1)
    assert body.progress == Progress(status="running", total_epochs=5, current_epoch=2)


def test_a_full_buffer_drops_lines_first(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """Above the bound new lines are dropped and counted; points get in up to twice of it."""
    assert not buffer.add_lines(["x" * 1000] * 1000, "stdout", 0)
    taken = 1000 - buffer.dropped["logs"]
    assert 0 < taken < 1000
    assert buffer.add_metric(Point(ts=0, values={"loss": 1.0}))
    while buffer.add_metric(Point(ts=0, values={"loss": 1.0})):
        pass
    assert 2_000_000 - 1000 < buffer.size_bytes <= 2_000_000
    assert buffer.dropped["metrics"] == 1
    assert sum(len(body.lines) for body in read_bodies(outbox, "logs")) == taken


def test_a_drop_leaves_no_gap(buffer: Buffer, outbox: Outbox) -> None:
    """Dropped lines never had a number."""
    buffer.add_lines(["a"], "stdout", 0)
    outbox.cut()
    buffer.add_lines(["x" * 2_000_000], "stdout", 0)
    buffer.add_lines(["b"], "stdout", 0)
    outbox.cut()
    assert seqs(outbox, "logs") == [1, 2]
    assert buffer.dropped == {"logs": 1}


def test_the_completion_sums_up_and_comes_last(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """The completion has the last number of each kind and the drops; no message follows it."""
    buffer.add_lines(["a", "x" * 2_000_000], "stdout", 0)
    buffer.add_checkpoint(Checkpoint(ts=0, kind="last", uri="/a"))
    buffer.close(Completion(ts=0, status="completed"))
    assert not buffer.add_lines(["late"], "stdout", 0)
    (completion,) = read_bodies(outbox, "completions")
    assert completion.produced == {"logs": 1, "checkpoints": 1, "completions": 1}
    assert completion.dropped == {"logs": 2}  # the long one, and the late one


def test_acks_release_memory(buffer: Buffer, outbox: Outbox) -> None:
    """Messages are kept until they are acknowledged; an acknowledgement beyond the last message is harmless."""
    for text in "abc":
        buffer.add_lines([text], "stdout", 0)
        outbox.cut()
    outbox.mark_sent("logs", [1, 2, 3])
    outbox.release("logs", 2)
    assert outbox.awaited() == {"logs": 3}
    outbox.release("logs", 99)
    assert buffer.size_bytes == 0
    assert outbox.receipt().complete


def test_resent_messages_go_first(buffer: Buffer, outbox: Outbox) -> None:
    """Lost messages are sent before new ones; acknowledged and unsent ones are not sent again."""
    for text in "abcde":
        buffer.add_lines([text], "stdout", 0)
        outbox.cut()
    outbox.mark_sent("logs", [1, 2, 3, 4])
    outbox.release("logs", 1)
    outbox.send_again("logs", [(3, 3), (1, 2), (5, 10**18)])
    assert seqs(outbox, "logs") == [2, 3, 5]
    assert not outbox.is_all_sent
    outbox.mark_sent("logs", [2, 3, 5])
    assert outbox.is_all_sent


def test_threads_share_an_outbox(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """Lines of many threads all arrive once, those of each thread in order, while others cut."""
    size = 500

    def speak(name: str) -> None:
        for number in range(size):
            buffer.add_lines([f"{name} {number}"], "stdout", number)

    speakers = [threading.Thread(target=speak, args=(name,)) for name in "abcd"]
    for speaker in speakers:
        speaker.start()
    while any(speaker.is_alive() for speaker in speakers):
        outbox.cut()
    lines = [line for body in read_bodies(outbox, "logs") for line in body.lines]
    for name in "abcd":
        assert [line for line in lines if line.startswith(name)] == [f"{name} {n}" for n in range(size)]
    assert buffer.is_empty


def test_one_bad_line_takes_no_other_with_it(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """A line that has no form is left out and counted; its neighbours keep their order, times and levels."""
    bad: Any = object()
    for ts, text in enumerate(["a", bad, "b\udcff", "c"]):
        buffer.add_lines([text], "stdout", ts, ["INFO" if text == "c" else None])
    (body,) = read_bodies(outbox, "logs")
    assert (body.lines, body.ts, body.levels) == (["a", "b\ufffd", "c"], [0, 2, 3], [None, None, "INFO"])
    assert buffer.dropped == {"logs": 1}


def test_one_bad_point_takes_no_other_with_it(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """A point or a field that has no form is left out and counted; points, name and progress around it stay."""
    bad: Any = Path("x")
    buffer.add_metric(Metrics(ts=1, name="n", params={"bad": 2**70}, progress=Progress(status="running")))
    for ts, path in enumerate([None, bad, "/a"]):
        buffer.add_metric(Point(ts=ts, values={"loss": 1.0}, checkpoint_path=path))
    (body,) = read_bodies(outbox, "metrics")
    assert [point.ts for point in body.points] == [0, 2]
    assert (body.name, body.params, body.progress, body.rank) == ("n", None, Progress(status="running"), 0)
    assert buffer.dropped == {"metrics": 2}


def test_a_message_of_bad_lines_alone_is_counted(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """Where nothing can be sent every line is counted, and the next message gets the number."""
    bad: Any = object()
    buffer.add_lines([bad] * 3, "stderr", 0)
    buffer.add_lines(["good"], "stdout", 0)
    (body,) = read_bodies(outbox, "logs")
    assert body.lines == ["good"]
    assert seqs(outbox, "logs") == [1]
    assert buffer.dropped == {"logs": 3}
    assert buffer.is_empty


def test_the_completion_goes_without_what_is_bad_in_it(buffer: Buffer, outbox: Outbox, read_bodies: Read) -> None:
    """A completion with a field that has no form is sent without the field: the job ends."""
    bad: Any = object()
    buffer.close(Completion(ts=0, status="failed", error_message="why", best_epoch=bad))
    (completion,) = read_bodies(outbox, "completions")
    assert (completion.status, completion.error_message, completion.best_epoch) == ("failed", "why", None)
    assert completion.produced == {"completions": 1}


def test_a_body_without_a_form_on_the_wire_is_counted(
    buffer: Buffer, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """An unencodable body is dropped, counted and logged; the next one gets its number."""
    buffer.add_metric(Metrics(params={"huge": 2**70}))
    outbox.cut()
    buffer.add_metric(Point(ts=0, values={"loss": 1.0}))
    outbox.cut()
    assert buffer.dropped == {"metrics": 1}
    assert seqs(outbox, "metrics") == [1]
    assert "job 42" in caplog.text
