"""The rows of source_positions: the position of each source of a job, by kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, text

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
        """Take over the rank, and the number of ranks, that a message states."""
        if isinstance(body, Checkpoint):
            return
        self.rank = self.rank if body.rank is None else body.rank
        if isinstance(body, Metrics | Completion) and body.world_size is not None:
            began_ns = began_at(body)
            self.world_size, self.is_launcher = body.world_size, bool(body.launcher)
            self.began_at = None if began_ns is None else to_datetime(began_ns)


def load_positions(connection: Connection, sources: Iterable[tuple[int, str]]) -> dict[SourceKey, SourceRow]:
    """Return the rows of these (job, source) pairs, of all kinds."""
    pairs = sorted(set(sources))
    found = connection.execute(
        text(
            f"SELECT {', '.join(_COLUMNS)} FROM source_positions "  # noqa: S608 - our own column names
            "JOIN unnest(CAST(:jobs AS bigint[]), CAST(:sources AS text[])) "
            "AS wanted(job_id, source) USING (job_id, source)"
        ),
        {"jobs": [job for job, _ in pairs], "sources": [source for _, source in pairs]},
    )
    return {(row.job_id, row.source, row.kind): _source_row(row) for row in found}


def save_positions(connection: Connection, changed: dict[SourceKey, SourceRow]) -> None:
    """Write these rows, in the order of their keys."""
    if changed:
        connection.execute(_SAVE, {"rows": encoded(_values(key, row) for key, row in sorted(changed.items()))})


def _source_row(row: Row[Any]) -> SourceRow:
    missing = [(first, last) for first, last in row.missing]
    lost = [(first, last, reason) for first, last, reason in row.lost]
    position = Position(row.last_seq, missing, lost)
    return SourceRow(row.attempt, position, **{name: getattr(row, name) for name in _COUNTS})


def _values(key: SourceKey, row: SourceRow) -> dict[str, Any]:
    position = row.position
    values = (*key, row.attempt, position.last_seq, position.missing, position.lost)
    return dict(zip(_KEY_AND_POSITION, values, strict=True)) | {name: getattr(row, name) for name in _COUNTS}


_COUNTS: Final = ("dead_lettered", "produced", "dropped", "rank", "world_size", "is_launcher", "began_at")
"""The columns that are fields of `SourceRow`."""
_KEY_AND_POSITION: Final = ("job_id", "source", "kind", "attempt", "last_seq", "missing", "lost")
_COLUMNS: Final = (*_KEY_AND_POSITION, *_COUNTS)
_SAVE: Final = text(
    f"INSERT INTO source_positions ({', '.join(_COLUMNS)}) "  # noqa: S608 - our own column names
    f"SELECT {', '.join(_COLUMNS)} FROM {recordset(source_positions, _COLUMNS)} "
    "ON CONFLICT (job_id, source, kind) DO UPDATE SET "
    f"{', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[3:])}, updated_at = now()"
)
