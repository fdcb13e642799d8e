"""Sessions of Postgres: their settings, and those that can no longer be used."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text

from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.settings import Settings


@pytest.mark.parametrize(("name", "value"), [("jit", "off"), ("TimeZone", "UTC"), ("lock_timeout", "30s")])
def test_sessions_have_the_same_settings_on_each_server(
    settings: Settings, engine: Engine, name: str, value: str
) -> None:
    """Sessions do not depend on defaults of the server: JIT would compile longer than a sort of jobs takes."""
    assert engine
    sessions = open_engine(settings, name="sessions")
    with sessions.connect() as connection:
        assert connection.execute(text(f"SHOW {name}")).scalar_one() == value
    sessions.dispose()


def test_a_session_whose_ping_was_interrupted_is_replaced(settings: Settings, engine: Engine) -> None:
    """A time limit that ends a ping of a frozen server leaves a session that the driver cannot use any more."""
    assert engine
    sessions = open_engine(settings, name="sessions", most=1)
    with sessions.connect() as connection:
        driver: Any = connection.connection.driver_connection
    driver.pgconn.send_query(b"SELECT 1")  # as sent by a ping, whose result nobody has read
    with sessions.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        assert connection.connection.driver_connection is not driver
    sessions.dispose()
