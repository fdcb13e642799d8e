"""How far each source of a job is stored, kind by kind: the rows of source_positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from trainwire.schemas.keys import Kind
from trainwire.schemas.messages import Body, Checkpoint, Completion, Metrics
from trainwire.schemas.tables import source_positions
from trainwire.schemas.times import to_datetime
from trainwire.workers.drain.jobs import began_at
from trainwire.workers.drain.positions import Position
from trainwire.workers.drain.store import encoded, recordset

SourceKey = tuple[int, str, Kind]
"""Job, source, kind."""


@dataclass(slots=True)
class SourceRow:
    """One row of source_positions."""

    attempt: int
    position: Position
    dead_lettered: int = 0
    produced: int | None = None
    dropped: int | None = None
    rank: int | None = None
    world_size: int | None = None
    is_launcher: bool = False
    began_at: datetime | None = None

    def note_place(self, body: Body) -> None:
        """Take over the rank of a message, and how many ranks it states that there are."""
        if isinstance(body, Checkpoint):
            return
        self.rank = self.rank if body.rank is None else body.rank
        if isinstance(body, Metrics | Completion) and body.world_size is not None:
            began_ns = began_at(body)
            self.world_size, self.is_launcher = body.world_size, bool(body.launcher)
            self.began_at = None if began_ns is None else to_datetime(began_ns)


def load_positions(connection: Connection, sources: Iterable[tuple[int, str]]) -> dict[SourceKey, SourceRow]:
    """Return what is known of these (job, source) pairs, in all kinds."""
    pairs = sorted(set(sources))
    found = connection.execute(
        text(
            f"SELECT {', '.join(_COLUMNS)} FROM source_positions "  # noqa: S608 - our own column names
            "JOIN unnest(CAST(:jobs AS bigint[]), CAST(:sources AS text[])) "
            "AS wanted(job_id, source) USING (job_id, source)"
        ),
        {"jobs": [job for job, _ in pairs], "sources": [source for _, source in pairs]},
    )
    return {
        (row.job_id, row.source, row.kind): SourceRow(
            row.attempt,
            Position(
                row.last_seq,
                [(first, last) for first, last in row.missing],
                [(first, last, reason) for first, last, reason in row.lost],
            ),
            row.dead_lettered,
            row.produced,
            row.dropped,
            row.rank,
            row.world_size,
            row.is_launcher,
            row.began_at,
        )
        for row in found
    }


def save_positions(connection: Connection, changed: dict[SourceKey, SourceRow]) -> None:
    """Write these positions, in the order of their keys."""
    if changed:
        connection.execute(_SAVE, {"rows": encoded(_values(key, row) for key, row in sorted(changed.items()))})


def _values(key: SourceKey, row: SourceRow) -> dict[str, Any]:
    position = row.position
    numbers = (position.last_seq, position.missing, position.lost)
    counts = (row.dead_lettered, row.produced, row.dropped)
    place = (row.rank, row.world_size, row.is_launcher, row.began_at)
    return dict(zip(_COLUMNS, (*key, row.attempt, *numbers, *counts, *place), strict=True))


_COLUMNS: Final = (
    "job_id",
    "source",
    "kind",
    "attempt",
    "last_seq",
    "missing",
    "lost",
    "dead_lettered",
    "produced",
    "dropped",
    "rank",
    "world_size",
    "is_launcher",
    "began_at",
)
_SAVE: Final = text(
    f"INSERT INTO source_positions ({', '.join(_COLUMNS)}) "  # noqa: S608 - our own column names
    f"SELECT {', '.join(_COLUMNS)} FROM {recordset(source_positions, _COLUMNS)} "
    "ON CONFLICT (job_id, source, kind) DO UPDATE SET attempt = excluded.attempt, "
    "last_seq = excluded.last_seq, missing = excluded.missing, lost = excluded.lost, "
    "dead_lettered = excluded.dead_lettered, produced = excluded.produced, dropped = excluded.dropped, "
    "rank = excluded.rank, world_size = excluded.world_size, is_launcher = excluded.is_launcher, "
    "began_at = excluded.began_at, updated_at = now()"
)
