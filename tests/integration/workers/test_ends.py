"""Inferred ends of a source, and its own completion: the completion counts, in either order."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, SECOND_NS, Sender, completion, drain, logs, one, rows
from trainwire.schemas.tables import dead_letters, training_jobs, training_logs
from trainwire.schemas.wire.messages import Body, Completion, Metrics, Progress
from trainwire.stores.postgres.completeness import Completeness, find_completeness
from trainwire.stores.postgres.jobs.job_lookup import find_job
from trainwire.stores.postgres.source_positions import SourcePosition, find_positions
from trainwire.workers.resources import Resources

SOURCE = "0-ab12cd34"


def inferred(of: str = SOURCE, logs: int = 1, dropped: int = 0) -> Completion:
    """Return the end that the sender of a spool infers for its source."""
    counts = {"logs": dropped} if dropped else None
    return Completion(ts=NOW_NS, status="ended", of=of, produced={"logs": logs}, dropped=counts, started_at=NOW_NS)


def own(logs: int = 2, **more: Any) -> Completion:
    """Return the completion of the source itself."""
    return completion(produced={"logs": logs, "completions": 1}, started_at=NOW_NS, **more)


def sum_of(resources: Resources) -> Completeness:
    """Return the sum of job 1."""
    with resources.engine.connect() as connection:
        job = find_job(connection, 1)
        assert job is not None
        return find_completeness(connection, job)


def send(sender: Sender, *bodies: Body) -> None:
    """Send each body as its source would: an inferred end has a source of its own."""
    for body in bodies:
        is_inferred = isinstance(body, Completion) and body.of is not None
        source = f"{SOURCE}~end-{body.produced}" if is_inferred and isinstance(body, Completion) else SOURCE
        sender.send(body, source=source, attempt=0)


@pytest.mark.parametrize("is_own_first", [True, False])
@pytest.mark.parametrize("is_in_one_batch", [True, False])
def test_the_own_completion_counts(
    resources: Resources, sender: Sender, *, is_own_first: bool, is_in_one_batch: bool
) -> None:
    """The copy of a living trainer's spool may be sent before or after the trainer's completion."""
    send(sender, logs("a"), logs("b"))
    drain(resources)
    for body in (own(), inferred()) if is_own_first else (inferred(), own()):
        send(sender, body)
        if not is_in_one_batch:
            drain(resources, "completions")
    drain(resources, "completions")
    found = sum_of(resources)
    assert (found.state, found.status, found.silent_sources) == ("complete", "completed", ())
    assert found.produced == found.stored == 4


def test_an_inferred_end_leaves_a_running_job_open(resources: Resources, sender: Sender) -> None:
    """After the copy of a living trainer's spool was sent, its job is running, and its next lines are stored."""
    send(sender, logs("a"), inferred())
    drain(resources)
    drain(resources, "completions")
    assert (sum_of(resources).state, sum_of(resources).status) == ("open", "running")
    send(sender, logs("b"))
    drain(resources)
    send(sender, own())
    drain(resources, "completions")
    assert sum_of(resources).state == "complete"


def test_the_highest_of_several_inferred_ends_counts(resources: Resources, sender: Sender) -> None:
    """Two copies of a spool are sent after the messages of the killed trainer: the highest counts are kept."""
    for end in (inferred(logs=3, dropped=7), inferred(logs=1, dropped=2), inferred(logs=3, dropped=7)):
        send(sender, end)
        drain(resources, "completions")
    send(sender, logs("a"))
    drain(resources)
    found = sum_of(resources)
    assert (found.missing, found.dropped, found.silent_sources) == (2, 7, (SOURCE,))


@pytest.mark.parametrize("is_in_one_batch", [True, False])
@pytest.mark.parametrize("counts", [(5, 2), (2, 5)])
def test_the_highest_of_several_own_completions_counts(
    resources: Resources, sender: Sender, counts: tuple[int, int], *, is_in_one_batch: bool
) -> None:
    """A second completion does not make the sum forget messages that the first has counted."""
    send(sender, logs("a"), logs("b"))
    drain(resources)
    for number in counts:
        send(sender, own(logs=number))
        if not is_in_one_batch:
            drain(resources, "completions")
    drain(resources, "completions")
    assert (sum_of(resources).state, sum_of(resources).missing) == ("incomplete", 3)


@pytest.mark.parametrize("is_own_first", [True, False])
@pytest.mark.parametrize("is_in_one_batch", [True, False])
def test_the_own_completion_replaces_an_inferred_end_in_every_kind(
    resources: Resources, sender: Sender, *, is_own_first: bool, is_in_one_batch: bool
) -> None:
    """Inferred counts are removed also for kinds that the completion does not name."""
    end = Completion(
        ts=NOW_NS, status="ended", of=SOURCE, produced={"logs": 7, "checkpoints": 100}, dropped={"metrics": 50}
    )
    send(sender, logs("a"), logs("b"))
    drain(resources)
    for body in (own(), end) if is_own_first else (end, own()):
        send(sender, body)
        if not is_in_one_batch:
            drain(resources, "completions")
    drain(resources, "completions")
    assert sum_of(resources).line.startswith("complete: 4 messages produced = 4 stored")


