"""Small messages that are sent as one entry."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.ingest.identity.origin import Origin
from trainwire.ingest.sending.buffer import Buffer
from trainwire.ingest.sending.encoding import JOINED_BYTES
from trainwire.ingest.sending.outbox import Outbox
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.entries import LOST, Entry, open_envelope, raw_value
from trainwire.schemas.wire.joining import check_parts, split
from trainwire.schemas.wire.messages import Logs, Message, Metrics, Point, Progress
from trainwire.schemas.wire.validation import InvalidMessage
from trainwire.workers.drain.decoding import RawEntry, decode

NO_LIMIT = 1 << 40


@pytest.fixture
def buffer() -> Buffer:
    """Give a buffer."""
    return Buffer(1 << 30, threading.Event())


@pytest.fixture
def outbox(buffer: Buffer) -> Outbox:
    """Give the outbox behind it."""
    return Outbox(Origin(42, 0, "0-test", 0, since_ns=5), buffer)


def log(buffer: Buffer, outbox: Outbox, line: str, **options: Any) -> None:
    """Make a message of one line."""
    buffer.add_lines([line], options.get("log_type", "stdout"), options.get("ts", 1), [options.get("level")])
    outbox.cut()


def sent(outbox: Outbox, kind: Kind = "logs") -> list[Message]:
    """Return what the workers decode from the entries that are sent next."""
    found = [read(kind, message.entry) for message in outbox.to_send(NO_LIMIT, may_join=True)[kind]]
    return [message for message in found if isinstance(message, Message)]


def read(kind: Kind, entry: Entry) -> Any:
    """Decode an entry as a drain does."""
    raw = RawEntry("1-1", {name.encode(): raw_value(value) for name, value in entry.items()})
    return decode(kind, raw)[0]


def test_lines_share_an_entry(buffer: Buffer, outbox: Outbox) -> None:
    """Three messages become one entry with times, levels and the number of lines of each."""
    log(buffer, outbox, "a", ts=1)
    log(buffer, outbox, "b", ts=2, level="ERROR")
    buffer.add_lines(["c", "d"], "stdout", 3)
    outbox.cut()
    (message,) = sent(outbox)
    body: Any = message.body
    assert (message.first, message.seq, message.parts) == (1, 3, (1, 1, 2))
    assert (body.lines, body.ts) == (["a", "b", "c", "d"], [1, 2, 3, 4])
    assert body.levels == [None, "ERROR", None, None]
    assert [[*part.body.lines] for part in split(message)] == [["a"], ["b"], ["c", "d"]]  # type: ignore[union-attr]
    assert [part.seq for part in split(message)] == [1, 2, 3]


def test_points_share_an_entry_and_headers_do_not(buffer: Buffer, outbox: Outbox) -> None:
    """Points are joined with the newest progress; a message that describes the attempt stays alone."""
    for step in (1, 2):
        buffer.add_metric(Point(ts=step, step=step, values={"loss": 1.0 / step}))
        buffer.add_metric(Metrics(progress=Progress(current_epoch=step, total_epochs=9 if step == 1 else None)))
        outbox.cut()
    buffer.add_metric(Metrics(name="digits"))
    outbox.cut()
    first, second = sent(outbox, "metrics")
    body: Any = first.body
    assert ([point.step for point in body.points], first.parts) == ([1, 2], (1, 1))
    assert (body.progress.current_epoch, body.progress.total_epochs, body.name) == (2, 9, None)
    assert [part.body.progress for part in split(first)] == [None, body.progress]  # type: ignore[union-attr]
    assert (second.body.name, second.parts) == ("digits", ())  # type: ignore[union-attr]


def test_a_joined_entry_keeps_the_trace(buffer: Buffer) -> None:
    """An entry of several messages has the `traceparent` of the run, as that of one message has."""
    traceparent = f"00-{'5' * 32}-{'6' * 16}-01"
    outbox = Outbox(Origin(42, 0, "0-test", 0, since_ns=5, traceparent=traceparent), buffer)
    log(buffer, outbox, "a")
    log(buffer, outbox, "b")
    (message,) = outbox.to_send(10**6, may_join=True)["logs"]
    assert (message.entry["parts"], message.entry["traceparent"]) == ("1,1", traceparent)


def test_what_is_not_joined(buffer: Buffer, outbox: Outbox) -> None:
    """Another output and a large message have entries of their own; so has every message without `may_join`."""
    log(buffer, outbox, "out")
    log(buffer, outbox, "err", log_type="stderr")
    log(buffer, outbox, "out again")
    log(buffer, outbox, os.urandom(JOINED_BYTES).hex())
    log(buffer, outbox, "after a large one")
    assert [message.seq for message in sent(outbox)] == [1, 2, 3, 4, 5]
    log(buffer, outbox, "next")
    assert [message.seq for message in outbox.to_send(NO_LIMIT)["logs"]] == [1, 2, 3, 4, 5, 6]
    assert [message.seq for message in sent(outbox)] == [1, 2, 3, 4, 6]


def test_only_consecutive_messages_are_joined(buffer: Buffer, outbox: Outbox) -> None:
    """Resends with a gap between them are two entries; new messages follow in another one."""
    for number in range(6):
        log(buffer, outbox, f"{number}")
    outbox.mark_sent("logs", [4])
    outbox.send_again("logs", [(1, 2), (4, 4)])
    assert [(message.first, message.seq) for message in sent(outbox)] == [(1, 2), (4, 6)]


def test_a_declared_loss_is_not_joined(buffer: Buffer, outbox: Outbox) -> None:
    """An entry that declares messages lost stays as it is between the others."""
    outbox.resume({"logs": (1, 2)})
    log(buffer, outbox, "a")
    log(buffer, outbox, "b")
    loss, message = outbox.to_send(NO_LIMIT, may_join=True)["logs"]
    assert (loss.seq, loss.entry["enc"]) == (2, LOST)
    assert (message.seq, message.entry["parts"]) == (4, "1,1")


@pytest.mark.parametrize("parts", [(3,), (1, 1), (0, 3), (1, 2, 1), (1,) * 6])
def test_parts_that_do_not_match(parts: tuple[int, ...]) -> None:
    """The parts are at least two messages, none is empty, and together they are all lines; numbers begin at 1."""
    with pytest.raises(InvalidMessage, match="parts of"):
        check_parts(
            5, parts, Logs(log_type="stdout", lines=["a"] * max(3, len(parts)), ts=[1] * max(3, len(parts)))
        )


@given(st.text(max_size=30))
def test_parts_in_an_entry(text: str) -> None:
    """Any text is either a list of small numbers or an invalid message."""
    fields: Entry = {"v": 2, "job": 1, "attempt": 1, "source": "s", "seq": 9, "enc": "json", "body": b""}
    fields["parts"] = text
    raw = {name.encode(): raw_value(value) for name, value in fields.items()}
    try:
        parts = open_envelope(raw).parts
    except InvalidMessage:
        return
    given = text.split(",")
    assert [str(part).zfill(len(each)) for part, each in zip(parts, given, strict=True)] == given
