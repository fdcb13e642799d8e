"""A job in a Postgres of dictionaries, its notifier, and clients that follow it: the world around a JobFeed."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from trainwire.gateway.feed.job_feed import JobFeed, Look
from trainwire.gateway.feed.job_state import Standing
from trainwire.gateway.feed.merging import Said
from trainwire.gateway.feed.positions import Position
from trainwire.gateway.feed.rows import MAX_ROWS, Hole, Rows, encoded
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
from trainwire.schemas.kinds import ROW_KINDS, RowKind

JOB: Final = 7
READ_AT_ONCE: Final = 3


class StoredJob:
    """What Postgres has of a job; each commit returns the event that the notifier makes of it."""

    def __init__(self) -> None:
        self.rows: dict[RowKind, list[Any]] = {kind: [] for kind in ROW_KINDS}
        self.standing = Standing(attempt=1, status="running")

    @property
    def position(self) -> Position:
        """The last `seq` of each kind."""
        return Position(*(len(self.rows[kind]) for kind in ROW_KINDS))

    def commit(self, kind: RowKind, count: int, *, with_rows: bool = True) -> Event:
        """Store rows of one kind."""
        first = len(self.rows[kind]) + 1
        new = [self._row(kind, seq) for seq in range(first, first + count)]
        self.rows[kind] += new
        ranged: dict[str, Any] = {"first_seq": first, "last_seq": first + count - 1, "kind": kind}
        ranged[ROW_KINDS[kind].items] = new if with_rows else None
        if kind == "logs":
            return TrainingLog(job_id=JOB, attempt=self.standing.attempt, **ranged)
        if kind == "metrics":
            self.standing = replace(self.standing, current_epoch=first)
            return self._told(TrainingProgress, status=self.standing.status, current_epoch=first, **ranged)
        self.standing = replace(self.standing, best_checkpoint_path=f"best {first}")
        return self._told(TrainingCheckpoint, **ranged)

    def begin_attempt(self) -> Event:
        """Begin the next attempt."""
        before = self.standing
        self.standing = replace(
            before, attempt=before.attempt + 1, status="running", current_epoch=None, exit_code=None
        )
        return self._told(TrainingStatus, status="running", previous_status=before.status)

    def complete(self) -> Event:
        """End the attempt."""
        self.standing = replace(self.standing, status="completed", exit_code=0)
        standing = self.standing
        return self._told(
            TrainingComplete,
            kind="completions",
            status="completed",
            exit_code=0,
            total_epochs_completed=standing.current_epoch,
            best_checkpoint_path=standing.best_checkpoint_path,
        )

    def read(self, hole: Hole) -> Rows:
        """Read a few of the rows of a hole."""
        rows = self.rows[hole.kind][hole.have : min(hole.last, hole.have + READ_AT_ONCE)]
        return Rows(hole.kind, hole.have, hole.have + len(rows), [encoded(row) for row in rows])

    def look(self, feed: JobFeed | None = None) -> Look:
        """Read the row of training_jobs."""
        return Look(self.position, self.standing, feed.heard if feed else 0)

    def _told(self, event: type[Event], **fields: Any) -> Event:
        names = {"best_checkpoint_path"} & set(event.__struct_fields__) - set(fields)
        return event(
            job_id=JOB,
            attempt=self.standing.attempt,
            **fields,
            **{name: getattr(self.standing, name) for name in names},
        )

    def _row(self, kind: RowKind, seq: int) -> Any:
        common: dict[str, Any] = {"seq": seq, "attempt": self.standing.attempt, "ts": seq * 1000}
        if kind == "logs":
            return LogLine(**common, log_type="stdout", text=f"line {seq}")
        if kind == "metrics":
            return MetricPoint(**common, values={"loss": float(seq)})
        return SavedCheckpoint(**common, checkpoint_kind="epoch", uri=f"s3://b/{seq}", is_best=False)


class Follower:
    """A client: takes frames, and insists that each row follows the one before."""

    def __init__(self, position: Position, standing: Standing) -> None:
        self.position = position
        self.standing = standing
        self.is_live = False
        self.rows: dict[RowKind, list[int]] = {kind: [] for kind in ROW_KINDS}

    def take(self, said: Said) -> None:
        """Take one event as it comes over the wire."""
        event = decode_event(encode_event(said.event))
        self.standing = self.standing.after(event)
        for kind in ROW_KINDS:
            items = getattr(event, ROW_KINDS[kind].items, None) or []
            seqs = [item.seq for item in items]
            have = self.position.of(kind)
            assert seqs == list(range(have + 1, have + 1 + len(seqs)))
            assert len(seqs) <= MAX_ROWS
            if seqs:
                assert (event.first_seq, event.last_seq) == (seqs[0], seqs[-1])
                assert said.position.of(kind) == seqs[-1]
            self.rows[kind] += seqs
        self.position = said.position


class Gateway:
    """A feed with its clients; `pump` does what the event loop does."""

    def __init__(self, job: StoredJob) -> None:
        self.job = job
        self.feed = JobFeed(JOB, job.look())
        self.followers: list[Follower] = []

    def pump(self) -> None:
        """Say all that can be said; read what must be read."""
        while True:
            hole = self.feed.advance()
            live = [follower for follower in self.followers if follower.is_live]
            for said in self.feed.take():
                for follower in live:
                    follower.take(said)
            if hole is None:
                return
            self.feed.fill(self.job.read(hole))

    def join(self, follower: Follower) -> None:
        """Bring a client up to the feed, and on."""
        self.followers.append(follower)
        self.feed.learn(self.job.look(self.feed))
        self.pump()
        assert not follower.position.is_beyond(self.feed.position)
        while (missed := self.feed.missed(follower.position)) is not None:
            if isinstance(missed, Hole):
                missed = self.feed.said_of(self.job.read(missed), follower.position)
            follower.take(missed)
        follower.is_live = True

    def look(self) -> None:
        """Look at Postgres, as it is done every two seconds."""
        self.feed.learn(self.job.look(self.feed))
        self.pump()