def test_a_completion_that_postgres_refuses_counts_nothing(resources: Resources, sender: Sender) -> None:
    """The counts of a refused completion are not stored; those of the next completion are."""
    send(sender, logs("a"), logs("b"))
    drain(resources)
    with resources.engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE training_logs ADD CONSTRAINT no_poison CHECK (content NOT LIKE '%poison%')")
        )
    try:
        send(sender, own(logs=9, status="failed", traceback="poison"), own())
        drain(resources, "completions")
    finally:
        with resources.engine.begin() as connection:
            connection.execute(text("ALTER TABLE training_logs DROP CONSTRAINT IF EXISTS no_poison"))
    assert rows(resources.engine, dead_letters, "reason", order=["id"]) == ["refused"]
    assert (sum_of(resources).state, sum_of(resources).missing) == ("accounted", 0)


def test_a_resend_of_an_inferred_end_is_a_duplicate(resources: Resources, sender: Sender) -> None:
    """An inferred end that is sent again is stored once, under its own name."""
    for _ in range(2):
        sender.send(inferred(), source=f"{SOURCE}~end-1", seq=1)
    assert drain(resources, "completions").duplicates == 1


@pytest.mark.parametrize("is_own_first", [True, False])
def test_a_completion_that_is_dead_lettered_proves_nothing(
    resources: Resources, sender: Sender, *, is_own_first: bool
) -> None:
    """After a dead-lettered completion only the inferred end counts."""
    send(sender, logs("a"))
    drain(resources)
    broken = own(exit_code=2**31)
    for body in (broken, inferred()) if is_own_first else (inferred(), broken):
        send(sender, body)
        drain(resources, "completions")
    found = sum_of(resources)
    assert rows(resources.engine, dead_letters, "reason", order=["id"]) == ["out-of-range"]
    assert (found.dead_lettered, found.silent_sources, found.open_sources) == (1, (SOURCE,), ())


def test_an_inferred_end_belongs_to_the_attempt_of_its_source(resources: Resources, sender: Sender) -> None:
    """An inferred end belongs to the source's attempt, also after the second attempt began."""
    send(sender, logs("a"))
    drain(resources)
    sender.send(completion("failed", ts=NOW_NS + 1, started_at=NOW_NS), source="0-launcher", attempt=0)
    drain(resources, "completions")
    sender.send(logs("b", ts=NOW_NS + 9_000, started_at=NOW_NS + 9_000), source="0-second", attempt=0)
    drain(resources)
    assert one(resources.engine, training_jobs, id=1)["attempt"] == 2
    send(sender, inferred())
    drain(resources, "completions")
    found = sum_of(resources)
    assert (found.attempt, found.open_sources, found.silent_sources) == (2, ("0-second",), (SOURCE,))
    assert one(resources.engine, training_jobs, id=1)["attempt"] == 2


@pytest.mark.parametrize("attempt", [1, 5])
@pytest.mark.parametrize("is_in_one_batch", [True, False])
def test_an_inferred_end_moves_no_attempt(
    resources: Resources, sender: Sender, attempt: int, *, is_in_one_batch: bool
) -> None:
    """A source keeps its attempt when the sender of its spool states another; its completion ends the job."""
    sender.send(logs("a", started_at=NOW_NS), source="0-old", attempt=1)
    drain(resources)
    sender.send(completion("failed", produced={"logs": 1, "completions": 1}), source="0-old", attempt=1)
    drain(resources, "completions")
    sender.send(logs("b", started_at=NOW_NS + 9 * SECOND_NS), source=SOURCE, attempt=0)
    drain(resources)
    sender.send(inferred(), source="hostile", attempt=attempt)
    if not is_in_one_batch:
        drain(resources, "completions")
    sender.send(logs("c", started_at=NOW_NS + 9 * SECOND_NS), source=SOURCE, attempt=0)
    drain(resources)
    sender.send(own(exit_code=0, ts=NOW_NS + 20 * SECOND_NS), source=SOURCE, attempt=0)
    drain(resources, "completions")
    job = one(resources.engine, training_jobs, id=1)
    assert (job["attempt"], job["status"], job["exit_code"]) == (2, "completed", 0)
    assert rows(resources.engine, training_logs, "attempt") == [1, 2, 2]
    with resources.engine.connect() as connection:
        attempts = {row.source: row.attempt for row in find_positions(connection, 1)}
    assert attempts[SOURCE] == 2


