"""Events of committed transactions, as they are made and as a subscriber receives them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import redis
from redis.client import PubSub
from sqlalchemy import text

from tests.factories import NOW_NS, SECOND_NS, Sender, checkpoint, completion, logs, metrics, one, rows
from trainwire.schemas.events import (
    Event,
    LogLine,
    MetricPoint,
    SavedCheckpoint,
    TrainingCheckpoint,
    TrainingComplete,
    TrainingError,
    TrainingLog,
    TrainingProgress,
    TrainingStatus,
    decode_event,
)
from trainwire.schemas.keys import DEFAULT_SHARDS, JOBS_CHANNEL, Kind, events_channel, shard_of, stream_key
from trainwire.schemas.tables import training_jobs, training_logs
from trainwire.schemas.wire.messages import Metrics, Point, Progress
from trainwire.workers.drain import job_rows, store
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.jobs import UNLOADED
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.errors import Unavailable
from trainwire.workers.events import notify
from trainwire.workers.events.notify import events_of, publish, with_subscribers
from trainwire.workers.resources import Resources

HOSTILE = '<script>alert("x")</script>\x1b[31m{"type":"training_error"}\u2028\r\nPUBLISH events:1 x'


def announced(resources: Resources, kind: Kind = "logs", job: int = 1) -> list[list[Event]]:
    """Drain the stream of this job's shard; return the events of each transaction."""
    told: list[list[Event]] = []
    stream = IngestStream(resources.redis, kind, shard_of(job, DEFAULT_SHARDS))
    Drain(
        resources.engine, stream, resources.settings, on_commit=lambda changes: told.append(events_of(changes))
    ).run()
    return told


def events(resources: Resources, kind: Kind = "logs", job: int = 1) -> list[Event]:
    """Drain; return all events."""
    return [event for transaction in announced(resources, kind, job) for event in transaction]


def began(job: int = 1, previous: Any = "pending", attempt: int = 1) -> TrainingStatus:
    """The event of a job that began."""
    return TrainingStatus(job_id=job, attempt=attempt, status="running", previous_status=previous)


def log_line(seq: int, text: str, ts: int = NOW_NS, attempt: int = 1) -> LogLine:
    """A line of stdout."""
    return LogLine(seq=seq, attempt=attempt, ts=ts, log_type="stdout", text=text)


def log_event(*lines: LogLine, job: int = 1, attempt: int = 1) -> TrainingLog:
    """The event that carries these lines."""
    return TrainingLog(
        job_id=job,
        attempt=attempt,
        kind="logs",
        first_seq=lines[0].seq,
        last_seq=lines[-1].seq,
        lines=list(lines),
    )


def test_log_lines_of_one_transaction_are_one_event_a_job(resources: Resources, sender: Sender) -> None:
    """Each job's event has the range of its rows, across messages and sources, after an event of its start."""
    sender.send(logs("a", "b"))
    sender.send(logs("x"), job=5)
    sender.send(logs("c"), source="1-other")
    assert announced(resources) == [
        [
            began(1),
            log_event(log_line(1, "a"), log_line(2, "b", NOW_NS + 1000), log_line(3, "c")),
            began(5),
            log_event(log_line(1, "x"), job=5),
        ]
    ]
    sender.send(logs("d"))
    assert events(resources) == [log_event(log_line(4, "d"))]


def test_lines_are_those_that_are_stored(resources: Resources, sender: Sender) -> None:
    """Hostile text and NUL are in events as in the rows."""
    sender.send(logs(HOSTILE, "nul \x00", "☃"))
    _, event = events(resources)
    assert isinstance(event, TrainingLog)
    assert event.lines is not None
    stored = rows(resources.engine, training_logs, "content")
    assert [line.text for line in event.lines] == stored == [HOSTILE, "nul ␀", "☃"]


def test_points_and_progress_are_one_event(resources: Resources, sender: Sender) -> None:
    """The event has the job's state after the commit and the values of the newest point."""
    sender.send(metrics(epoch=1, loss=0.5))
    points = [Point(ts=NOW_NS + 5, epoch=2, step=7, values={"loss": 0.0, "f1": float("nan")})]
    progress = Progress(current_epoch=2, total_epochs=8)
    sender.send(Metrics(points=points, progress=progress, rank=0))
    assert events(resources, "metrics") == [
        began(),
        TrainingProgress(
            job_id=1,
            attempt=1,
            kind="metrics",
            first_seq=1,
            last_seq=2,
            status="running",
            current_epoch=2,
            total_epochs=8,
            progress_percent=25.0,
            metrics={"loss": 0.0, "f1": "NaN"},
            points=[
                MetricPoint(seq=1, attempt=1, ts=NOW_NS, epoch=1, values={"loss": 0.5}),
                MetricPoint(
                    seq=2, attempt=1, ts=NOW_NS + 5, epoch=2, step=7, values={"loss": 0.0, "f1": "NaN"}, rank=0
                ),
            ],
        ),
    ]


