"""How far the sources of a job have come: what the sum of all messages is made of."""

from __future__ import annotations

from sqlalchemy import Connection, select

from schemas.tables import source_positions
from stores.completeness import Position


def find_positions(connection: Connection, job_id: int) -> list[Position]:
    """Return how far each source of a job has come with each kind."""
    table = source_positions
    columns = (table.c.source, table.c.kind, table.c.attempt, table.c.last_seq, table.c.missing, table.c.lost)
    wanted = select(*columns, table.c.dead_lettered, table.c.produced, table.c.dropped).where(
        table.c.job_id == job_id
    )
    return [
        Position(**row | {"missing": tuple(map(tuple, row["missing"])), "lost": tuple(map(tuple, row["lost"]))})
        for row in map(dict, connection.execute(wanted).mappings())
    ]