def test_a_sender_of_inferred_ends_keeps_its_attempt(resources: Resources, sender: Sender) -> None:
    """A source of attempt 2 that sends the spool of a source of attempt 1 stays in attempt 2."""
    sender.send(logs("a"), source="0-old", attempt=1)
    sender.send(logs("b"), source=SOURCE, attempt=2)
    drain(resources)
    sender.send(inferred(of="0-old"), source=SOURCE, attempt=0)
    sender.send(logs("c"), source=SOURCE, attempt=0)
    drain(resources, "completions")
    drain(resources)
    assert rows(resources.engine, training_logs, "attempt") == [1, 2, 2]


@pytest.mark.parametrize("counts", [None, {"log": 50}, {"log": 50, "completions": 1}, {"completions": 1}])
@pytest.mark.parametrize("is_in_logs", [True, False])
def test_a_completion_that_does_not_count_proves_nothing(
    resources: Resources, sender: Sender, counts: dict[str, int] | None, *, is_in_logs: bool
) -> None:
    """Without `produced`, with an unknown kind, or without a kind that was sent, the counts are incomplete."""
    if is_in_logs:
        send(sender, logs("a"))
        drain(resources)
    send(sender, completion(produced=counts, started_at=NOW_NS))
    drain(resources, "completions")
    is_counted = counts == {"completions": 1} and not is_in_logs
    assert sum_of(resources).state == ("complete" if is_counted else "unproven")
    assert sum_of(resources).uncounted_sources == (() if is_counted else (SOURCE,))


def test_an_end_of_an_unknown_source(resources: Resources, sender: Sender) -> None:
    """Messages of an unknown source are missing until they arrive; a NUL in its name is replaced."""
    sender.send(inferred(of="\x00", logs=1), source="x~end", attempt=0)
    drain(resources, "completions")
    assert (sum_of(resources).missing, sum_of(resources).silent_sources) == (1, ("\u2400",))


@pytest.mark.parametrize(
    "size", [0, -1, 1_000_001, 2**31, 2**63], ids=["none", "negative", "over", "beyond-int", "beyond-bigint"]
)
def test_a_world_size_out_of_bounds_is_dead_lettered(resources: Resources, sender: Sender, size: int) -> None:
    """The number of ranks may be from 1 to 1,000,000."""
    sender.send(Metrics(ts=NOW_NS, progress=Progress(status="running"), world_size=size, rank=0))
    sender.send(logs("a"))
    drain(resources, "metrics")
    drain(resources)
    (detail,) = rows(resources.engine, dead_letters, "detail", order=["id"])
    assert "$.world_size" in detail
    assert sum_of(resources).absent_ranks == ()


def test_a_world_of_ranks_is_stored(resources: Resources, sender: Sender) -> None:
    """Rank 0 states the number of ranks at its start; rank 1, of another SDK, states only its rank."""
    sender.send(Metrics(ts=NOW_NS, progress=Progress(status="running"), world_size=3, rank=0))
    sender.send(completion(produced={"metrics": 1, "completions": 1}, started_at=NOW_NS, rank=0))
    lines = logs("a")
    lines.rank = 1
    sender.send(lines, source="1-other")
    sender.send(completion(rank=1, produced={"logs": 1, "completions": 1}), source="1-other")
    for kind in ("metrics", "logs", "completions"):
        drain(resources, kind)
    found = sum_of(resources)
    assert found.line.endswith("; not reported: rank 2 of 3")
    assert (found.state, found.status) == ("unproven", "completed")


@pytest.mark.parametrize("attempt", [0, 3])
def test_a_killed_source_that_sent_nothing_is_part_of_the_sum(
    resources: Resources, sender: Sender, attempt: int
) -> None:
    """The completion of a launcher names a source of its command: the sum is not complete, and names it too."""
    counts = {"completions": 1}
    sender.send(completion(exit_code=137, produced=counts, killed=[SOURCE]), source="0-launcher", attempt=attempt)
    drain(resources, "completions")
    found = sum_of(resources)
    assert (found.state, found.status, found.silent_sources) == ("unproven", "failed", (SOURCE,))
    assert found.produced == found.stored == 1
    assert {row.attempt for row in positions_of(resources)} == {attempt or 1}


@pytest.mark.parametrize("is_own_first", [True, False])
def test_a_source_that_was_not_killed_after_all_is_complete(
    resources: Resources, sender: Sender, *, is_own_first: bool
) -> None:
    """The completion of the source itself, before or after the launcher's, has the counts that apply."""
    launcher = completion(exit_code=0, produced={"completions": 1}, killed=[SOURCE])
    ends: list[tuple[Body, str]] = [(launcher, "0-launcher"), (own(logs=1), SOURCE)]
    send(sender, logs("a"))
    for body, source in ends[::-1] if is_own_first else ends:
        sender.send(body, source=source, attempt=0)
        drain(resources, "completions")
    drain(resources)
    assert (sum_of(resources).state, sum_of(resources).silent_sources) == ("complete", ())


def positions_of(resources: Resources) -> list[SourcePosition]:
    """Return the positions of the sources of job 1."""
    with resources.engine.connect() as connection:
        return list(find_positions(connection, 1))