def test_checkpoints_name_the_best_and_the_last(resources: Resources, sender: Sender) -> None:
    """The event has the new checkpoints and the job's best and last one."""
    sender.send(checkpoint("s3://b/1.pt", kind="epoch", epoch=1, size_bytes=10))
    sender.send(checkpoint("s3://b/best.pt", metrics={"loss": float("inf")}))
    assert events(resources, "checkpoints")[1:] == [
        TrainingCheckpoint(
            job_id=1,
            attempt=1,
            kind="checkpoints",
            first_seq=1,
            last_seq=2,
            best_checkpoint_path="s3://b/best.pt",
            last_checkpoint_path="s3://b/1.pt",
            checkpoints=[
                SavedCheckpoint(
                    seq=1,
                    attempt=1,
                    ts=NOW_NS,
                    checkpoint_kind="epoch",
                    uri="s3://b/1.pt",
                    is_best=False,
                    epoch=1,
                    size_bytes=10,
                ),
                SavedCheckpoint(
                    seq=2,
                    attempt=1,
                    ts=NOW_NS,
                    checkpoint_kind="best",
                    uri="s3://b/best.pt",
                    is_best=True,
                    metrics={"loss": "Infinity"},
                ),
            ],
        )
    ]


def test_a_completion_has_the_results_of_the_job(resources: Resources, sender: Sender) -> None:
    """training_complete has the results, with values of earlier messages where the completion has none."""
    sender.send(Metrics(ts=NOW_NS, mlflow_run_id="run7", progress=Progress(total_epochs=3)))
    events(resources, "metrics")
    sender.send(
        completion(
            exit_code=0,
            total_epochs_completed=3,
            final_metrics={"loss": 0.0},
            best_metrics={"loss": -1.5},
            best_epoch=2,
            final_checkpoint_path="s3://b/final.pt",
            best_checkpoint_path="s3://b/best.pt",
        )
    )
    assert events(resources, "completions") == [
        TrainingComplete(
            job_id=1,
            attempt=1,
            kind="completions",
            status="completed",
            exit_code=0,
            total_epochs_completed=3,
            final_metrics={"loss": 0.0},
            best_metrics={"loss": -1.5},
            best_epoch=2,
            final_checkpoint_path="s3://b/final.pt",
            best_checkpoint_path="s3://b/best.pt",
            mlflow_run_id="run7",
        )
    ]


def test_results_read_back_from_postgres_keep_their_names(resources: Resources, sender: Sender) -> None:
    """A second completion repeats the first one's NaN, which Postgres holds by name."""
    sender.send(completion(final_metrics={"loss": float("nan")}))
    events(resources, "completions")
    sender.send(completion("failed", exit_code=1, error_message="late"), source="launcher")
    (event,) = events(resources, "completions")
    assert isinstance(event, TrainingError)
    assert (event.final_metrics, event.exit_code, event.error_message) == ({"loss": "NaN"}, 1, "late")


def test_the_end_of_a_source_alone_is_no_event(resources: Resources, sender: Sender) -> None:
    """A forked child that ends after its job's completion publishes no second end."""
    sender.send(completion())
    assert len(events(resources, "completions")) == 1
    sender.send(completion("ended"), source="0-child")
    assert events(resources, "completions") == []


def test_a_failure_is_its_traceback_and_an_error(resources: Resources, sender: Sender) -> None:
    """The traceback is a log event with the job's next number; training_error replaces training_complete."""
    sender.send(logs("working"))
    events(resources)
    sender.send(completion("failed", exit_code=1, error_message="ValueError: no", traceback="File 1\nValueError"))
    assert events(resources, "completions") == [
        log_event(
            LogLine(
                seq=2,
                attempt=1,
                ts=NOW_NS + SECOND_NS,
                log_type="stderr",
                text="TRACEBACK:\nFile 1\nValueError",
            )
        ),
        TrainingError(
            job_id=1,
            attempt=1,
            kind="completions",
            status="failed",
            exit_code=1,
            error_message="ValueError: no",
        ),
    ]


def test_a_resend_is_no_event(resources: Resources, sender: Sender) -> None:
    """A message that is stored already has no event, alone or among new messages."""
    sender.send(logs("once"), seq=1)
    assert len(events(resources)) == 2
    sender.send(logs("once"), seq=1)
    assert announced(resources) == []
    sender.send(logs("once"), seq=1)
    sender.send(logs("news"), seq=2)
    assert events(resources) == [log_event(log_line(2, "news"))]


