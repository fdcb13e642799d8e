"""Messages for tests, and a sender that can publish them in any order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import redis
from sqlalchemy import Engine, RowMapping, Table, select

from trainwire.schemas.keys import DEFAULT_SHARDS, Kind, shard_of, stream_key
from trainwire.schemas.wire.entries import Entry, Loss, encode_entry, encode_loss
from trainwire.schemas.wire.messages import (
    KIND_OF_BODY,
    Body,
    Checkpoint,
    Completion,
    Logs,
    Message,
    Metrics,
    Point,
)
from trainwire.workers.drain.drain import Drain, Drained
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.resources import Resources

NOW_NS = 1_790_000_000_123_456_789
SECOND_NS = 10**9


def logs(*lines: str, ts: int = NOW_NS, started_at: int | None = None) -> Logs:
    """Lines of stdout, one microsecond apart."""
    times = [ts + 1000 * number for number in range(len(lines))]
    return Logs(log_type="stdout", lines=list(lines), ts=times, started_at=started_at)


def metrics(ts: int = NOW_NS, epoch: int | None = None, **values: float) -> Metrics:
    """One point."""
    return Metrics(points=[Point(ts=ts, epoch=epoch, values=values)])


def checkpoint(uri: str = "s3://bucket/best.pt", kind: str = "best", **fields: Any) -> Checkpoint:
    """A checkpoint, by default of kind best."""
    return Checkpoint(ts=NOW_NS, kind=kind, uri=uri, **fields)


def completion(
    status: Literal["completed", "failed", "ended"] = "completed", ts: int = NOW_NS + SECOND_NS, **fields: Any
) -> Completion:
    """The end of a source."""
    return Completion(ts=ts, status=status, **fields)


class Sender:
    """Publishes with a bare XADD; numbers its messages by itself unless a test gives the number."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._last: dict[tuple[int, str, Kind], int] = defaultdict(int)

    def send(
        self,
        body: Body,
        *,
        job: int = 1,
        source: str = "0-test",
        seq: int | None = None,
        attempt: int = 1,
        entry_id: str = "*",
    ) -> str:
        """Publish one message; return its entry id."""
        kind = KIND_OF_BODY[type(body)]
        if seq is None:
            self._last[job, source, kind] += 1
            seq = self._last[job, source, kind]
        return self.send_raw(kind, job, encode_entry(Message(kind, job, attempt, source, seq, body)), entry_id)

    def lose(
        self, first: int, last: int, reason: str = "restored", kind: Kind = "logs", source: str = "0-test"
    ) -> str:
        """Declare the numbers `first` to `last` of job 1 lost; return the entry's id."""
        return self.send_raw(kind, 1, encode_loss(1, 1, source, first, Loss(last=last, reason=reason)))

    def send_raw(self, kind: Kind, job: int, fields: Entry | Mapping[Any, Any], entry_id: str = "*") -> str:
        """Publish any fields; return the entry id."""
        key = stream_key(kind, shard_of(job, DEFAULT_SHARDS))
        return cast("bytes", self.client.xadd(key, cast("Any", fields), id=entry_id)).decode()


def drain(resources: Resources, kind: Kind = "logs", job: int = 1) -> Drained:
    """Drain the stream of one kind that carries this job."""
    stream = IngestStream(resources.redis, kind, shard_of(job, DEFAULT_SHARDS))
    return Drain(resources.engine, stream, resources.settings).run()


def rows(engine: Engine, table: Table, *columns: str, order: Sequence[str] = ("job_id", "seq")) -> list[Any]:
    """Return rows as tuples of these columns, or as values if there is one column."""
    with engine.connect() as connection:
        statement = select(*(table.c[name] for name in columns)).order_by(*(table.c[name] for name in order))
        found = [tuple(row) for row in connection.execute(statement)]
    return [row[0] for row in found] if len(columns) == 1 else found


def one(engine: Engine, table: Table, **key: object) -> RowMapping:
    """Return the one row with this key, by column name."""
    statement = select(table).where(*(table.c[name] == value for name, value in key.items()))
    with engine.connect() as connection:
        return connection.execute(statement).mappings().one()
