"""How far the sources of a job have come: what the sum of all messages is made of."""

from __future__ import annotations

from dataclasses import fields

from sqlalchemy import Connection, select

from schemas.tables import source_positions
from stores.completeness import Completeness, Position, assess
from stores.jobs import Job


def find_completeness(connection: Connection, job: Job) -> Completeness:
    """Return where all messages of a job are."""
    return assess(find_positions(connection, job.id), job.attempt, job.status)


def find_positions(connection: Connection, job_id: int) -> list[Position]:
    """Return how far each source of a job has come with each kind."""
    columns = [source_positions.c[field.name] for field in fields(Position)]
    wanted = select(*columns).where(source_positions.c.job_id == job_id)
    return [
        Position(**row | {"missing": tuple(map(tuple, row["missing"])), "lost": tuple(map(tuple, row["lost"]))})
        for row in map(dict, connection.execute(wanted).mappings())
    ]
