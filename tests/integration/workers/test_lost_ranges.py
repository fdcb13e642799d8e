"""Ranges that a trainer declares lost: counted once, and never for a message that is stored."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.factories import NOW_NS, SECOND_NS, Sender, completion, drain, logs, one, rows
from trainwire.schemas.keys import acks_key
from trainwire.schemas.tables import dead_letters, source_positions, training_jobs, training_logs
from trainwire.schemas.wire.entries import Loss, encode_entry, encode_loss
from trainwire.schemas.wire.messages import Message
from trainwire.stores.postgres.completeness import assess
from trainwire.stores.postgres.source_positions import find_positions, find_unnumbered
from trainwire.workers.resources import Resources


def acks(resources: Resources) -> dict[str, str]:
    """Return the acknowledgements of job 1."""
    found: Any = resources.redis.hgetall(acks_key(1))
    return {name.decode(): value.decode() for name, value in found.items()}


def line(resources: Resources) -> str:
    """Return the sum of job 1."""
    with resources.engine.connect() as connection:
        return assess(find_positions(connection, 1), 1, "completed", find_unnumbered(connection, 1)).line


def test_a_lost_range_closes_the_gap(resources: Resources, sender: Sender) -> None:
    """The ack moves to the newest message, and the sum counts and names the range with its reason."""
    sender.send(logs("a"))
    sender.send(logs("e"), seq=5)
    drain(resources)
    assert acks(resources) == {"0-test:logs": "1", "0-test:logs:missing": "2-4"}
    sender.lose(2, 4)
    drain(resources)
    assert acks(resources) == {"0-test:logs": "5", "0-test:logs:lost": "3"}
    sender.send(completion(produced={"logs": 5, "completions": 1}))
    drain(resources, "completions")
    assert line(resources) == (
        "accounted: 6 messages produced = 3 stored + 0 dead-lettered + 0 missing + "
        "3 lost (3 restored) + 0 dropped; lost: logs of 0-test: 2-4"
    )
    assert not rows(resources.engine, dead_letters, "id", order=("id",))


def test_stored_messages_are_never_marked_lost(resources: Resources, sender: Sender) -> None:
    """A statement that covers stored messages, or arrives twice, marks only missing ones."""
    for seq in (1, 2, 6):
        sender.send(logs(f"line {seq}"), seq=seq)
    for _ in range(2):
        sender.lose(1, 8)
        drained = drain(resources)
    assert drained.duplicates == 1
    row = one(resources.engine, source_positions, source="0-test")
    assert (row["last_seq"], row["missing"], row["lost"]) == (8, [], [[3, 5, "restored"], [7, 8, "restored"]])
    assert rows(resources.engine, training_logs, "content") == ["line 1", "line 2", "line 6"]


def test_a_lost_message_that_comes_after_all_is_stored(resources: Resources, sender: Sender) -> None:
    """A lost message that arrives later from another spool is stored, and the sum counts it as stored."""
    sender.lose(1, 3, "damaged")
    sender.send(logs("two"), seq=2)
    drain(resources)
    assert one(resources.engine, source_positions, source="0-test")["lost"] == [
        [1, 1, "damaged"],
        [3, 3, "damaged"],
    ]
    assert rows(resources.engine, training_logs, "content") == ["two"]
    assert acks(resources)["0-test:logs"] == "3"


def test_losses_do_not_halt_a_stream(resources: Resources, sender: Sender) -> None:
    """A thousand losses, declared one by one as by older SDKs, do not halt the stream."""
    for seq in range(1, 1501):
        good = encode_entry(Message("logs", 1, 1, "0-test", seq, logs("x")))
        sender.send_raw("logs", 1, good | {"enc": "lost", "body": b"damaged in the spool of its trainer"})
    sender.send(logs("good"), seq=1501)
    drained = drain(resources)
    assert (drained.stored, drained.dead_lettered) == (1, 0)
    assert one(resources.engine, source_positions, source="0-test")["lost"] == [[1, 1500, "damaged"]]


def test_a_statement_in_json(resources: Resources, sender: Sender) -> None:
    """A statement of loss may be JSON, as docs/wire-format.md shows it."""
    entry = {"v": 1, "job": 1, "attempt": 1, "source": "0-test", "seq": 2, "enc": "lost"}
    sender.send_raw("logs", 1, entry | {"body": '{"last": 4, "reason": "restored"}'})
    drain(resources)
    row = one(resources.engine, source_positions, source="0-test")
    assert (row["missing"], row["lost"]) == ([[1, 1]], [[2, 4, "restored"]])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xc1", "wrong-fields"),
        (b"{", "wrong-fields"),
        (msgspec.msgpack.encode({"last": 2, "reason": "restored"}), "out-of-range"),
        (msgspec.msgpack.encode({"last": 2 * 10**9, "reason": "restored"}), "out-of-range"),
        (msgspec.msgpack.encode({"last": 10**9 + 2, "reason": "restored"}), "seq-jump"),
        (msgspec.msgpack.encode({"last": 2**63, "reason": "restored"}), "out-of-range"),
        (msgspec.msgpack.encode({"last": 3, "reason": "\x1b[2J"}), "wrong-fields"),
        (msgspec.msgpack.encode({"last": 3, "reason": ""}), "wrong-fields"),
        (msgspec.msgpack.encode({"last": "3", "reason": "restored"}), "wrong-fields"),
        (msgspec.msgpack.encode({"reason": "restored"}), "wrong-fields"),
        (msgspec.msgpack.encode({"last": 3, "reason": "restored", "started_at": "now"}), "wrong-fields"),
    ],
)
def test_a_wrong_statement_is_dead_lettered(
    resources: Resources, sender: Sender, body: bytes, reason: str
) -> None:
    """An invalid declaration of loss, or one of too many numbers, is dead-lettered."""
    sender.send_raw("logs", 1, encode_loss(1, 1, "0-test", 3, Loss(last=3, reason="x")) | {"body": body})
    drain(resources)
    assert one(resources.engine, source_positions, source="0-test")["lost"] == []
    assert rows(resources.engine, dead_letters, "reason", order=("id",)) == [reason]


@pytest.mark.parametrize(
    ("seq", "body"),
    [
        (2, {"last": 2, "reason": "Restored"}),
        (2, {"last": 1, "reason": "restored"}),
        (2, {"last": "2", "reason": "restored"}),
        (3, {"last": 3, "reason": "disk_full"}),
    ],
)
@pytest.mark.parametrize("is_in_one_batch", [True, False])
def test_a_wrong_statement_takes_no_number(
    resources: Resources, sender: Sender, seq: int, body: dict[str, Any], *, is_in_one_batch: bool
) -> None:
    """A message with the number of an unreadable statement is stored, in either order."""
    sender.send(logs("line 1"), seq=1)
    entry = encode_loss(1, 1, "0-test", seq, Loss(last=seq, reason="x"))
    sender.send_raw("logs", 1, entry | {"body": msgspec.msgpack.encode(body)})
    if not is_in_one_batch:
        drain(resources)
        assert acks(resources) == {"0-test:logs": "1"}
    for number in (2, 3):
        sender.send(logs(f"line {number}"), seq=number)
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["line 1", "line 2", "line 3"]
    row = one(resources.engine, source_positions, source="0-test")
    assert (row["last_seq"], row["missing"], row["lost"], row["dead_lettered"]) == (3, [], [], 0)
    assert rows(resources.engine, dead_letters, "source", "seq", order=["id"]) == [("0-test", None)]


def test_a_completion_publishes_how_far_the_other_kinds_are(resources: Resources, sender: Sender) -> None:
    """After a restore of Postgres the trainer learns with its completion's ack that older messages are gone."""
    sender.send(logs("a"))
    drain(resources)
    resources.redis.hset(acks_key(1), "0-test:logs", 7)  # as before the restore
    sender.send(completion(produced={"logs": 7, "metrics": 2, "completions": 1}))
    drain(resources, "completions")
    assert acks(resources) == {"0-test:logs": "1", "0-test:metrics": "0", "0-test:completions": "1"}


