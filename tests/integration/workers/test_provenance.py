"""Provenance and names of attempts, from the messages of their trainers to the tables."""

from __future__ import annotations

from tests.factories import NOW_NS, SECOND_NS, Sender, completion, drain, metrics, one, rows
from trainwire.schemas.tables import dead_letters, training_attempts
from trainwire.schemas.wire.messages import Metrics
from trainwire.stores.postgres.jobs.attempts import find_attempts, find_provenance, renaming
from trainwire.workers.resources import Resources


def stored(resources: Resources, attempt: int) -> dict[str, object]:
    """Return the stored provenance of an attempt."""
    with resources.engine.connect() as connection:
        return find_provenance(connection, 1, attempt)


def test_items_of_several_sources_are_merged(resources: Resources, sender: Sender) -> None:
    """The launcher's items and those of its script are one map, over several drains; others are left out."""
    sender.send(
        Metrics(provenance={"command": ["python"], "python": {"version": "3.12"}, "own": 1}), source="launcher"
    )
    sender.send(Metrics(provenance={"user": "ada\0"}), source="launcher")
    drain(resources, "metrics")
    sender.send(metrics(loss=1.0))
    drain(resources, "metrics")
    sender.send(Metrics(provenance={"python": {"version": "3.13"}, "packages": {"numpy": "2.1"}}))
    drain(resources, "metrics")
    assert stored(resources, 1) == {
        "command": ["python"],
        "user": "ada␀",
        "python": {"version": "3.13"},
        "packages": {"numpy": "2.1"},
    }


def test_each_attempt_has_its_own(resources: Resources, sender: Sender) -> None:
    """The next attempt begins without the items of the one before, also within one transaction."""
    sender.send(Metrics(provenance={"user": "first", "folder": "/a"}), attempt=1)
    sender.send(Metrics(provenance={"user": "second"}), attempt=2, source="0-b")
    sender.send(Metrics(provenance={"host": {"name": "late"}}), attempt=1)
    drain(resources, "metrics")
    assert stored(resources, 1) == {"user": "first", "folder": "/a", "host": {"name": "late"}}
    assert stored(resources, 2) == {"user": "second"}


def test_news_of_the_provenance_are_changes_of_the_attempt(resources: Resources, sender: Sender) -> None:
    """A message with new items counts as a change for MLflow, repeated items do not."""
    for provenance in ({"user": "ada"}, {"user": "ada"}, {"user": "bob"}):
        sender.send(Metrics(provenance=provenance))
        drain(resources, "metrics")
    assert one(resources.engine, training_attempts, job_id=1)["changes"] == 2


def test_items_that_are_too_large_are_refused(resources: Resources, sender: Sender) -> None:
    """A message beyond the limits of maps is a dead letter, as with params."""
    deep: object = 1
    for _ in range(60):
        deep = [deep]
    sender.send(Metrics(provenance={"command": deep}))
    drain(resources, "metrics")
    assert rows(resources.engine, dead_letters, "reason") == ["wrong-fields"]


def test_a_number_that_was_chosen_again_is_warned_about(resources: Resources, sender: Sender) -> None:
    """Consecutive attempts with different names are a warning, also when more follow; with equal names none."""
    later = NOW_NS + 60 * SECOND_NS
    sender.send(Metrics(name="digits", ts=NOW_NS, started_at=NOW_NS), source="0-a", attempt=0)
    sender.send(completion("failed", started_at=NOW_NS), source="0-a", attempt=0)
    drain(resources, "metrics")
    drain(resources, "completions")
    sender.send(Metrics(name="digits", ts=later, started_at=later), source="0-b", attempt=0)
    sender.send(completion(ts=later + SECOND_NS, started_at=later), source="0-b", attempt=0)
    drain(resources, "metrics")
    drain(resources, "completions")
    with resources.engine.connect() as connection:
        assert renaming(find_attempts(connection, 1)) is None
    for number, source in enumerate(("0-c", "0-d"), 1):
        at = later + 60 * number * SECOND_NS
        sender.send(Metrics(name="mnist", ts=at, started_at=at), source=source, attempt=0)
        sender.send(completion(ts=at + SECOND_NS, started_at=at), source=source, attempt=0)
        drain(resources, "metrics")
        drain(resources, "completions")
        with resources.engine.connect() as connection:
            attempts = find_attempts(connection, 1)
        assert len(attempts) == 2 + number
        warning = renaming(attempts)
        assert warning is not None
        assert warning.startswith("attempt 2 is called 'digits', and attempt 3 'mnist': ")
