"""Events of a transaction, and their size."""

from __future__ import annotations

import json
import math
from copy import copy

import pytest

from tests.factories import NOW_NS, checkpoint, completion, logs, metrics
from trainwire.schemas.events import (
    Event,
    TrainingCheckpoint,
    TrainingComplete,
    TrainingError,
    TrainingLog,
    TrainingProgress,
    TrainingStatus,
    decode_events,
    encode_event,
)
from trainwire.schemas.wire.messages import KIND_OF_BODY, Body, Logs, Message, Metrics, Point, Progress
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.jobs import JobState
from trainwire.workers.drain.rows import log_lines
from trainwire.workers.events.new_rows import MAX_ROWS_BYTES
from trainwire.workers.events.notify import MAX_EVENT_BYTES, MAX_ORDER_BYTES, events_of, payloads


def changed(*bodies: Body, job: JobState | None = None, attempt: int = 1) -> Change:
    """Return the change that a transaction with these messages makes to a job, by default a running one."""
    before = job or JobState(1, status="running")
    after = copy(before)
    for body in bodies:
        after.fold(body, attempt)
        shown = log_lines(body)
        after.last_log_seq += len(shown.lines) if shown else 0
        after.last_metric_seq += len(body.points) if isinstance(body, Metrics) else 0
        after.last_checkpoint_seq += KIND_OF_BODY[type(body)] == "checkpoints"
    kind = KIND_OF_BODY[type(bodies[0])]
    messages = [Message(kind, after.id, attempt, "0-a", seq, body) for seq, body in enumerate(bodies, 1)]
    return Change(kind, before, after, messages, {})


def only(*bodies: Body, job: JobState | None = None) -> Event:
    """Return the one event of such a transaction."""
    (event,) = events_of([changed(*bodies, job=job)])
    return event


def read_back(events: list[Event]) -> list[Event]:
    """Return the events of all orders that these take."""
    return [event for payload in payloads(events) for event in decode_events(payload)]


def test_lines_of_several_messages_are_one_event() -> None:
    """The range continues the job's numbers; every line has its own."""
    event = only(logs("a", "b"), logs("c"), job=JobState(1, status="running", last_log_seq=6))
    assert isinstance(event, TrainingLog)
    assert (event.kind, event.first_seq, event.last_seq) == ("logs", 7, 9)
    assert event.lines is not None
    assert [(line.seq, line.text, line.log_type) for line in event.lines] == [
        (7, "a", "stdout"),
        (8, "b", "stdout"),
        (9, "c", "stdout"),
    ]


def test_levels_and_ranks_are_carried() -> None:
    """A line has the level and rank of its message, and its time in nanoseconds."""
    body = Logs(log_type="stderr", lines=["x", "y"], ts=[NOW_NS, NOW_NS + 1], levels=["ERROR", None], rank=2)
    event = only(body)
    assert isinstance(event, TrainingLog)
    assert event.lines is not None
    assert [(line.ts, line.level, line.rank) for line in event.lines] == [
        (NOW_NS, "ERROR", 2),
        (NOW_NS + 1, None, 2),
    ]


@pytest.mark.parametrize(
    "body",
    [
        logs("x" * MAX_ROWS_BYTES),
        logs(*["x" * 100] * 150),
        logs(*["\x1b" * 1000] * 3),  # each becomes six characters in JSON
        logs(*[""] * 1_000_000),
    ],
    ids=["one long line", "many lines", "escapes", "very many lines"],
)
def test_beyond_the_size_an_event_has_only_the_range(body: Logs) -> None:
    """If the lines exceed 16 KiB of JSON, all of them are left out."""
    event = only(body)
    assert isinstance(event, TrainingLog)
    assert (event.first_seq, event.last_seq, event.lines) == (1, len(body.lines), None)


