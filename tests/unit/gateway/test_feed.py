"""The live feed of one job, with lost, repeated and reordered events of the notifier."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.gateway.feed_model import JOB, Follower, Gateway, StoredJob
from trainwire.gateway.feed.feed_rows import FeedPosition, RowGap
from trainwire.gateway.feed.job_feed import MAX_QUEUED, JobFeed
from trainwire.schemas.events import (
    Event,
    TrainingComplete,
    TrainingLog,
    TrainingProgress,
    TrainingStatus,
    decode_event,
    encode_event,
)
from trainwire.schemas.tables.kinds import ROW_KINDS

START = FeedPosition(0, 0, 0)


def sent(feed: JobFeed) -> list[Event]:
    """Process the queue and return the events for clients."""
    assert feed.advance() is None
    return [one.event for one in feed.take()]


def feed_of(job: StoredJob) -> JobFeed:
    """Return a feed that starts at the current row."""
    return JobFeed(JOB, job.row())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.sampled_from(list(ROW_KINDS)), st.integers(1, 7), st.booleans()),
        st.tuples(st.sampled_from(["attempt", "complete", "deliver", "poll", "join", "come_back", "restart"])),
    ),
    max_size=60,
)


class Story:
    """A job, its gateway and all clients that ever followed it."""

    def __init__(self, chance: random.Random, lost: float) -> None:
        self.job = StoredJob()
        self.gateway = Gateway(self.job)
        self.all_clients: list[Follower] = []
        self._pending: list[Event] = []
        self._chance = chance
        self._lost = lost

    def commit(self, *step: Any) -> None:
        """Store and announce rows."""
        kind, count, with_rows = step
        self._pending.append(self.job.commit(kind, count, with_rows=with_rows))

    def attempt(self) -> None:
        """Begin a new attempt of a finished job."""
        if self.job.state.is_finished:
            self._pending.append(self.job.begin_attempt())

    def complete(self) -> None:
        """End the attempt."""
        self._pending.append(self.job.complete())

    def poll(self) -> None:
        """Read the job's row in Postgres."""
        self.gateway.poll()

    def join(self) -> None:
        """Connect a client with a snapshot."""
        self.all_clients.append(Follower(self.job.position, self.job.state))
        self.gateway.join(self.all_clients[-1])

    def come_back(self) -> None:
        """Reconnect a client with its position."""
        if self.gateway.followers:
            self._rejoin(self.gateway.followers.pop(0))

    def restart(self) -> None:
        """Start a new gateway, to which all clients reconnect."""
        before = self.gateway.followers
        self.gateway = Gateway(self.job)
        for follower in before:
            self._rejoin(follower)

    def deliver(self) -> None:
        """Deliver pending events with losses, repetitions and in random order; some are repeated later."""
        chance = self._chance
        arriving = [
            event
            for event in self._pending
            for _ in range(chance.choice([1, 1, 2]))
            if chance.random() >= self._lost
        ]
        if chance.random() < 0.5:
            chance.shuffle(arriving)
        self._pending = [event for event in arriving if chance.random() < 0.05]
        for event in arriving:
            self.gateway.feed.receive(event)
            if chance.random() < 0.3:
                self.gateway.pump()
        self.gateway.pump()

    def _rejoin(self, follower: Follower) -> None:
        follower.is_live = False
        follower.state = self.job.state  # from the frame "resumed"
        self.gateway.join(follower)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, chance=st.randoms(use_true_random=False), lost=st.sampled_from([0.0, 0.2, 0.9]))
def test_every_client_gets_every_row_once_in_order(
    steps: list[tuple[Any, ...]], chance: random.Random, lost: float
) -> None:
    """With events lost, repeated and reordered, reconnects and restarts: each row arrives once, in order."""
    story = Story(chance, lost)
    story.join()
    for step, *arguments in steps:
        getattr(story, step)(*arguments)
    story.deliver()
    story.poll()
    for follower in story.all_clients:
        assert follower.position == story.job.position
        assert follower.state == story.job.state
        for kind in ROW_KINDS:
            last, count = story.job.position.of(kind), len(follower.rows[kind])
            assert follower.rows[kind] == list(range(last - count + 1, last + 1))


def test_rows_that_came_with_the_event_are_not_read() -> None:
    """An event with the next rows is sent without a query."""
    job = StoredJob()
    feed = feed_of(job)
    event = job.commit("logs", 2)
    feed.receive(event)
    (log,) = sent(feed)
    assert isinstance(log, TrainingLog)
    assert (log.first_seq, log.last_seq) == (1, 2)
    assert feed.position == FeedPosition(2, 0, 0)


def test_small_transactions_become_one_event() -> None:
    """Events since the last frame are merged: one event of each type, with the newest state."""
    job = StoredJob()
    feed = feed_of(job)
    for _ in range(5):
        feed.receive(job.commit("logs", 2))
        feed.receive(job.commit("metrics", 1))
    log, progress = sent(feed)
    assert isinstance(log, TrainingLog)
    assert isinstance(progress, TrainingProgress)
    assert (log.last_seq, progress.first_seq, progress.last_seq, progress.current_epoch) == (10, 1, 5, 5)


