"""How far the sources of a job have come: what the sum of all messages is made of."""

from __future__ import annotations

from dataclasses import fields

from sqlalchemy import Connection, func, select

from trainwire.schemas.tables import dead_letters, source_positions
from trainwire.stores.postgres.completeness import Completeness, Position, assess
from trainwire.stores.postgres.jobs import Job


def find_completeness(connection: Connection, job: Job) -> Completeness:
    """Return where all messages of a job are."""
    positions, unnumbered = find_positions(connection, job.id), find_unnumbered(connection, job.id)
    return assess(positions, job.attempt, job.status, unnumbered)


def find_unnumbered(connection: Connection, job_id: int) -> dict[str, int]:
    """Return how many dead letters of each source of a job are counted by none of its positions."""
    letters = dead_letters.c
    wanted = (
        select(letters.source, func.count().label("letters"))
        .where(letters.job_id == job_id, letters.source.is_not(None), letters.seq.is_(None))
        .group_by(letters.source)
        .order_by(letters.source)
    )
    return {row.source: row.letters for row in connection.execute(wanted)}


def find_positions(connection: Connection, job_id: int) -> list[Position]:
    """Return how far each source of a job has come with each kind."""
    columns = [source_positions.c[field.name] for field in fields(Position)]
    wanted = select(*columns).where(source_positions.c.job_id == job_id)
    return [
        Position(**row | {"missing": tuple(map(tuple, row["missing"])), "lost": tuple(map(tuple, row["lost"]))})
        for row in map(dict, connection.execute(wanted).mappings())
    ]
