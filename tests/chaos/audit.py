"""Independent checks of the audit, straight on Postgres and on the events' channels."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from redis.client import PubSub
from sqlalchemy import Engine, text

from tests.chaos.honest_trainer import LINES_PER_CHECKPOINT, LINES_PER_POINT
from trainwire.schemas.events import Event, TrainingComplete, TrainingError, TrainingStatus, decode_event
from trainwire.schemas.keys import events_channel
from trainwire.schemas.wire.validation import InvalidMessage

LOOK_EVERY_S: Final = 0.5
ITEMS: Final = {"logs": "content", "metrics": "step", "checkpoints": "uri"}
"""The column that identifies a row of each kind."""
NEXT_IN_TIME: Final = {"logs": "logged_ns", "metrics": "step", "checkpoints": "step"}
"""The column that orders rows of the same microsecond, by kind."""
LAST_SEQ: Final = {"logs": "last_log_seq", "metrics": "last_metric_seq", "checkpoints": "last_checkpoint_seq"}
CARRIED: Final = {"logs": ("lines", "text"), "metrics": ("points", "step"), "checkpoints": ("checkpoints", "uri")}
"""The field of an event that carries rows of each kind, and which of their fields identifies them."""


@dataclass(frozen=True)
class Honest:
    """One honest trainer: its job, the token that begins its lines, and how many lines it logged."""

    job: int
    token: str
    lines: int

    def expected(self, kind: str) -> list[str | int]:
        """Return the identifying values of its rows of a kind, in order."""
        if kind == "logs":
            return [f"{self.token} {number}" for number in range(self.lines)]
        if kind == "metrics":
            return list(range(0, self.lines, LINES_PER_POINT))
        return [f"s3://{self.token}/{number}" for number in range(0, self.lines, LINES_PER_CHECKPOINT)]


class _Watch:
    """Polls in a thread; `stop` raises the error that ended it."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Poll once more, then end; raise the error that ended it before."""
        self.end()
        if self._error is not None:
            raise AssertionError(f"{type(self).__name__} ended early") from self._error

    def end(self) -> None:
        """Look once more, then end."""
        self._stopped.set()
        self._thread.join(60)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._look()
            self._look()
        except Exception as exc:  # noqa: BLE001 - raised again in `stop`
            self._error = exc

    def _look(self) -> None:
        raise NotImplementedError


class RowWatch(_Watch):
    """Measures how long after its time each row of the honest jobs is visible in Postgres."""

    def __init__(self, engine: Engine, jobs: Iterable[int]) -> None:
        self._engine = engine
        self._seen: dict[tuple[int, str], int] = {(job, kind): 0 for job in jobs for kind in ITEMS}
        self.late_s: dict[tuple[str, str], list[float]] = defaultdict(list)
        """By source and kind."""
        super().__init__()

    def _look(self) -> None:
        with self._engine.connect() as connection:
            for (job, kind), seen in self._seen.items():
                query = (
                    f"SELECT seq, source, extract(epoch FROM logged_at)::float8 FROM training_{kind} "
                    "WHERE job_id = :job AND seq > :seen ORDER BY seq"
                )
                found = connection.execute(text(query), {"job": job, "seen": seen}).all()
                now = time.time()
                for seq, source, logged_at in found:
                    self.late_s[source, kind].append(now - logged_at)
                    self._seen[job, kind] = seq
        self._stopped.wait(LOOK_EVERY_S)


class EventWatch(_Watch):
    """Receives all events; keeps those without a reason in Postgres, and the rows that events carried."""

    def __init__(self, engine: Engine, client: redis.Redis, jobs: Iterable[int]) -> None:
        self._engine = engine
        self._pubsub = PubSub(client.connection_pool, ignore_subscribe_messages=True)
        self._pubsub.psubscribe("events:*")
        self._follower = PubSub(client.connection_pool)  # a pattern alone causes no events
        self._follower.subscribe("events:jobs", *map(events_channel, jobs))
        self.forged: list[str] = []
        self.received: Counter[str] = Counter()
        self.rows: dict[tuple[int, str], dict[int, str | int]] = defaultdict(dict)
        self.last_seqs: dict[tuple[int, str], int] = defaultdict(int)
        self.quiet: list[TrainingStatus] = []
        """Events that a job has stalled or is lost."""
        super().__init__()

    def _look(self) -> None:
        while (message := self._pubsub.get_message(timeout=0.2)) is not None:
            channel, data = message["channel"].decode(), message["data"]
            try:
                event = decode_event(data)
            except InvalidMessage as exc:
                self.forged.append(f"{channel}: {exc}")
                continue
            if channel not in (events_channel(event.job_id), "events:jobs"):
                self.forged.append(f"{channel}: {event}")
            self.received[type(event).__name__] += 1
            self._note(event)

    def _note(self, event: Event) -> None:
        if isinstance(event, TrainingComplete | TrainingError) and not self._has_ended(event.job_id):
            self.forged.append(f"no completion is stored: {event}")
        if isinstance(event, TrainingStatus) and event.status in ("stalled", "lost"):
            self.quiet.append(event)
        if event.kind is None or event.kind not in CARRIED:
            return
        key = (event.job_id, event.kind)
        self.last_seqs[key] = max(self.last_seqs[key], event.last_seq or 0)
        field, name = CARRIED[event.kind]
        for row in getattr(event, field, None) or ():
            self.rows[key][row.seq] = getattr(row, name)

    def _has_ended(self, job: int) -> bool:
        query = "SELECT 1 FROM source_positions WHERE job_id = :job AND kind = 'completions' AND last_seq > 0"
        with self._engine.connect() as connection:
            return connection.execute(text(query), {"job": job}).first() is not None