def test_an_overtaken_event_is_not_read_from_postgres() -> None:
    """Two events in the wrong order are reordered without a query."""
    job = StoredJob()
    feed = feed_of(job)
    first, second = job.commit("logs", 1), job.commit("logs", 1)
    feed.receive(second)
    feed.receive(first)
    (log,) = sent(feed)
    assert log.last_seq == 2


def test_a_lost_event_is_a_gap() -> None:
    """Rows of a lost event must be read; until then no rows after them are sent."""
    job = StoredJob()
    feed = feed_of(job)
    job.commit("logs", 4)
    feed.receive(job.commit("logs", 1))
    assert feed.advance() == RowGap("logs", 0, 4)
    assert feed.take() == []


def test_events_about_missing_rows_are_dropped() -> None:
    """An event about rows that are not in Postgres is dropped, and the feed continues."""
    job = StoredJob()
    gateway = Gateway(job)
    gateway.feed.receive(TrainingLog(job_id=JOB, attempt=1, kind="logs", first_seq=900, last_seq=905))
    gateway.feed.receive(job.commit("logs", 1))
    gateway.pump()
    assert gateway.feed.position == FeedPosition(1, 0, 0)


def test_a_lost_completion_is_sent_after_the_next_poll() -> None:
    """No event follows a lost completion, so the state in Postgres is sent as the notifier's event."""
    job = StoredJob()
    feed = feed_of(job)
    job.complete()
    feed.update(job.row(feed))
    (end,) = sent(feed)
    assert isinstance(end, TrainingComplete)
    assert end.exit_code == 0
    feed.update(job.row(feed))
    assert sent(feed) == []


def test_an_older_row_reverts_no_newer_event() -> None:
    """A state that was read before an event and arrives after it is ignored."""
    job = StoredJob()
    feed = feed_of(job)
    row = job.row(feed)
    feed.receive(job.complete())
    assert len(sent(feed)) == 1
    feed.update(row)
    assert sent(feed) == []


@pytest.mark.parametrize("late", ["status", "progress"])
def test_a_finished_job_is_not_reopened_by_a_late_event(late: str) -> None:
    """The rows of an overtaken event are sent, its state is not."""
    job = StoredJob()
    feed = feed_of(job)
    event = (
        TrainingStatus(job_id=JOB, attempt=1, status="running") if late == "status" else job.commit("metrics", 1)
    )
    feed.receive(job.complete())
    feed.receive(event)
    events = sent(feed)
    assert isinstance(events[0], TrainingComplete)
    assert [event.status for event in events[1:] if isinstance(event, TrainingProgress)] == ["completed"] * (
        late == "progress"
    )
    assert not [event for event in events if isinstance(event, TrainingStatus)]


def test_the_end_of_one_attempt_and_the_next_keep_their_order() -> None:
    """State events keep their order, though log events around them are merged."""
    job = StoredJob()
    feed = feed_of(job)
    for event in (job.commit("logs", 1), job.complete(), job.begin_attempt(), job.commit("logs", 1)):
        feed.receive(event)
    assert [type(event).__name__ for event in sent(feed)] == ["TrainingLog", "TrainingComplete", "TrainingStatus"]


def test_rows_of_dropped_events_are_sent_after_the_next_poll() -> None:
    """A full queue is cleared while Postgres is unavailable; the next poll finds its rows."""
    job = StoredJob()
    gateway = Gateway(job)
    follower = Follower(START, job.state)
    gateway.join(follower)
    job.commit("logs", 1)
    for _ in range(MAX_QUEUED + 10):
        gateway.feed.receive(job.commit("logs", 1))
    gateway.poll()
    assert follower.position == job.position


def test_points_are_sent_as_stored() -> None:
    """A point of an event equals its stored row: its time is in whole microseconds."""
    job = StoredJob()
    feed = feed_of(job)
    event = job.commit("metrics", 1)
    assert isinstance(event, TrainingProgress)
    assert event.points
    point = replace(event.points[0], ts=1_234_567)
    feed.receive(replace(event, points=[point]))
    (progress,) = sent(feed)
    assert isinstance(progress, TrainingProgress)
    assert decode_event(encode_event(progress)) == replace(event, points=[replace(point, ts=1_234_000)])


def test_an_event_whose_rows_are_half_read_adds_only_the_other_half() -> None:
    """Rows that were read before their event arrived are not sent twice."""
    job = StoredJob()
    feed = feed_of(job)
    event = job.commit("logs", 5)
    feed.update(job.row(feed))
    gap = feed.advance()
    assert gap is not None
    feed.fill(job.read(gap))
    feed.receive(event)
    follower = Follower(START, job.state)
    assert feed.advance() is None
    for one in feed.take():
        follower.receive(one)
    assert follower.rows["logs"] == [1, 2, 3, 4, 5]
