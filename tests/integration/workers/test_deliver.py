"""Deliveries: cursors move after confirmation only, an outage costs one probe, and no job starves."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, completion, drain, logs, one, rows
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.tables import dead_letters, delivery_cursors, sink_states
from trainwire.workers.resources import Resources
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.base import RefusedRow, SinkUnavailable
from trainwire.workers.sinks.deliver import PUSHES_AT_ONCE, ROUND_JOBS, Delivery, DeliveryReport
from trainwire.workers.sinks.loki.backlog import LogBacklog, read_rows
from trainwire.workers.sinks.loki.entries import DeliveredLines, LogBatch, newest_after

BACKOFF = Backoff(first_s=1000, cap_s=1000)


class ListSink:
    """A sink in memory that is unavailable, or refuses rows, as the test sets it."""

    name = "list"

    def __init__(self) -> None:
        self.lines: dict[int, list[str]] = defaultdict(list)
        self.calls = 0
        self.away: SinkUnavailable | None = None
        self.refuses: set[str] = set()
        self.most_rows = 1000
        self.crashes_after_storing = 0

    def deliver(self, job_id: int, batch: LogBatch) -> Iterator[DeliveredLines]:
        """Keep a prefix of the rows."""
        self.calls += 1
        if self.away is not None:
            raise self.away
        packs = [pack for window in batch.windows for pack in window]
        taken = batch.read_rows(batch.confirmed_seq, packs[-1].last_seq)[: self.most_rows]
        refused = [
            RefusedRow(row.seq, row.source, "refused", "not this one")
            for row in taken
            if row.content in self.refuses
        ]
        self.lines[job_id] += [row.content for row in taken if row.content not in self.refuses]
        if self.crashes_after_storing:
            self.crashes_after_storing -= 1
            raise KeyboardInterrupt
        yield DeliveredLines(taken[-1].seq, refused, newest_ns=newest_after(packs, batch.newest_ns))


def deliver(resources: Resources, sink: ListSink, slice_s: float = 1e6) -> DeliveryReport:
    """Run one delivery as a worker does; every call of the sink takes a second."""
    backlog = LogBacklog(resources.engine, sink.name)
    return Delivery(
        resources.engine, backlog, sink, slice_s=slice_s, backoff=BACKOFF, clock=lambda: float(sink.calls)
    ).run()


def publish(resources: Resources, sender: Sender, *lines: str, job: int = 1) -> None:
    """Bring lines into Postgres."""
    sender.send(logs(*lines), job=job)
    drain(resources, job=job)


def test_rows_reach_the_sink_once_and_in_order(resources: Resources, sender: Sender) -> None:
    """Rows are delivered in order, and the next delivery sends only new rows."""
    sink = ListSink()
    publish(resources, sender, "a", "b")
    deliver(resources, sink)
    publish(resources, sender, "c")
    deliver(resources, sink)
    deliver(resources, sink)
    assert sink.lines[1] == ["a", "b", "c"]
    assert sink.calls == 2
    assert one(resources.engine, delivery_cursors, sink="list", job_id=1)["confirmed_seq"] == 3


def test_rows_have_the_trainers_time(resources: Resources, sender: Sender) -> None:
    """The sink gets the trainer's time as an integer of nanoseconds."""
    publish(resources, sender, "a")
    with resources.engine.connect() as connection:
        (row,) = read_rows(connection, 1, after=0, most_rows=10, most_bytes=10)
    assert isinstance(row.ts_ns, int)
    assert row.ts_ns == NOW_NS


def test_a_sink_that_takes_a_part_is_given_the_rest(resources: Resources, sender: Sender) -> None:
    """The cursor moves to the last confirmed row, and the next batch begins after it."""
    sink = ListSink()
    sink.most_rows = 3
    publish(resources, sender, *(f"{n}" for n in range(20)))
    deliver(resources, sink)
    assert sink.lines[1] == [f"{n}" for n in range(20)]


def test_an_outage_holds_the_cursor_and_costs_one_probe(resources: Resources, sender: Sender) -> None:
    """With a thousand jobs, an outage costs a few calls, then none until the next probe, which is one call."""
    sink = ListSink()
    for job in range(1, 1001):
        sender.send(logs(f"line of {job}"), job=job)
    for job in range(4):
        drain(resources, job=job)
    sink.away = SinkUnavailable("it is away")
    with pytest.raises(SinkUnavailable):
        deliver(resources, sink)
    assert sink.calls <= 4
    state = one(resources.engine, sink_states, sink="list")
    assert (state["attempts"], state["last_error"]) == (1, "it is away")
    calls = sink.calls
    for _ in range(10):
        deliver(resources, sink)
    assert sink.calls == calls

    let_the_probe_be_due(resources)
    with pytest.raises(SinkUnavailable):
        deliver(resources, sink)
    assert sink.calls == calls + 1
    assert one(resources.engine, sink_states, sink="list")["attempts"] == 2

    sink.away = None
    let_the_probe_be_due(resources)
    deliver(resources, sink)
    assert {job: lines for job, lines in sink.lines.items() if lines} == {
        job: [f"line of {job}"] for job in range(1, 1001)
    }
    state = one(resources.engine, sink_states, sink="list")
    assert (state["attempts"], state["down_since"], state["next_probe_at"]) == (0, None, None)