@pytest.fixture
def poison(resources: Resources) -> Iterator[str]:
    """A line that Postgres refuses."""
    with resources.engine.begin() as connection:
        connection.execute(text("ALTER TABLE training_logs ADD CONSTRAINT no_poison CHECK (content <> 'poison')"))
    yield "poison"
    with resources.engine.begin() as connection:
        connection.execute(text("ALTER TABLE training_logs DROP CONSTRAINT no_poison"))


def test_a_dead_letter_is_no_event(resources: Resources, sender: Sender, poison: str) -> None:
    """A dead-lettered message has no event and leaves no gap in the numbers."""
    unreadable = {"v": 1, "job": 1, "attempt": 1, "source": "0-test", "seq": 2, "enc": "x", "body": ""}
    sender.send(logs("before"))
    sender.send_raw("logs", 1, unreadable)
    sender.send(logs("refused", poison), seq=3)
    sender.send(logs(poison), job=5)
    sender.send(logs("after"), seq=4)
    assert events(resources) == [began(), log_event(log_line(1, "before"), log_line(2, "after"))]


def test_a_late_message_keeps_its_own_attempt(resources: Resources, sender: Sender) -> None:
    """Late lines and points have their attempt; the job's own state and newest values stay the present ones."""
    sender.send(logs("second"), source="0-b", attempt=2)
    assert events(resources)[0] == began(attempt=2)
    sender.send(logs("late"), source="0-a", attempt=1)
    assert events(resources) == [log_event(log_line(2, "late", attempt=1), attempt=2)]
    sender.send(metrics(loss=1.0), source="0-b", attempt=2)
    sender.send(metrics(loss=9.0), source="0-a", attempt=1)
    (event,) = events(resources, "metrics")
    assert isinstance(event, TrainingProgress)
    assert event.points is not None
    assert [(point.seq, point.attempt) for point in event.points] == [(1, 2), (2, 1)]
    assert (event.attempt, event.metrics) == (2, {"loss": 1.0})
    sender.send(completion("failed", error_message="old"), source="0-a", attempt=1)
    assert events(resources, "completions") == []
    assert one(resources.engine, training_jobs, id=1)["status"] == "running"


def test_a_new_attempt_is_announced(resources: Resources, sender: Sender) -> None:
    """A failed job that sends messages again is running, in its next attempt."""
    sender.send(completion("failed"), source="0-a")
    events(resources, "completions")
    sender.send(logs("again"), source="0-b", attempt=2)
    assert events(resources)[0] == began(previous="failed", attempt=2)


def test_events_have_the_attempt_that_the_worker_assigned(resources: Resources, sender: Sender) -> None:
    """Without an attempt in the message, lines of events have the attempt of their rows."""
    sender.send(logs("first"), source="0-a", attempt=0)
    sender.send(completion("failed"), source="0-a", attempt=0)
    events(resources)
    events(resources, "completions")
    sender.send(logs("second", ts=NOW_NS + 60 * SECOND_NS), source="0-b", attempt=0)
    assert events(resources) == [
        began(previous="failed", attempt=2),
        log_event(log_line(2, "second", NOW_NS + 60 * SECOND_NS, attempt=2), attempt=2),
    ]


def test_ranges_join_over_transactions(resources: Resources, sender: Sender) -> None:
    """The ranges of consecutive events have no gap, with any division of a backlog into transactions."""
    for number in range(300):
        sender.send(logs(*(f"{number} {'x' * 500}" for _ in range(10))))
    stream = IngestStream(resources.redis, "logs", 1)
    small = resources.settings.model_copy(update={"drain_batch_bytes": 200_000})
    told: list[Change] = []
    Drain(resources.engine, stream, small, on_commit=told.extend).run()
    ranges = [(event.first_seq, event.last_seq) for event in events_of(told) if isinstance(event, TrainingLog)]
    assert len(ranges) > 3
    assert (ranges[0][0], ranges[-1][1]) == (1, 3000)
    assert all(after[0] == before[1] + 1 for before, after in pairwise(ranges) if before[1])


def test_the_commit_and_the_acks_come_first(resources: Resources, sender: Sender) -> None:
    """The callback runs after the commit and the acks; if it raises, the drain continues."""
    calls = []
    sender.send(logs("a"))
    stream = IngestStream(resources.redis, "logs", 1)

    def look(_: list[Change]) -> None:
        assert rows(resources.engine, training_logs, "content") == ["a"]
        calls.append(resources.redis.xlen(stream_key("logs", 1)))
        raise ZeroDivisionError

    Drain(resources.engine, stream, resources.settings, on_commit=look).run()
    assert calls == [0]
    assert rows(resources.engine, training_logs, "content") == ["a"]


