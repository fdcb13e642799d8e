"""Reads new metric rows of jobs, and adds their points to blocks by series and resolution, for charts.

A cursor per job (`delivery_cursors`) moves in the transaction that writes the blocks: so each row is added once,
even if a worker is killed. Readers take the rows after the cursor from `training_metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Final

import msgspec
from sqlalchemy import Connection, Engine, text

from trainwire.schemas.tables import ROLLUPS_CURSOR
from trainwire.stores.rows.metric_blocks import Points
from trainwire.stores.rows.metric_columns import Key, MetricColumns
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.rollups.series_blocks import BlockTable, Series
from trainwire.workers.sinks import cursors

JOBS_AT_ONCE: Final = 50
SERIES_AT_ONCE: Final = 500
PAGE_ROWS: Final = 500
MOST_VALUES: Final = 4_000_000
"""Approximate maximum of values in one transaction; they take about 20 bytes of memory each."""
FEW_ROWS: Final = 1000
"""A job with fewer new rows than this is not urgent: charts read so many rows quickly from `training_metrics`."""
LATER_S: Final = 300.0
"""Minimum pause in seconds after a job had few new rows: with 10,000 jobs, 60 s would take most of a core."""
REST_SHARE: Final = 9
"""A job is paused for this multiple of its last transaction's time: so it takes a tenth of a process's time."""


class RollupFollower:
    """Adds new metric rows to blocks, in transactions of one job and about `MOST_VALUES` values or fewer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, slice_s: float) -> float:
        """Process due jobs until `slice_s` seconds have passed; return the seconds spent.

        Ends earlier if no job is due, or if other workers have the leases of all due jobs. If a job is due, at
        least one transaction is executed. Raises `Unavailable` if Postgres does not answer.
        """
        began = time.monotonic()
        with postgres_errors():
            are_leased = False
            while not are_leased and (job_ids := self._due()):
                are_leased = True
                for job_id in job_ids:
                    are_leased &= self.follow(job_id, until=began + slice_s) is None
                    if time.monotonic() - began >= slice_s:
                        return time.monotonic() - began
            with self._engine.begin() as connection:
                cursors.settle(connection, ROLLUPS_CURSOR, "metrics")
        return time.monotonic() - began

    def follow(self, job_id: int, until: float = float("inf")) -> bool | None:
        """Process new rows of one job in one transaction; return whether its blocks now include all its rows.

        Returns None if another worker has the lease of the job, and True if the job was deleted. Reads at least
        one page of rows, and begins no other page after the time `until`.
        """
        began = time.monotonic()
        with self._engine.begin() as connection:
            if not cursors.lease_jobs(connection, ROLLUPS_CURSOR, [job_id]):
                return None
            cursor = cursors.read_cursors(connection, ROLLUPS_CURSOR, [job_id])[job_id]
            last = connection.execute(_LAST_SEQ, {"job_id": job_id}).scalar_one_or_none()
            if last is None:  # deleted since the lease was taken: a cursor or block would stay for ever
                return True
            columns, through = self._read(connection, job_id, cursor.confirmed_seq, last, until)
            used = _write(connection, job_id, columns, int(cursor.state.get("series", 0)))
            rest_s = REST_SHARE * (time.monotonic() - began)
            pause_s = 0.0 if through < last else max(rest_s, LATER_S if columns.rows < FEW_ROWS else 0.0)
            state = msgspec.json.encode({"series": used, "rest_s": round(rest_s, 3)}).decode()
            moved = {"job_id": job_id, "seq": through, "state": state, "pause_s": pause_s, "sink": ROLLUPS_CURSOR}
            connection.execute(_MOVE, moved)
        return bool(through == last)

    def _due(self) -> list[int]:
        with self._engine.begin() as connection:
            unsettled = cursors.unsettled(connection, ROLLUPS_CURSOR)
            wanted = {"sink": ROLLUPS_CURSOR, "unsettled": unsettled, "many": FEW_ROWS, "limit": JOBS_AT_ONCE}
            return list(connection.execute(_DUE, wanted).scalars())

    def _read(
        self, connection: Connection, job_id: int, after: int, last: int, until: float
    ) -> tuple[MetricColumns, int]:
        """Return the rows after row number `after`, and the number of the last row that was examined.

        That number is `last` if all rows up to `last` were read. Ends earlier after about `MOST_VALUES` values, or
        after the page that is read at the time `until`.
        """
        columns = MetricColumns()
        bounds = {"job_id": job_id, "after": after, "last": last, "rows": PAGE_ROWS}
        while columns.values < MOST_VALUES:
            if columns.read(connection, _PAGE, bounds) < PAGE_ROWS:
                return columns, last
            bounds["after"] = columns.last_seq
            if time.monotonic() >= until:
                break
        return columns, columns.last_seq


def _write(connection: Connection, job_id: int, columns: MetricColumns, used: int) -> int:
    """Write the points of new rows into blocks.

    `used` is the highest series number that is in use; returns the highest one after new series are added.
    """
    table = BlockTable(connection, job_id)
    found, known = columns.series(), table.read_series()
    while part := list(islice(found, SERIES_AT_ONCE)):
        series = _numbered(part, known, used)
        used = max(used, *series)
        table.read_tails(series)
        earlier = table.read_earlier(series)
        blocks = {number: each.blocks(earlier[number]) for number, each in series.items()}
        table.write([*series.values()], blocks)
    return used


def _numbered(part: Sequence[tuple[Key, Points]], known: dict[Key, int], used: int) -> dict[int, Series]:
    series = {}
    for key, points in part:
        is_new = key not in known
        used += is_new
        number = used if is_new else known[key]
        series[number] = Series(number, key, points, is_new)
    return series


_LAST_SEQ: Final = text("SELECT last_metric_seq FROM training_jobs WHERE id = :job_id")
_PAGE: Final = "seq > :after AND seq <= :last ORDER BY seq LIMIT :rows"
_DUE: Final = text(
    "SELECT id FROM training_jobs LEFT JOIN delivery_cursors ON sink = :sink AND job_id = id "
    "WHERE settled = ANY(:unsettled) AND last_metric_seq > coalesce(confirmed_seq, 0) AND ("
    "coalesce(next_attempt_at <= now(), true) OR (last_metric_seq >= confirmed_seq + :many "
    "AND moved_at < now() - make_interval(secs => coalesce(CAST(state ->> 'rest_s' AS double precision), 0)))) "
    "ORDER BY moved_at NULLS FIRST, id LIMIT :limit"
)
_MOVE: Final = text(
    "INSERT INTO delivery_cursors (sink, job_id, confirmed_seq, state, moved_at, next_attempt_at) "
    "SELECT :sink, :job_id, :seq, CAST(:state AS jsonb), clock_timestamp(), "
    "CASE WHEN :pause_s > 0 THEN clock_timestamp() + make_interval(secs => :pause_s) END "
    "ON CONFLICT (sink, job_id) DO UPDATE SET confirmed_seq = excluded.confirmed_seq, state = excluded.state, "
    "moved_at = excluded.moved_at, next_attempt_at = excluded.next_attempt_at"
)