def test_up_to_the_size_an_event_has_all_lines() -> None:
    """An event with lines is never larger than 16 KiB and its envelope."""
    event = only(logs(*["x" * 100] * 75))
    assert isinstance(event, TrainingLog)
    assert event.lines is not None
    assert len(event.lines) == 75
    assert len(encode_event(event)) < MAX_ROWS_BYTES + 300


def test_a_message_without_lines_is_no_event() -> None:
    """A transaction without new rows has no event."""
    assert events_of([changed(logs())]) == []


def test_a_transaction_without_changes_needs_no_order() -> None:
    """No events, no payload."""
    assert payloads(events_of([])) == []


def test_non_finite_numbers_go_by_their_names() -> None:
    """NaN and infinities in metrics, points and progress are legal JSON; 0.0 is a value."""
    said = Metrics(
        points=[Point(ts=NOW_NS, values={"loss": math.nan, "a": math.inf, "b": -math.inf, "zero": 0.0})],
        progress=Progress(progress_percent=math.nan),
    )
    event = only(said)
    assert isinstance(event, TrainingProgress)
    assert event.metrics == {"loss": "NaN", "a": "Infinity", "b": "-Infinity", "zero": 0.0}
    assert event.progress_percent == "NaN"
    assert event.points is not None
    assert event.points[0].values == event.metrics
    assert read_back([event]) == [event]
    ended = only(completion(final_metrics={"loss": math.inf}, best_metrics={"loss": 0.0}))
    assert isinstance(ended, TrainingComplete)
    assert (ended.final_metrics, ended.best_metrics) == ({"loss": "Infinity"}, {"loss": 0.0})
    assert read_back([ended]) == [ended]


def test_metrics_are_named_as_their_row_names_them() -> None:
    """`acc` and `lr` are stored as accuracy and learning_rate, and announced so; 0.0 is a value."""
    event = only(Metrics(points=[Point(ts=NOW_NS, values={"f1": 1.0, "acc": 0.5, "lr": 0.0})]))
    assert isinstance(event, TrainingProgress)
    assert event.metrics == {"accuracy": 0.5, "learning_rate": 0.0, "f1": 1.0}
    assert event.points is not None
    assert event.points[0].values == event.metrics


def test_progress_without_points_has_no_range() -> None:
    """The event of a message with progress only has no range of rows."""
    event = only(Metrics(ts=NOW_NS, progress=Progress(current_epoch=2, total_epochs=8)))
    assert isinstance(event, TrainingProgress)
    assert (event.first_seq, event.last_seq, event.points, event.metrics) == (None, None, None, None)
    assert (event.status, event.current_epoch, event.total_epochs) == ("running", 2, 8)
    assert event.progress_percent == 25.0


def test_the_newest_point_names_the_checkpoint() -> None:
    """`checkpoint_path` is that of the newest point, or else the last of the job."""
    job = JobState(
        1, status="running", last_checkpoint_path="s3://b/last.pt", best_checkpoint_path="s3://b/best.pt"
    )
    plain = only(metrics(loss=1.0), job=job)
    named = only(Metrics(points=[Point(ts=1, values={}, checkpoint_path="s3://b/2.pt")]), job=job)
    assert isinstance(plain, TrainingProgress)
    assert isinstance(named, TrainingProgress)
    assert (plain.checkpoint_path, plain.best_checkpoint_path) == ("s3://b/last.pt", "s3://b/best.pt")
    assert named.checkpoint_path == "s3://b/2.pt"


def test_events_have_invalid_text_as_it_is_stored() -> None:
    """NUL in lines, names and paths is replaced as in Postgres."""
    line = only(logs("a\x00b"))
    assert isinstance(line, TrainingLog)
    assert line.lines is not None
    assert line.lines[0].text == "a␀b"
    saved = only(checkpoint("s3://b/\x00", kind="e\x00", metrics={"n\x00": 1.0}))
    assert isinstance(saved, TrainingCheckpoint)
    assert saved.checkpoints is not None
    (item,) = saved.checkpoints
    assert (item.uri, item.checkpoint_kind, item.metrics) == ("s3://b/␀", "e␀", {"n␀": 1.0})