def test_a_transaction_that_is_taken_back_is_not_announced(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails before its commit has one event, after it is committed."""
    commit = store.commit
    failures = [Unavailable("deadlock")]

    def failing_once(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        commit(*arguments)

    monkeypatch.setattr(store, "commit", failing_once)
    sender.send(logs("a"))
    assert events(resources) == [began(), log_event(log_line(1, "a"))]


@pytest.fixture
def listener(client: redis.Redis) -> Iterator[PubSub]:
    """A subscriber of job 1 and of all jobs."""
    with PubSub(client.connection_pool, ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(events_channel(1), JOBS_CHANNEL)
        for _ in range(2):
            pubsub.get_message(timeout=60)
        yield pubsub


def test_events_reach_their_channels(resources: Resources, sender: Sender, listener: PubSub) -> None:
    """A job's channel has everything of that job; the channel of all jobs has all but log lines."""
    sender.send(logs("a"))
    sender.send(logs("of another"), job=5)
    said = events(resources)
    sender.send(completion())
    said += events(resources, "completions")
    publish(resources.redis, said)
    heard: dict[str, list[Event]] = {events_channel(1): [], JOBS_CHANNEL: []}
    for _ in range(6):
        message = listener.get_message(timeout=60)
        assert message is not None
        heard[message["channel"].decode()].append(decode_event(message["data"]))
    assert heard[events_channel(1)] == [event for event in said if event.job_id == 1]
    assert heard[JOBS_CHANNEL] == [event for event in said if not isinstance(event, TrainingLog)]


def test_events_without_a_subscriber_are_not_made(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only changes of followed jobs, and those for the channel of all jobs, become events."""
    all_jobs = "events:all"  # gateways of other tests subscribe to that of this server
    monkeypatch.setattr(notify, "JOBS_CHANNEL", all_jobs)

    def wanted(kind: Kind) -> list[int]:
        changes: list[Change] = []
        Drain(
            resources.engine,
            IngestStream(resources.redis, kind, 1),
            resources.settings,
            on_commit=lambda made: changes.extend(with_subscribers(resources.redis, made)),
        ).run()
        return [change.after.id for change in changes]

    def send(number: int) -> None:
        for job in (1, 5):
            sender.send(logs(f"line {number}"), job=job)
            sender.send(metrics(epoch=number, loss=0.5), job=job)

    send(1)
    assert (wanted("logs"), wanted("metrics")) == ([], [])
    with PubSub(resources.redis.connection_pool, ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(events_channel(5))
        pubsub.get_message(timeout=60)
        send(2)
        assert (wanted("logs"), wanted("metrics")) == ([5], [5])
        pubsub.subscribe(all_jobs)
        pubsub.get_message(timeout=60)
        sender.send(logs("the first"), job=9)
        send(3)
        assert sorted(wanted("logs")) == [5, 9]  # the event that job 9 has begun is for all
        assert sorted(wanted("metrics")) == [1, 5]


def test_events_are_plain_json(resources: Resources, sender: Sender) -> None:
    """Events are valid JSON, and hostile text is decoded unchanged."""
    sender.send(logs(HOSTILE))
    _, event = events(resources)
    plain = msgspec.to_builtins(event)
    assert plain["lines"][0]["text"] == HOSTILE
    assert plain["type"] == "training_log"


def test_a_batch_does_not_read_large_results(resources: Resources, sender: Sender) -> None:
    """Results are kept by batches that do not set them, replaced by a completion, and removed by a new attempt."""

    def stored() -> tuple[Any, Any]:
        (row,) = rows(resources.engine, training_jobs, "final_metrics", "best_metrics", order=["id"])
        return tuple(row)

    many = {f"m{n:05}": float(n) for n in range(10_000)}
    sender.send(completion(final_metrics=many, best_metrics={"loss": 0.5}))
    (event,) = events(resources, "completions")
    assert isinstance(event, TrainingComplete)
    assert event.final_metrics == {f"m{n:05}": float(n) for n in range(1000)}
    sender.send(logs("late"))
    events(resources)
    assert stored() == (many, {"loss": 0.5})
    with resources.engine.begin() as connection:
        (job,) = job_rows.lock_jobs(connection, [1]).values()
    assert job.final_metrics is job.best_metrics is UNLOADED
    sender.send(completion(exit_code=0, final_metrics={"loss": 0.25}), source="launcher")
    (event,) = events(resources, "completions")
    assert isinstance(event, TrainingComplete)
    assert (event.final_metrics, event.best_metrics) == ({"loss": 0.25}, {"loss": 0.5})
    assert stored() == ({"loss": 0.25}, {"loss": 0.5})
    sender.send(logs("again"), source="0-other", attempt=2)
    events(resources)
    assert stored() == (None, None)
