"""The dead letters, as the commands show them."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import Connection, select

from trainwire.schemas.tables import dead_letters
from trainwire.stores.postgres.columns import columns_of


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One row of dead_letters without its raw bytes."""

    id: int
    stream: str
    entry_id: str
    kind: str
    job_id: int | None
    source: str | None
    seq: int | None
    reason: str
    detail: str
    created_at: datetime


def find_dead_letters(connection: Connection) -> list[DeadLetter]:
    """Return all dead letters, the oldest first."""
    wanted = select(*columns_of(DeadLetter, dead_letters)).order_by(dead_letters.c.id)
    return [DeadLetter(**row) for row in connection.execute(wanted).mappings()]


def find_dead_letter(connection: Connection, letter_id: int) -> tuple[DeadLetter, bytes] | None:
    """Return one dead letter and its raw bytes, None where there is none."""
    wanted = select(*columns_of(DeadLetter, dead_letters), dead_letters.c.raw).where(
        dead_letters.c.id == letter_id
    )
    row = connection.execute(wanted).mappings().one_or_none()
    if row is None:
        return None
    fields = dict(row)
    raw = bytes(fields.pop("raw"))
    return DeadLetter(**fields), raw
