"""The live feed of one job: what is said whatever becomes of the notifier's messages."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.gateway.feed_model import JOB, Follower, Gateway, StoredJob
from trainwire.gateway.feed.job_feed import MAX_HEARD, JobFeed
from trainwire.gateway.feed.positions import Position
from trainwire.gateway.feed.rows import Hole
from trainwire.schemas.events import (
    Event,
    TrainingComplete,
    TrainingLog,
    TrainingProgress,
    TrainingStatus,
    decode_event,
    encode_event,
)
from trainwire.schemas.kinds import ROW_KINDS

START = Position(0, 0, 0)


def said(feed: JobFeed) -> list[Event]:
    """Work through what came and return what is said."""
    assert feed.advance() is None
    return [one.event for one in feed.take()]


def feed_of(job: StoredJob) -> JobFeed:
    """A feed that begins now."""
    return JobFeed(JOB, job.look())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.sampled_from(list(ROW_KINDS)), st.integers(1, 7), st.booleans()),
        st.tuples(st.sampled_from(["attempt", "complete", "deliver", "look", "join", "come_back", "restart"])),
    ),
    max_size=60,
)


class Story:
    """A job, its gateway and everybody who ever followed it, moved on step by step."""

    def __init__(self, chance: random.Random, lost: float) -> None:
        self.job = StoredJob()
        self.gateway = Gateway(self.job)
        self.everybody: list[Follower] = []
        self._under_way: list[Event] = []
        self._chance = chance
        self._lost = lost

    def commit(self, *what: Any) -> None:
        """Rows are stored, and announced."""
        kind, count, with_rows = what
        self._under_way.append(self.job.commit(kind, count, with_rows=with_rows))

    def attempt(self) -> None:
        """A finished job begins again."""
        if self.job.standing.is_finished:
            self._under_way.append(self.job.begin_attempt())

    def complete(self) -> None:
        """The attempt ends."""
        self._under_way.append(self.job.complete())

    def look(self) -> None:
        """The gateway looks at Postgres."""
        self.gateway.look()

    def join(self) -> None:
        """A client comes, with what the snapshot had."""
        self.everybody.append(Follower(self.job.position, self.job.standing))
        self.gateway.join(self.everybody[-1])

    def come_back(self) -> None:
        """A client was away, and comes with its position."""
        if self.gateway.followers:
            self._rejoin(self.gateway.followers.pop(0))

    def restart(self) -> None:
        """A new gateway, to which all come back."""
        before = self.gateway.followers
        self.gateway = Gateway(self.job)
        for follower in before:
            self._rejoin(follower)

    def deliver(self) -> None:
        """What is under way arrives as over a bad network; some of it comes once more, later."""
        chance = self._chance
        arriving = [
            event
            for event in self._under_way
            for _ in range(chance.choice([1, 1, 2]))
            if chance.random() >= self._lost
        ]
        if chance.random() < 0.5:
            chance.shuffle(arriving)
        self._under_way = [event for event in arriving if chance.random() < 0.05]
        for event in arriving:
            self.gateway.feed.hear(event)
            if chance.random() < 0.3:
                self.gateway.pump()
        self.gateway.pump()

    def _rejoin(self, follower: Follower) -> None:
        follower.is_live = False
        follower.standing = self.job.standing  # what the frame "resumed" brings
        self.gateway.join(follower)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, chance=st.randoms(use_true_random=False), lost=st.sampled_from([0.0, 0.2, 0.9]))
def test_every_client_gets_every_row_once_in_order(
    steps: list[tuple[Any, ...]], chance: random.Random, lost: float
) -> None:
    """With notifications lost, doubled and reordered, clients that return and restarts: no hole, no double."""
    story = Story(chance, lost)
    story.join()
    for step, *what in steps:
        getattr(story, step)(*what)
    story.deliver()
    story.look()
    for follower in story.everybody:
        assert follower.position == story.job.position
        assert follower.standing == story.job.standing
        for kind in ROW_KINDS:
            last, count = story.job.position.of(kind), len(follower.rows[kind])
            assert follower.rows[kind] == list(range(last - count + 1, last + 1))


def test_rows_that_came_with_the_event_are_not_read() -> None:
    """An event that follows is passed on as it is."""
    job = StoredJob()
    feed = feed_of(job)
    event = job.commit("logs", 2)
    feed.hear(event)
    (log,) = said(feed)
    assert isinstance(log, TrainingLog)
    assert (log.first_seq, log.last_seq) == (1, 2)
    assert feed.position == Position(2, 0, 0)


def test_small_transactions_become_one_event() -> None:
    """What came since the last frame is joined: one event of each type, the state as the last one says."""
    job = StoredJob()
    feed = feed_of(job)
    for _ in range(5):
        feed.hear(job.commit("logs", 2))
        feed.hear(job.commit("metrics", 1))
    log, progress = said(feed)
    assert isinstance(log, TrainingLog)
    assert isinstance(progress, TrainingProgress)
    assert (log.last_seq, progress.first_seq, progress.last_seq, progress.current_epoch) == (10, 1, 5, 5)


def test_an_overtaken_event_is_not_read_from_postgres() -> None:
    """Two notifications in the other order are put right without a question to Postgres."""
    job = StoredJob()
    feed = feed_of(job)
    first, second = job.commit("logs", 1), job.commit("logs", 1)
    feed.hear(second)
    feed.hear(first)
    (log,) = said(feed)
    assert log.last_seq == 2


def test_a_lost_event_is_a_hole() -> None:
    """Rows between what was said and what came must be read; until then nothing behind them is said."""
    job = StoredJob()
    feed = feed_of(job)
    job.commit("logs", 4)
    feed.hear(job.commit("logs", 1))
    assert feed.advance() == Hole("logs", 0, 4)
    assert feed.take() == []


def test_rows_that_nobody_stored_are_forgotten() -> None:
    """An event about rows that Postgres does not have is dropped, and the feed goes on."""
    job = StoredJob()
    gateway = Gateway(job)
    gateway.feed.hear(TrainingLog(job_id=JOB, attempt=1, kind="logs", first_seq=900, last_seq=905))
    gateway.feed.hear(job.commit("logs", 1))
    gateway.pump()
    assert gateway.feed.position == Position(1, 0, 0)


def test_a_lost_end_is_told_by_the_next_look() -> None:
    """The last event of a job has none after it: what Postgres says is told as the notifier would have."""
    job = StoredJob()
    feed = feed_of(job)
    job.complete()
    feed.learn(job.look(feed))
    (end,) = said(feed)
    assert isinstance(end, TrainingComplete)
    assert end.exit_code == 0
    feed.learn(job.look(feed))
    assert said(feed) == []


def test_a_look_that_began_before_news_came_takes_nothing_back() -> None:
    """State that was read before an event and comes after it is not told."""
    job = StoredJob()
    feed = feed_of(job)
    look = job.look(feed)
    feed.hear(job.complete())
    assert len(said(feed)) == 1
    feed.learn(look)
    assert said(feed) == []


@pytest.mark.parametrize("late", ["status", "progress"])
def test_a_finished_job_is_not_reopened_by_what_was_under_way(late: str) -> None:
    """Rows of an overtaken event are said, its state is not."""
    job = StoredJob()
    feed = feed_of(job)
    event = (
        TrainingStatus(job_id=JOB, attempt=1, status="running") if late == "status" else job.commit("metrics", 1)
    )
    feed.hear(job.complete())
    feed.hear(event)
    events = said(feed)
    assert isinstance(events[0], TrainingComplete)
    assert [event.status for event in events[1:] if isinstance(event, TrainingProgress)] == ["completed"] * (
        late == "progress"
    )
    assert not [event for event in events if isinstance(event, TrainingStatus)]


def test_the_end_of_one_attempt_and_the_next_keep_their_order() -> None:
    """What says how the job stands is never moved, though lines beside it are joined."""
    job = StoredJob()
    feed = feed_of(job)
    for event in (job.commit("logs", 1), job.complete(), job.begin_attempt(), job.commit("logs", 1)):
        feed.hear(event)
    assert [type(event).__name__ for event in said(feed)] == ["TrainingLog", "TrainingComplete", "TrainingStatus"]


def test_too_much_at_once_is_found_again() -> None:
    """Events beyond the bound are dropped while Postgres is away; the next look has their rows said."""
    job = StoredJob()
    gateway = Gateway(job)
    follower = Follower(START, job.standing)
    gateway.join(follower)
    job.commit("logs", 1)
    for _ in range(MAX_HEARD + 10):
        gateway.feed.hear(job.commit("logs", 1))
    gateway.look()
    assert follower.position == job.position


def test_points_are_said_as_their_rows_have_them() -> None:
    """A point that comes live equals the one that is read back: in whole microseconds."""
    job = StoredJob()
    feed = feed_of(job)
    event = job.commit("metrics", 1)
    assert isinstance(event, TrainingProgress)
    assert event.points
    point = replace(event.points[0], ts=1_234_567)
    feed.hear(replace(event, points=[point]))
    (progress,) = said(feed)
    assert isinstance(progress, TrainingProgress)
    assert decode_event(encode_event(progress)) == replace(event, points=[replace(point, ts=1_234_000)])


def test_an_event_that_comes_while_its_rows_are_read_is_said_from_where_the_reading_is() -> None:
    """Of rows that are half read already only the other half is taken."""
    job = StoredJob()
    feed = feed_of(job)
    event = job.commit("logs", 5)
    feed.learn(job.look(feed))
    hole = feed.advance()
    assert hole is not None
    feed.fill(job.read(hole))
    feed.hear(event)
    follower = Follower(START, job.standing)
    assert feed.advance() is None
    for one in feed.take():
        follower.take(one)
    assert follower.rows["logs"] == [1, 2, 3, 4, 5]