def test_a_first_message_is_an_event_of_the_start() -> None:
    """The first message of a pending job has an event of the status running before that of its rows."""
    began, line = events_of([changed(logs("a"), job=JobState(9))])
    assert began == TrainingStatus(job_id=9, attempt=1, status="running", previous_status="pending")
    assert isinstance(line, TrainingLog)


def test_a_job_that_begins_and_ends_at_once_only_ends() -> None:
    """A job that begins and ends within one transaction has no event of the status running."""
    (event,) = events_of([changed(completion("failed", exit_code=3, error_message="boom"), job=JobState(9))])
    assert isinstance(event, TrainingError)
    assert (event.status, event.exit_code, event.error_message, event.first_seq) == ("failed", 3, "boom", None)


def test_a_rank_that_completes_does_not_end_the_job() -> None:
    """Only rank 0, or any failure, ends it."""
    assert events_of([changed(completion(rank=3))]) == []


def test_an_event_too_large_for_one_keeps_its_range_and_numbers() -> None:
    """An event that is too large loses its maps and has its texts shortened, and keeps range and numbers."""
    job = JobState(1, status="running", last_checkpoint_path="s3://" + "x" * 500_000)
    values = {f"metric_{number}": 1.0 for number in range(9000)}
    huge = only(Metrics(points=[Point(ts=NOW_NS, values=values)]), job=job)
    (event,) = read_back([huge])
    assert isinstance(event, TrainingProgress)
    assert (event.first_seq, event.last_seq, event.metrics, event.points) == (1, 1, None, None)
    assert event.checkpoint_path is not None
    assert (len(event.checkpoint_path), event.checkpoint_path[-1]) == (1001, "…")
    assert len(encode_event(event)) <= MAX_EVENT_BYTES


def test_many_large_events_lose_their_lines_and_keep_their_ranges() -> None:
    """Events over 256 KiB in total go without lines, in one order."""
    events = events_of(changed(logs("x" * 10_000), job=JobState(n, status="running")) for n in range(1, 31))
    assert all(isinstance(event, TrainingLog) and event.lines for event in events)
    assert len(payloads(events)) == 1
    light = read_back(events)
    assert [(event.job_id, event.first_seq, event.last_seq) for event in light] == [
        (n, 1, 1) for n in range(1, 31)
    ]
    assert all(isinstance(event, TrainingLog) and event.lines is None for event in light)


def test_events_of_very_many_jobs_are_made_without_lines() -> None:
    """The events of 2,000 jobs carry no lines, which would not fit in any case, and all of their ranges."""
    events = events_of(changed(logs("x"), job=JobState(n, status="running")) for n in range(1, 2001))
    assert read_back(events) == events
    assert all(isinstance(event, TrainingLog) and event.lines is None for event in events)
    assert [(event.job_id, event.first_seq, event.last_seq) for event in events] == [
        (n, 1, 1) for n in range(1, 2001)
    ]
    few = events_of(changed(logs("x"), job=JobState(n, status="running")) for n in range(1, 1001))
    assert all(isinstance(event, TrainingLog) and event.lines for event in few)


def test_many_jobs_take_several_orders() -> None:
    """Each order is bounded, and contains each event once."""
    events = events_of(changed(metrics(loss=0.5), job=JobState(n, status="running")) for n in range(1, 3001))
    packs = payloads(events)
    assert len(packs) > 1
    assert all(len(pack) <= MAX_ORDER_BYTES for pack in packs)
    assert [event["job_id"] for pack in packs for event in json.loads(pack)] == list(range(1, 3001))
    assert all(
        isinstance(event, TrainingProgress) and event.metrics == {"loss": 0.5} for event in read_back(events)
    )
