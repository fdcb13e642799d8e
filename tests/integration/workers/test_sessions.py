"""The settings of sessions of Postgres."""

from __future__ import annotations

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
