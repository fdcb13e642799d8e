"""A model around a JobFeed: a job in a Postgres of dictionaries, its notifier, and clients that follow it."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from trainwire.gateway.feed.feed_rows import MAX_ROWS, FeedPosition, RowBatch, RowGap, encode_row
from trainwire.gateway.feed.feed_state import FeedState
from trainwire.gateway.feed.job_feed import FeedEvent, JobFeed, JobRow
from trainwire.schemas.events import (
    Event,
    LogLine,
    MetricPoint,
    SavedCheckpoint,
    TrainingCheckpoint,
    TrainingComplete,
    TrainingLog,
    TrainingProgress,
    TrainingStatus,
    decode_event,
    encode_event,
)
from trainwire.schemas.tables.kinds import ROW_KINDS, RowKind

JOB: Final = 7
READ_AT_ONCE: Final = 3


class StoredJob:
    """The rows of a job in Postgres; each commit returns the notifier's event."""

    def __init__(self) -> None:
        self.rows: dict[RowKind, list[Any]] = {kind: [] for kind in ROW_KINDS}
        self.state = FeedState(attempt=1, status="running")

    @property
    def position(self) -> FeedPosition:
        """The last `seq` of each kind."""
        return FeedPosition(*(len(self.rows[kind]) for kind in ROW_KINDS))

    def commit(self, kind: RowKind, count: int, *, with_rows: bool = True) -> Event:
        """Store rows of one kind."""
        first = len(self.rows[kind]) + 1
        new = [self._row(kind, seq) for seq in range(first, first + count)]
        self.rows[kind] += new
        ranged: dict[str, Any] = {"first_seq": first, "last_seq": first + count - 1, "kind": kind}
        ranged[ROW_KINDS[kind].items] = new if with_rows else None
        if kind == "logs":
            return TrainingLog(job_id=JOB, attempt=self.state.attempt, **ranged)
        if kind == "metrics":
            self.state = replace(self.state, current_epoch=first)
            return self._event(TrainingProgress, status=self.state.status, current_epoch=first, **ranged)
        self.state = replace(self.state, best_checkpoint_path=f"best {first}")
        return self._event(TrainingCheckpoint, **ranged)

    def begin_attempt(self) -> Event:
        """Begin the next attempt."""
        before = self.state
        self.state = replace(
            before, attempt=before.attempt + 1, status="running", current_epoch=None, exit_code=None
        )
        return self._event(TrainingStatus, status="running", previous_status=before.status)

    def complete(self) -> Event:
        """End the attempt."""
        self.state = replace(self.state, status="completed", exit_code=0)
        state = self.state
        return self._event(
            TrainingComplete,
            kind="completions",
            status="completed",
            exit_code=0,
            total_epochs_completed=state.current_epoch,
            best_checkpoint_path=state.best_checkpoint_path,
        )

    def read(self, gap: RowGap) -> RowBatch:
        """Read the first rows of a gap."""
        rows = self.rows[gap.kind][gap.after : min(gap.last, gap.after + READ_AT_ONCE)]
        return RowBatch(gap.kind, gap.after, gap.after + len(rows), [encode_row(row) for row in rows])

    def row(self, feed: JobFeed | None = None) -> JobRow:
        """Read the row of training_jobs."""
        return JobRow(self.position, self.state, feed.state_events if feed else 0)

    def _event(self, event: type[Event], **fields: Any) -> Event:
        names = {"best_checkpoint_path"} & set(event.__struct_fields__) - set(fields)
        return event(
            job_id=JOB,
            attempt=self.state.attempt,
            **fields,
            **{name: getattr(self.state, name) for name in names},
        )

    def _row(self, kind: RowKind, seq: int) -> Any:
        common: dict[str, Any] = {"seq": seq, "attempt": self.state.attempt, "ts": seq * 1000}
        if kind == "logs":
            return LogLine(**common, log_type="stdout", text=f"line {seq}")
        if kind == "metrics":
            return MetricPoint(**common, values={"loss": float(seq)})
        return SavedCheckpoint(**common, checkpoint_kind="epoch", uri=f"s3://b/{seq}", is_best=False)


class Follower:
    """A client that receives frames, and asserts that each row follows the one before."""

    def __init__(self, position: FeedPosition, state: FeedState) -> None:
        self.position = position
        self.state = state
        self.is_live = False
        self.rows: dict[RowKind, list[int]] = {kind: [] for kind in ROW_KINDS}

    def receive(self, sent: FeedEvent) -> None:
        """Receive one event as encoded."""
        event = decode_event(encode_event(sent.event))
        self.state = self.state.updated_by(event)
        for kind in ROW_KINDS:
            items = getattr(event, ROW_KINDS[kind].items, None) or []
            seqs = [item.seq for item in items]
            after = self.position.of(kind)
            assert seqs == list(range(after + 1, after + 1 + len(seqs)))
            assert len(seqs) <= MAX_ROWS
            if seqs:
                assert (event.first_seq, event.last_seq) == (seqs[0], seqs[-1])
                assert sent.position.of(kind) == seqs[-1]
            self.rows[kind] += seqs
        self.position = sent.position


class Gateway:
    """A feed with its clients; `pump` replaces the event loop."""

    def __init__(self, job: StoredJob) -> None:
        self.job = job
        self.feed = JobFeed(JOB, job.row())
        self.followers: list[Follower] = []

    def pump(self) -> None:
        """Send all queued events; read the rows for them."""
        while True:
            gap = self.feed.advance()
            live = [follower for follower in self.followers if follower.is_live]
            for event in self.feed.take():
                for follower in live:
                    follower.receive(event)
            if gap is None:
                return
            self.feed.fill(self.job.read(gap))

    def join(self, follower: Follower) -> None:
        """Send a client the events that it missed, and then new ones."""
        self.followers.append(follower)
        self.poll()
        assert not follower.position.is_beyond(self.feed.position)
        while (missed := self.feed.next_missed(follower.position)) is not None:
            if isinstance(missed, RowGap):
                missed = self.feed.missed_rows(self.job.read(missed), follower.position)
            follower.receive(missed)
        follower.is_live = True

    def poll(self) -> None:
        """Read the job's row, as the gateway does every two seconds."""
        self.feed.update(self.job.row(self.feed))
        self.pump()
