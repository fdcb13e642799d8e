"""Entries of several messages: each message is stored once and in order, whatever else has arrived."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, drain, logs, metrics, one, rows
from trainwire.schemas.keys import ack_field, acks_key, missing_field
from trainwire.schemas.tables import dead_letters, source_positions, training_logs, training_metrics
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Logs, Message, Metrics, Point
from trainwire.workers.operations.dead_letters import replay
from trainwire.workers.resources import Resources

SOURCE = "0-test"


def send(sender: Sender, first: int, last: int, job: int = 1) -> None:
    """Send messages `first` to `last`, each with one line, in one entry; a single one as it always was."""
    numbers = range(first, last + 1)
    body = Logs(
        log_type="stdout", lines=[f"line {number}" for number in numbers], ts=[NOW_NS + n for n in numbers]
    )
    parts = (1,) * len(numbers) if len(numbers) > 1 else ()
    sender.send_raw("logs", job, encode_entry(Message("logs", job, 1, SOURCE, last, body, parts)))


def stored(resources: Resources) -> list[str]:
    """Return the stored lines in order."""
    return [str(line) for line in rows(resources.engine, training_logs, "content")]


def lines(last: int) -> list[str]:
    """Return the lines of messages 1 to `last`."""
    return [f"line {number}" for number in range(1, last + 1)]


def test_a_joined_entry_is_acknowledged_by_its_last_number(resources: Resources, sender: Sender) -> None:
    """Its messages count one by one, as if each had come alone."""
    send(sender, 1, 3)
    send(sender, 4, 4)
    send(sender, 5, 9)
    assert drain(resources).entries == 3
    assert stored(resources) == lines(9)
    assert one(resources.engine, source_positions, job_id=1)["last_seq"] == 9
    assert sender.client.hget(acks_key(1), ack_field(SOURCE, "logs")) == b"9"


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_messages_that_came_before_are_left_out(resources: Resources, sender: Sender, in_one_batch: bool) -> None:
    """A copy of the spool sends single messages, the trainer joined ones: each line is stored once."""
    for first, last in ((1, 2), (1, 1), (2, 5), (4, 4), (1, 7)):
        send(sender, first, last)
        if not in_one_batch:
            drain(resources)
    drain(resources)
    assert stored(resources) == lines(7)


def test_gaps_are_reported_and_filled(resources: Resources, sender: Sender) -> None:
    """Messages before a joined entry are missing, and a joined resend fills exactly these."""
    send(sender, 1, 2)
    send(sender, 6, 8)
    drain(resources)
    assert sender.client.hget(acks_key(1), missing_field(SOURCE, "logs")) == b"3-5"
    send(sender, 2, 6)
    drain(resources)
    assert sorted(stored(resources)) == lines(8)
    assert sender.client.hget(acks_key(1), ack_field(SOURCE, "logs")) == b"8"


def test_any_mixture_is_stored_once(resources: Resources, sender: Sender) -> None:
    """Entries with random ranges, in random order and repeated, are stored as each message once."""
    chance = random.Random(7)
    for _ in range(60):
        first = chance.randint(1, 40)
        send(sender, first, min(40, first + chance.choice([0, 0, 1, 3, 10])))
        if chance.random() < 0.2:
            drain(resources)
    send(sender, 1, 40)
    drain(resources)
    assert sorted(stored(resources)) == sorted(lines(40))
    assert one(resources.engine, source_positions, job_id=1)["last_seq"] == 40


def test_points_are_joined_too(resources: Resources, sender: Sender) -> None:
    """A joined entry of points, of which the first has arrived already."""
    sender.send(metrics(loss=1.0))
    points = [Point(ts=NOW_NS, step=step, values={"loss": float(step)}) for step in (1, 2, 3)]
    body = Metrics(points=points)
    sender.send_raw("metrics", 1, encode_entry(Message("metrics", 1, 1, SOURCE, 3, body, (1, 1, 1))))
    drain(resources, "metrics")
    assert rows(resources.engine, training_metrics, "loss") == [1.0, 2.0, 3.0]


def test_a_refused_line_is_one_dead_letter(resources: Resources, sender: Sender) -> None:
    """Of a joined entry only the message that Postgres refuses is dead-lettered; replayed, it is stored."""
    refuse = "ALTER TABLE training_logs ADD CONSTRAINT no_poison CHECK (content NOT IN ('line 2', 'line 4'))"
    with resources.engine.begin() as connection:
        connection.execute(text(refuse))
    try:
        send(sender, 1, 5)
        drained = drain(resources)
    finally:
        with resources.engine.begin() as connection:
            connection.execute(text("ALTER TABLE training_logs DROP CONSTRAINT no_poison"))
    assert drained.dead_lettered == 2
    assert stored(resources) == ["line 1", "line 3", "line 5"]
    letters = rows(resources.engine, dead_letters, "id", "seq", order=["seq"])
    assert [seq for _, seq in letters] == [2, 4]
    assert one(resources.engine, source_positions, job_id=1)["dead_lettered"] == 2
    for letter_id, _ in letters:
        replay(resources.engine, sender.client, letter_id)
    drain(resources)
    assert sorted(stored(resources)) == lines(5)
    assert one(resources.engine, source_positions, job_id=1)["dead_lettered"] == 0


def test_wrong_parts_are_a_dead_letter(resources: Resources, sender: Sender) -> None:
    """An entry whose parts do not match its lines is dead-lettered, and the other messages count as missing."""
    sender.send(logs("a"))
    entry = encode_entry(Message("logs", 1, 1, SOURCE, 4, logs("b", "c", "d"), (1, 1, 1)))
    sender.send_raw("logs", 1, entry | {"parts": "1,1"})
    assert drain(resources).dead_lettered == 1
    assert sender.client.hget(acks_key(1), missing_field(SOURCE, "logs")) == b"2-3"