def test_the_sinks_own_wish_is_honoured(resources: Resources, sender: Sender) -> None:
    """Retry-After sets the time of the next attempt instead of the backoff."""
    sink = ListSink()
    publish(resources, sender, "a")
    sink.away = SinkUnavailable("too many requests", retry_after_s=7)
    with pytest.raises(SinkUnavailable):
        deliver(resources, sink)
    wait = text("SELECT extract(epoch FROM next_probe_at - now()) FROM sink_states")
    with resources.engine.connect() as connection:
        assert 5 < float(connection.execute(wait).scalar_one()) <= 7


def test_a_row_that_the_sink_refuses_is_dead_lettered_once(resources: Resources, sender: Sender) -> None:
    """A refused row is a dead letter with the sink's error, also after a replay; other rows arrive."""
    sink = ListSink()
    sink.refuses = {"bad"}
    publish(resources, sender, "good", "bad", "fine")
    deliver(resources, sink)
    with resources.engine.begin() as connection:
        cursors.move_back(connection, "list", 1, from_seq=2)
    deliver(resources, sink)
    assert sink.lines[1] == ["good", "fine", "fine"]
    letters = rows(resources.engine, dead_letters, "stream", "seq", "reason", "detail", order=["seq"])
    assert letters == [("sink:list", 2, "refused", "not this one")]


def test_a_crash_between_push_and_commit_sends_the_same_again(resources: Resources, sender: Sender) -> None:
    """The cursor stays, the lease is free, and the next delivery begins at the same row."""
    sink = ListSink()
    publish(resources, sender, "a", "b")
    sink.crashes_after_storing = 1
    with pytest.raises(KeyboardInterrupt):
        deliver(resources, sink)
    publish(resources, sender, "c")
    deliver(resources, sink)
    assert sink.lines[1] == ["a", "b", "a", "b", "c"]


def test_two_deliveries_share_the_jobs(resources: Resources, sender: Sender) -> None:
    """Two workers at once deliver every line once: a job is leased by one of them."""
    sink = ListSink()
    sink.most_rows = 1
    for job in range(1, 21):
        publish(resources, sender, *(f"{n}" for n in range(10)), job=job)
    threads = [threading.Thread(target=deliver, args=(resources, sink)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    deliver(resources, sink)
    assert all(sink.lines[job] == [f"{n}" for n in range(10)] for job in range(1, 21))


def test_a_long_backlog_does_not_starve_a_live_job(resources: Resources, sender: Sender) -> None:
    """With a job that is thousands of rows behind, a line of another is delivered in the first round."""
    sink = ListSink()
    sink.most_rows = 10
    publish(resources, sender, *(f"{n}" for n in range(1000)), job=1)
    publish(resources, sender, "live", job=2)
    deliver(resources, sink, slice_s=2)
    assert sink.lines[2] == ["live"]
    assert 0 < len(sink.lines[1]) < 1000


def test_a_slow_sink_does_not_outlast_the_time(resources: Resources, sender: Sender) -> None:
    """With more jobs than time, sent rows are confirmed, and the other jobs come first in the next delivery."""
    sink = ListSink()
    for job in range(1, 101):
        sender.send(logs("x"), job=job)
    for job in range(4):
        drain(resources, job=job)
    for _ in range(2):
        calls = sink.calls
        assert deliver(resources, sink, slice_s=10).more
        assert 10 <= sink.calls - calls < 10 + PUSHES_AT_ONCE
    assert sum(map(len, sink.lines.values())) == len(sink.lines) == sink.calls
    with resources.engine.connect() as connection:
        confirmed = connection.execute(text("SELECT count(*) FROM delivery_cursors WHERE confirmed_seq = 1"))
        assert confirmed.scalar_one() == sink.calls


def test_without_any_time_one_job_gets_on(resources: Resources, sender: Sender) -> None:
    """If reading alone takes the whole time slice, each delivery still delivers rows of one job."""
    sink = ListSink()
    for job in (1, 2):
        publish(resources, sender, "x", job=job)
    deliver(resources, sink, slice_s=0)
    assert sink.calls >= 1
    deliver(resources, sink, slice_s=0)
    assert dict(sink.lines) == {1: ["x"], 2: ["x"]}


def test_more_jobs_than_a_round_are_all_delivered(resources: Resources, sender: Sender) -> None:
    """Rounds continue until no job is behind."""
    sink = ListSink()
    with resources.engine.begin() as connection:
        connection.execute(text("INSERT INTO training_jobs (id) SELECT generate_series(1, 1000)"))
    for job in range(1, ROUND_JOBS + 50):
        sender.send(logs("x"), job=job)
    for job in range(4):
        drain(resources, job=job)
    deliver(resources, sink)
    assert sum(map(len, sink.lines.values())) == ROUND_JOBS + 49


def test_tracebacks_are_delivered_too(resources: Resources, sender: Sender) -> None:
    """The log row of a failed completion is delivered like any other."""
    sink = ListSink()
    sender.send(completion("failed", traceback="boom"))
    drain(resources, "completions")
    deliver(resources, sink)
    assert sink.lines[1] == ["TRACEBACK:\nboom"]


def let_the_probe_be_due(resources: Resources) -> None:
    """Make the next probe due."""
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE sink_states SET next_probe_at = now() - interval '1 s'"))