def test_a_source_that_begins_with_a_loss_gets_its_own_attempt(resources: Resources, sender: Sender) -> None:
    """A source that does not set its attempt and began after the end of attempt 1 is of attempt 2 all the same."""
    sender.send(completion(), source="0-first")
    drain(resources, "completions")
    began = NOW_NS + 2 * SECOND_NS
    sender.send_raw("logs", 1, encode_loss(1, 0, "0-second", 1, Loss(last=3, reason="damaged", started_at=began)))
    drain(resources)
    assert one(resources.engine, source_positions, source="0-second")["attempt"] == 2
    sender.send(logs("four", started_at=began), source="0-second", seq=4, attempt=0)
    drain(resources)
    assert one(resources.engine, training_jobs, id=1)["attempt"] == 2


def test_a_lost_completion_ends_nothing(resources: Resources, sender: Sender) -> None:
    """A source whose completion was lost has not ended."""
    sender.send(logs("a"))
    drain(resources)
    sender.lose(1, 1, kind="completions")
    drain(resources, "completions")
    assert line(resources).startswith("open: 2 messages produced = 1 stored")


def test_a_source_with_too_many_holes_is_dead_lettered(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source with too many gaps has a row of bounded size; numbers that close gaps are accepted."""
    monkeypatch.setattr("trainwire.workers.drain.positions.MAX_RANGES", 2)
    for seq in (1, 3, 5, 7, 6, 4):
        sender.send(logs(f"line {seq}"), seq=seq)
        drain(resources)
    sender.lose(8, 9)
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["line 1", "line 3", "line 5", "line 6", "line 4"]
    letters = rows(resources.engine, dead_letters, "seq", "reason", order=["entry_id"])
    assert letters == [(None, "scattered")]


def test_a_dead_letter_without_a_number_proves_nothing(resources: Resources, sender: Sender) -> None:
    """A message with an implausible number is not counted: the sum names it and is not `complete`."""
    sender.send(logs("a"))
    sender.send(logs("far"), seq=5 * 10**9)
    drain(resources)
    sender.send(completion(produced={"logs": 1, "completions": 1}))
    drain(resources, "completions")
    assert line(resources) == (
        "unproven: 2 messages produced = 2 stored + 0 dead-lettered + 0 missing + 0 dropped"
        "; dead letters beyond the sum: 1 of 0-test"
    )
