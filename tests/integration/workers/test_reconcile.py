"""After a restore of Postgres, acknowledged messages that it lacks are reported, also of ended trainers."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from tests.factories import Sender, completion, drain, logs, one
from trainwire.schemas.keys import acks_key
from trainwire.schemas.tables import deleted_jobs, source_positions, training_jobs
from trainwire.stores.postgres.completeness import assess
from trainwire.stores.postgres.deletion import Choice, begin_deletion
from trainwire.stores.postgres.source_positions import find_positions
from trainwire.workers.operations.reconcile import reconcile
from trainwire.workers.resources import Resources


def acks(resources: Resources) -> dict[str, str]:
    """Return the acknowledgements of job 1."""
    found: Any = resources.redis.hgetall(acks_key(1))
    return {name.decode(): value.decode() for name, value in found.items()}


def test_a_trainer_that_has_ended(resources: Resources, sender: Sender) -> None:
    """If Postgres lacks the last lines and the completion of an ended trainer, the sum names both, once."""
    sender.send(logs("a"))
    drain(resources)
    with resources.engine.connect() as connection:
        position = connection.execute(text("SELECT * FROM source_positions")).mappings().one()
    for line in "bcd":
        sender.send(logs(line))
    sender.send(completion(produced={"logs": 4, "completions": 1}))
    drain(resources)
    drain(resources, "completions")
    with resources.engine.begin() as connection:  # as a dump of then has it
        connection.execute(text("DELETE FROM training_logs WHERE seq > 1"))
        stored = {**position, "missing": [], "lost": []}
        del stored["is_behind"]  # Postgres computes it
        connection.execute(text("DELETE FROM source_positions"))
        connection.execute(source_positions.insert().values(**stored))
        connection.execute(text("UPDATE training_jobs SET status = 'running', last_log_seq = 1"))
    found = {(gone.kind, gone.ranges) for gone in reconcile(resources.engine, resources.redis)}
    assert found == {("logs", ((2, 4),)), ("completions", ((1, 1),))}
    assert one(resources.engine, training_jobs, id=1)["watched_attempt"] == 1
    with resources.engine.connect() as connection:
        sum_of_all = assess(find_positions(connection, 1), 1, "completed")
    assert sum_of_all.missing == 4
    assert sum_of_all.line.endswith("; missing: completions of 0-test: 1; logs of 0-test: 2-4")
    assert acks(resources) == {
        "0-test:logs": "1",
        "0-test:logs:missing": "2-4",
        "0-test:completions": "0",
        "0-test:completions:missing": "1-1",
    }
    assert not list(reconcile(resources.engine, resources.redis))
    sender.send(logs("b"), seq=2)
    drain(resources)
    assert acks(resources)["0-test:logs:missing"] == "3-4"


def test_a_job_that_postgres_does_not_know(resources: Resources, sender: Sender) -> None:
    """A job that is newer than the dump is created again, running until the check finds no heartbeat."""
    sender.send(logs("a"))
    drain(resources)
    with resources.engine.begin() as connection:
        connection.execute(text("TRUNCATE training_jobs, training_logs, source_positions"))
    (gone,) = reconcile(resources.engine, resources.redis)
    assert (gone.job_id, gone.source, gone.ranges) == (1, "0-test", ((1, 1),))
    job = one(resources.engine, training_jobs, id=1)
    assert (job["status"], job["watched_attempt"]) == ("running", 1)
    assert one(resources.engine, source_positions, source="0-test")["attempt"] == 1


def test_callbacks_go_on_after_a_restore(resources: Resources, sender: Sender) -> None:
    """Messages of callbacks are lost at once, and the acknowledgements of their source continue."""
    sender.send(logs("a"), source="callback-ab12")
    drain(resources)
    resources.redis.hset(acks_key(1), "callback-ab12:logs", 4)
    assert [gone.ranges for gone in reconcile(resources.engine, resources.redis)] == [((2, 4),)]
    sender.send(logs("e"), source="callback-ab12", seq=5)
    drain(resources)
    assert acks(resources) == {"callback-ab12:logs": "5", "callback-ab12:logs:lost": "3"}


@pytest.mark.parametrize("restored", [False, True])
def test_where_nothing_was_restored_nothing_changes(resources: Resources, sender: Sender, restored: bool) -> None:
    """A Postgres ahead of Redis, gaps known to trainers, and an older Redis are not reported."""
    sender.send(logs("a"))
    sender.send(logs("c"), seq=3)
    drain(resources)
    if restored:
        resources.redis.hset(acks_key(1), "0-test:logs", 0)
    resources.redis.hset(acks_key(1), "odd", "x")
    resources.redis.hset("ingest:acks:nonsense", "0-test:logs", 9)
    before = one(resources.engine, source_positions, source="0-test")
    assert not list(reconcile(resources.engine, resources.redis))
    assert one(resources.engine, source_positions, source="0-test") == before


def test_a_deleted_job_stays_deleted(resources: Resources, sender: Sender) -> None:
    """Acknowledgements of a job with a tombstone are not compared."""
    sender.send(logs("a"))
    drain(resources)
    with resources.engine.begin() as connection:
        begin_deletion(connection, 1, Choice(), by="a test", force=True)
        connection.execute(text("DELETE FROM source_positions"))
    assert list(reconcile(resources.engine, resources.redis)) == []
    with resources.engine.connect() as connection:
        assert connection.execute(training_jobs.select()).all() == []
        assert len(connection.execute(deleted_jobs.select()).all()) == 1
