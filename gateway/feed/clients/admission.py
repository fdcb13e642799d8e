"""A connection that lasts for days outlives tokens: who may come in is asked again and again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import HTTPConnection

from trainwire.gateway.auth.authorization import authorize_connection

ASK_EVERY_S: Final = 60.0


async def until_refused(connection: HTTPConnection, job_id: int | None, every_s: float = ASK_EVERY_S) -> None:
    """Wait until a connection that was let in would be refused; raise what refuses it.

    While Postgres cannot be asked the connection goes on.
    """
    while True:
        await asyncio.sleep(every_s)
        with suppress(SQLAlchemyError):
            await authorize_connection(connection, job_id)
