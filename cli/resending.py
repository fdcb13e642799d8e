"""What operators change of the deliveries: an attempt now, and rows once more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, delete, text
from sqlalchemy.exc import OperationalError

from trainwire.schemas.sinks import SINKS
from trainwire.schemas.tables import dead_letters
from trainwire.stack.errors import Problem
from trainwire.workers.sinks.cursors import await_lease, move_back, read_cursors, try_again
from trainwire.workers.sinks.plugin import plugin

PATIENCE_S: Final = 60
LOCK_NOT_AVAILABLE: Final = "55P03"


@dataclass(frozen=True)
class Replayed:
    """How many rows are sent again, and how many of them the sink had refused."""

    rows: int
    dead_letters: int


def retry_now(connection: Connection, sink: str) -> tuple[datetime | None, int]:
    """Make the next attempts due; return since when the sink does not answer, and how many jobs it had failed."""
    jobs = try_again(connection, sink)
    due = text(
        "UPDATE sink_states SET next_probe_at = now() WHERE sink = :sink AND down_since IS NOT NULL "
        "RETURNING down_since"
    )
    return connection.execute(due, {"sink": sink}).scalar_one_or_none(), jobs


def replay(
    connection: Connection, sink: str, job_id: int, from_seq: int, patience_s: int = PATIENCE_S
) -> Replayed:
    """Have the sink get the job's delivered rows from `from_seq` on again, those it had refused too.

    Their dead letters go: a row that is refused again gets a new one. Raises `Problem` when a delivery of the
    job goes on for longer than `patience_s`.
    """
    _wait_for_lease(connection, sink, job_id, patience_s)
    confirmed_seq = read_cursors(connection, sink, [job_id])[job_id].confirmed_seq
    numbers = {"job_id": job_id, "first": from_seq, "last": confirmed_seq}
    rows = connection.execute(
        text(
            f"SELECT count(*) FROM {SINKS[sink].rows.table} "  # noqa: S608 - our own table
            "WHERE job_id = :job_id AND seq BETWEEN :first AND :last"
        ),
        numbers,
    ).scalar_one()
    letters = connection.execute(
        delete(dead_letters).where(
            dead_letters.c.stream == f"sink:{sink}",
            dead_letters.c.job_id == job_id,
            dead_letters.c.seq.between(from_seq, confirmed_seq),
        )
    ).rowcount
    move_back(connection, sink, job_id, from_seq)
    plugin(sink).replayed(connection, job_id)
    connection.execute(
        text(
            "UPDATE delivery_cursors SET dead_lettered = greatest(dead_lettered - :letters, 0) "
            "WHERE sink = :sink AND job_id = :job_id"
        ),
        {"letters": letters, "sink": sink, "job_id": job_id},
    )
    return Replayed(rows, letters)


def _wait_for_lease(connection: Connection, sink: str, job_id: int, patience_s: int) -> None:
    """Wait for the lock of `lease_jobs` (`trainwire.workers.sinks.cursors`): a delivery would undo the move."""
    connection.execute(text("SELECT set_config('lock_timeout', :patience, true)"), {"patience": f"{patience_s}s"})
    try:
        await_lease(connection, sink, job_id)
    except OperationalError as exc:
        if getattr(exc.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise Problem(
            f"job {job_id} is being delivered to {sink} for more than {patience_s} s: nothing was changed, "
            "try again when `trainwire deliveries` shows that it went on"
        ) from exc
