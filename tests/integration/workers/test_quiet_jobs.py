"""Jobs that say little beside one that fills their stream, with valid messages or with garbage."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import text

from schemas.routes import ahead_key, stream_key
from schemas.tables import dead_letters, training_logs
from tests.factories import Sender, logs, rows
from workers.drain import Drain
from workers.errors import MostlyInvalid
from workers.resources import Resources
from workers.streams import IngestStream

STREAM = stream_key("logs", 1)
GARBAGE = {"v": 1, "job": 9, "attempt": 1, "source": "s", "enc": "x", "body": "y"}


def drained_once(resources: Resources) -> None:
    """Drain one small batch."""
    small = resources.settings.model_copy(update={"drain_batch_bytes": 4096})
    ticks = iter(range(0, 10**6, 100))
    Drain(resources.engine, IngestStream(resources.streams, "logs", 1), small, clock=lambda: next(ticks)).run()


def test_a_quiet_job_goes_before_a_backlog(resources: Resources, sender: Sender) -> None:
    """The lines of a quiet job, behind 500 messages of another, are stored with the first batch."""
    for number in range(500):
        sender.send(logs(f"flood {number} " + "x" * 300))
        if number % 100 == 99:
            sender.send(logs(f"quiet {number}"), job=5)
    drained_once(resources)
    quiet = text("SELECT content FROM training_logs WHERE job_id = 5 ORDER BY seq")
    with resources.engine.connect() as connection:
        assert list(connection.execute(quiet).scalars()) == [f"quiet {n}" for n in range(99, 500, 100)]
    assert len(rows(resources.engine, training_logs, "seq")) < 100
    assert sender.client.exists(ahead_key(STREAM))


def test_no_source_changes_its_order(resources: Resources, sender: Sender) -> None:
    """Jobs that flood in turn and are quiet in between: each line once, each job in its order, no hole."""
    chance = random.Random(7)
    jobs = [4 * n + 1 for n in range(12)]
    sent: dict[int, list[str]] = {job: [] for job in jobs}
    for turn in range(60):
        flooding = chance.choice(jobs)
        for _ in range(chance.randrange(60)):
            job = flooding if chance.random() < 0.9 else chance.choice(jobs)
            sent[job].append(f"{turn}: {len(sent[job])}")
            sender.send(logs(sent[job][-1] + "x" * chance.randrange(400)), job=job)
        drained_once(resources)
    while sender.client.xlen(STREAM):
        drained_once(resources)
    stored: dict[int, list[str]] = {job: [] for job in jobs}
    for job, content in rows(resources.engine, training_logs, "job_id", "content"):
        stored[job].append(content.rstrip("x"))
    assert stored == sent
    with resources.engine.connect() as connection:
        holes = text("SELECT count(*) FROM source_positions WHERE missing <> '[]'")
        assert connection.execute(holes).scalar_one() == 0


def test_garbage_of_one_job_holds_up_no_other(resources: Resources, sender: Sender) -> None:
    """Where nearly all is garbage the stream is halted, and valid messages of other jobs are stored and acked."""
    for seq in range(1, 301):
        sender.send_raw("logs", 9, GARBAGE | {"seq": seq})
        if seq % 100 == 50:
            sender.send(logs(f"good {seq}"), job=5)
    for expected in (["good 50", "good 150", "good 250"], ["good 50", "good 150", "good 250", "later"]):
        with pytest.raises(MostlyInvalid):
            Drain(resources.engine, IngestStream(sender.client, "logs", 1), resources.settings).run()
        assert rows(resources.engine, training_logs, "content") == expected
        sender.send(logs("later"), job=5, seq=4)
    assert rows(resources.engine, dead_letters, "id", order=["id"]) == []
    assert sender.client.hget("ingest:acks:5", "0-test:logs") == b"4"
    assert sender.client.xlen(STREAM) == 301
