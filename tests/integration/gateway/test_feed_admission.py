"""Connections that outlive the token that opened them."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.requests import HTTPConnection

from trainwire.gateway.auth.authorization import Authorizer, Unauthorized, wait_until_refused
from trainwire.gateway.auth.token_cache import FRESH_S
from trainwire.gateway.auth.tokens import create_token, revoke_token


def test_a_revoked_token_ends_its_connections(engine: Engine) -> None:
    """An open connection is refused at the next check after its token is revoked."""
    with engine.begin() as connection:
        token_id, token = create_token(connection, "browser", "viewer")
    now = [100.0]
    app = FastAPI()
    app.state.authorizer = Authorizer(engine, is_on=True, clock=lambda: now[0])
    headers = [(b"authorization", f"Bearer {token}".encode())]
    opened = HTTPConnection({"type": "http", "app": app, "headers": headers})

    async def follow() -> None:
        waiting = asyncio.create_task(wait_until_refused(opened, 1, every_s=0.01))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        with engine.begin() as connection:
            revoke_token(connection, token_id)
        now[0] += FRESH_S + 1
        with pytest.raises(Unauthorized):
            await asyncio.wait_for(waiting, 30)

    asyncio.run(follow())