def sources_of(engine: Engine, honest: Sequence[Honest]) -> dict[str, str]:
    """Return the source of each honest trainer, by its token."""
    query = "SELECT DISTINCT source FROM training_logs WHERE job_id = :job AND starts_with(content, :token)"
    with engine.connect() as connection:
        return {
            one.token: connection.execute(text(query), {"job": one.job, "token": f"{one.token} "}).scalar_one()
            for one in honest
        }


def check_rows(engine: Engine, honest: Sequence[Honest], sources: Mapping[str, str]) -> None:
    """Each honest source has exactly its rows, and their times have its order.

    The order of `seq` may differ: a hostile trainer can empty a stream, and messages sent again are stored late.
    """
    wrong = []
    for one in honest:
        for kind, column in ITEMS.items():
            order = f"logged_at, {NEXT_IN_TIME[kind]}"
            query = (
                f"SELECT {column} FROM training_{kind} WHERE job_id = :job AND source = :source ORDER BY {order}"
            )
            with engine.connect() as connection:
                found = (
                    connection.execute(text(query), {"job": one.job, "source": sources[one.token]}).scalars().all()
                )
            expected: list[Any] = one.expected(kind)
            if list(found) != expected:
                lost, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
                wrong.append(
                    f"{kind} of {one}: {lost.total()} lost {[*lost][:5]}, {more.total()} doubled or foreign "
                    f"{[*more][:5]}" + ("" if lost or more else ", in another order")
                )
    assert not wrong, "\n".join(wrong)


def check_events(engine: Engine, watch: EventWatch, jobs: Collection[int]) -> None:
    """Events are of rows and ends that Postgres has; each honest job has some, and none is stalled or lost."""
    unannounced = set(jobs) - {job for job, kind in watch.last_seqs if kind == "logs"}
    assert not unannounced, f"no event of lines of the jobs {unannounced}"
    assert not watch.forged, f"{len(watch.forged)} forged events: {watch.forged[:5]}"
    quiet = [event for event in watch.quiet if event.job_id in jobs]
    assert not quiet, quiet
    with engine.connect() as connection:
        for (job, kind), last_seq in watch.last_seqs.items():
            query = f"SELECT {LAST_SEQ[kind]} FROM training_jobs WHERE id = :job"
            stored = connection.execute(text(query), {"job": job}).scalar() or 0
            assert stored >= last_seq, f"events of {kind} of job {job} reach {last_seq}, rows {stored}"
        for (job, kind), carried in watch.rows.items():
            query = f"SELECT seq, {ITEMS[kind]} FROM training_{kind} WHERE job_id = :job AND seq = ANY(:seqs)"
            found = connection.execute(text(query), {"job": job, "seqs": list(carried)})
            stored_rows = {row.seq: row[1] for row in found}
            forged = {seq: item for seq, item in carried.items() if not _is_same(stored_rows.get(seq), item)}
            assert forged == {}, f"{kind} of job {job}: no such rows: {[*forged.items()][:5]}"


def _is_same(stored: object, carried: object) -> bool:
    """Return whether a row is that of the event; a long text may be shortened in the event."""
    if isinstance(stored, str) and isinstance(carried, str) and len(carried) >= 1000:
        return stored[:900] == carried[:900]
    return stored == carried


def check_lateness(watch: RowWatch, sources: Mapping[str, str], limit_s: float) -> None:
    """No row of an honest source was visible later than `limit_s` after its time; print the percentiles."""
    worst = {}
    for token, source in sources.items():
        for kind in ITEMS:
            late_s = sorted(watch.late_s[source, kind])
            p50, p95, most = late_s[len(late_s) // 2], late_s[len(late_s) * 95 // 100], late_s[-1]
            shown = f"late by {p50:.1f} s (p50), {p95:.1f} (p95), {most:.1f} (max)"
            print(f"  {token} {kind}: {len(late_s):,} rows, {shown}")
            worst[token, kind] = round(most, 1)
    assert max(worst.values()) <= limit_s, worst
