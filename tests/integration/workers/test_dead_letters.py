"""Replays and discards of dead letters."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from sqlalchemy import text

from tests.factories import Sender, drain, logs, one, rows
from trainwire.schemas.keys import stream_key
from trainwire.schemas.tables import dead_letters, source_positions, training_logs
from trainwire.schemas.wire.entries import Loss, encode_loss
from trainwire.workers.errors import Unavailable
from trainwire.workers.operations.dead_letters import discard, replay
from trainwire.workers.resources import Resources

ADD = text("ALTER TABLE training_logs ADD CONSTRAINT no_poison CHECK (content <> 'poison')")
DROP = text("ALTER TABLE training_logs DROP CONSTRAINT IF EXISTS no_poison")


@pytest.fixture
def letter_id(resources: Resources, sender: Sender) -> int:
    """The dead letter of the second of three messages."""
    with resources.engine.begin() as connection:
        connection.execute(ADD)
    for line in ("one", "poison", "three"):
        sender.send(logs(line))
    drain(resources)
    with resources.engine.begin() as connection:
        connection.execute(DROP)
    return int(rows(resources.engine, dead_letters, "id", order=["id"])[0])


def test_a_replayed_dead_letter_is_stored_after_the_repair(
    letter_id: int, resources: Resources, sender: Sender
) -> None:
    """Replay sends the entry through the drain again; the ledger then counts it as stored."""
    replay(resources.engine, sender.client, letter_id)
    drained = drain(resources)
    assert drained.stored == 1
    assert sorted(rows(resources.engine, training_logs, "content")) == ["one", "poison", "three"]
    position = one(resources.engine, source_positions, job_id=1)
    assert (position["dead_lettered"], position["missing"], position["last_seq"]) == (0, [], 3)
    assert rows(resources.engine, dead_letters, "id", order=["id"]) == []


class BreakingConnection(redis.Connection):
    """A connection that breaks instead of sending the command number `breaks_at` (1, 2 ...) of all connections."""

    breaks_at = 0
    sent = 0

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send a command, or break."""
        cls = type(self)
        cls.sent += 1
        if cls.sent == cls.breaks_at:
            raise redis.ConnectionError("broken by the test")
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


def test_a_failed_replay_keeps_the_letter_and_a_finished_one_is_no_error(
    letter_id: int, resources: Resources, sender: Sender
) -> None:
    """Whichever command Redis does not take: the letter is left if, and only if, the replay is an error."""
    options = sender.client.connection_pool.connection_kwargs | {"retry": None}
    outcomes = []
    for number in range(1, 20):
        BreakingConnection.breaks_at, BreakingConnection.sent = number, 0
        with redis.Redis(
            connection_pool=redis.ConnectionPool(connection_class=BreakingConnection, **options)
        ) as client:
            try:
                replay(resources.engine, client, letter_id)
            except Unavailable:
                outcomes.append("failed")
                assert rows(resources.engine, dead_letters, "id", order=["id"]) == [letter_id]
            else:
                outcomes.append("replayed")
                assert rows(resources.engine, dead_letters, "id", order=["id"]) == []
                break
    assert outcomes == [*["failed"] * (len(outcomes) - 1), "replayed"]
    assert "failed" in outcomes


def test_a_letter_that_is_still_refused_comes_back(letter_id: int, resources: Resources, sender: Sender) -> None:
    """A replayed message that is refused again is a dead letter again, counted once."""
    with resources.engine.begin() as connection:
        connection.execute(ADD)
    try:
        replay(resources.engine, sender.client, letter_id)
        drain(resources)
    finally:
        with resources.engine.begin() as connection:
            connection.execute(DROP)
    assert one(resources.engine, dead_letters, job_id=1)["id"] != letter_id
    assert one(resources.engine, source_positions, job_id=1)["dead_lettered"] == 1


def test_a_discarded_letter_stays_counted(letter_id: int, resources: Resources) -> None:
    """Discard deletes the dead letter; the sum still counts its message as dead-lettered."""
    discard(resources.engine, letter_id)
    assert rows(resources.engine, dead_letters, "id", order=["id"]) == []
    assert one(resources.engine, source_positions, job_id=1)["dead_lettered"] == 1


def test_a_letter_that_no_position_counts_reopens_nothing(
    letter_id: int, resources: Resources, sender: Sender
) -> None:
    """Replays of an implausible number and of an invalid statement of loss do not change the sum."""
    sender.send(logs("far"), seq=5 * 10**9)
    sender.send_raw("logs", 1, encode_loss(1, 1, "0-test", 2, Loss(last=2, reason="Restored")))
    drain(resources)
    before = one(resources.engine, source_positions, job_id=1)
    others = [letter for letter in rows(resources.engine, dead_letters, "id", order=["id"]) if letter != letter_id]
    assert len(others) == 2
    for each in others:
        replay(resources.engine, sender.client, each)
    assert drain(resources).dead_lettered == 2
    after = one(resources.engine, source_positions, job_id=1)
    names = ("last_seq", "missing", "lost", "dead_lettered")
    assert [after[name] for name in names] == [before[name] for name in names] == [3, [], [], 1]


def test_an_unreadable_letter_can_be_replayed_too(resources: Resources, sender: Sender) -> None:
    """An entry without an envelope is published unchanged, and dead-lettered again."""
    sender.send_raw("logs", 1, {"what": "is this"})
    drain(resources)
    letter = one(resources.engine, dead_letters, stream=stream_key("logs", 1))
    replay(resources.engine, sender.client, letter["id"])
    assert [fields for _, fields in sender.client.xrange(letter["stream"]) or ()] == [{b"what": b"is this"}]
    drain(resources)
    assert len(rows(resources.engine, dead_letters, "id", order=["id"])) == 1


def test_an_unknown_dead_letter_is_an_error(resources: Resources) -> None:
    """The error names the id and the command that lists them."""
    with pytest.raises(LookupError, match="no dead letter 77: `trainwire dead-letters list`"):
        discard(resources.engine, 77)
