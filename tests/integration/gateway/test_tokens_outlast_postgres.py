"""Callbacks of cached tokens continue for a while without Postgres, and all other tokens are refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from tests.gateway_server import GatewayServer, gateway_settings
from tests.integration.gateway.test_authorization import LINES, bearer
from tests.processes import wait_until
from tests.tcp_proxy import TcpProxy
from trainwire.gateway.auth import token_cache
from trainwire.gateway.auth.token_cache import FRESH_S, OUTAGE_S, TokenCache
from trainwire.gateway.auth.tokens import ValidToken, create_token, revoke_token
from trainwire.workers.resources import Resources


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@pytest.fixture
def proxy(database_url: str) -> Iterator[TcpProxy]:
    """A TCP proxy to Postgres."""
    url = make_url(database_url)
    with TcpProxy(f"http://{url.host}:{url.port}") as way:
        yield way


@pytest.fixture
def proxied(database_url: str, proxy: TcpProxy) -> str:
    """The database's address through the proxy."""
    host, _, port = proxy.url.removeprefix("http://").partition(":")
    url = make_url(database_url).set(host=host, port=int(port))
    return url.render_as_string(hide_password=False)


@pytest.fixture
def by_proxy(proxied: str) -> Iterator[Engine]:
    """An engine that connects through the proxy."""
    engine = create_engine(make_url(proxied).set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    yield engine
    engine.dispose()


def new_token(engine: Engine, lasts: timedelta | None = None) -> str:
    """Make a trainer's token."""
    with engine.begin() as connection:
        return create_token(connection, "gpu", "trainer", 1, lasts)[1]


def test_callbacks_outlast_postgres(proxied: str, redis_url: str, proxy: TcpProxy, resources: Resources) -> None:
    """A trainer's cached token is accepted during an outage, others are not; a revocation counts after it."""
    token = new_token(resources.engine)
    settings = gateway_settings(proxied, redis_url, gateway_auth="on")
    with GatewayServer(settings) as server:

        def callback(with_token: str) -> int:
            headers = bearer(with_token)
            return server.request("POST", "/jobs/1/callback/logs", json=LINES, headers=headers).status_code

        def session() -> int:
            return server.request("GET", "/session", headers=bearer(token)).status_code

        assert callback(token) == 202
        proxy.cut()
        wait_until(lambda: session() == 503, "a token that counts for looking no longer", FRESH_S + 30)
        assert [callback(token) for _ in range(3)] == [202] * 3
        assert (
            server.request("POST", "/jobs/2/callback/logs", json=LINES, headers=bearer(token)).status_code == 403
        )
        assert callback("tw_unknown") == 503
        proxy.mend()
        with resources.engine.begin() as connection:
            revoke_token(connection, 1)
        wait_until(lambda: callback(token) == 401, "the end of the token", FRESH_S + 30)


def test_belief_ends(proxy: TcpProxy, by_proxy: Engine, resources: Resources) -> None:
    """A cached token is refused five minutes after its last successful lookup."""
    clock, token = Clock(), new_token(resources.engine)
    tokens = TokenCache(by_proxy, clock)

    async def ask() -> ValidToken | None:
        return await tokens.find(token, may_outlast_postgres=True)

    async def story() -> None:
        assert await ask()
        proxy.cut()
        clock.now += OUTAGE_S - 1
        assert await ask()
        clock.now += 2
        with pytest.raises(OperationalError):
            await ask()
        proxy.mend()
        assert await ask()

    asyncio.run(story())


def test_the_last_answer_of_postgres_counts(proxy: TcpProxy, by_proxy: Engine, resources: Resources) -> None:
    """A token that was found to be revoked stays refused during an outage."""
    clock, token = Clock(), new_token(resources.engine)
    tokens = TokenCache(by_proxy, clock)

    async def story() -> None:
        assert await tokens.find(token, may_outlast_postgres=True)
        with resources.engine.begin() as connection:
            revoke_token(connection, 1)
        clock.now += FRESH_S + 1
        assert await tokens.find(token, may_outlast_postgres=True) is None
        proxy.cut()
        clock.now += FRESH_S + 1
        with pytest.raises(OperationalError):
            await tokens.find(token, may_outlast_postgres=True)

    asyncio.run(story())


def test_a_token_is_not_believed_beyond_its_end(proxy: TcpProxy, by_proxy: Engine, resources: Resources) -> None:
    """A cached token that expires during an outage is refused."""
    clock, token = Clock(), new_token(resources.engine, timedelta(minutes=1))
    tokens = TokenCache(by_proxy, clock)

    async def story() -> None:
        assert await tokens.find(token, may_outlast_postgres=True)
        proxy.cut()
        clock.now += 50
        assert await tokens.find(token, may_outlast_postgres=True)
        clock.now += 11
        with pytest.raises(OperationalError):
            await tokens.find(token, may_outlast_postgres=True)

    asyncio.run(story())


def test_a_postgres_that_hangs_is_not_waited_for(engine: Engine) -> None:
    """A locked table does not delay cached tokens, and concurrent requests share one lookup."""
    clock, token = Clock(), new_token(engine)
    tokens = TokenCache(engine, clock)

    async def story() -> None:
        assert await tokens.find(token, may_outlast_postgres=True)
        clock.now += FRESH_S + 1
        with engine.connect() as locking:
            locking.execute(text("LOCK TABLE gateway_tokens IN ACCESS EXCLUSIVE MODE"))
            asked = [tokens.find(token, may_outlast_postgres=True) for _ in range(50)]
            assert all(await asyncio.gather(*asked))
            viewer = asyncio.create_task(tokens.find(token))
            assert await tokens.find(token, may_outlast_postgres=True)
            assert not viewer.done()
            with engine.connect() as looking:
                waiting = looking.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one()
            assert waiting == 1
        assert await viewer

    asyncio.run(story())


def test_made_up_tokens_push_out_no_valid_one(
    proxy: TcpProxy, by_proxy: Engine, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invalid tokens evict no valid one, and the number of cached tokens is limited."""
    monkeypatch.setattr(token_cache, "MAX_CACHED", 3)
    clock, token = Clock(), new_token(resources.engine)
    tokens = TokenCache(by_proxy, clock)

    async def story() -> None:
        assert await tokens.find(token, may_outlast_postgres=True)
        for number in range(10):
            assert await tokens.find(f"tw_{number}") is None
        others = [new_token(resources.engine) for _ in range(2)]
        for other in others:
            assert await tokens.find(other, may_outlast_postgres=True)
        proxy.cut()
        clock.now += FRESH_S + 1
        for valid in (token, *others):
            assert await tokens.find(valid, may_outlast_postgres=True)
        proxy.mend()
        await tokens.find(new_token(resources.engine))
        proxy.cut()
        clock.now += FRESH_S + 1
        outcomes = []
        for valid in (token, *others):
            with contextlib.suppress(OperationalError):
                outcomes.append(await tokens.find(valid, may_outlast_postgres=True))
        assert len(outcomes) == 2

    asyncio.run(story())
