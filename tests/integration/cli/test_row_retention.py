"""`trainwire retention --rows` on real rows."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from tests.factories import Sender, completion, drain, logs
from tests.integration.cli.conftest import Trainwire
from trainwire.workers.resources import Resources


def test_rows_that_retention_would_remove_are_shown(
    trainwire: Trainwire, alone: pytest.MonkeyPatch, resources: Resources, sender: Sender
) -> None:
    """A dry run counts rows by job; without the settings it is an error with their names."""
    alone.setenv("DATABASE_URL", resources.settings.database_url.get_secret_value())
    alone.setenv("LOKI_ENABLED", "false")
    assert "neither LOG_RETENTION_DAYS nor METRIC_RETENTION_DAYS is set" in trainwire("retention", "--rows").err
    sender.send(logs("a", "b"), job=7)
    drain(resources, "logs", 7)
    sender.send(completion(), job=7)
    drain(resources, "completions", 7)
    with resources.engine.begin() as connection:
        for table in ("training_logs", "training_jobs"):
            connection.execute(text(f"UPDATE {table} SET created_at = now() - interval '8 days'"))
    alone.setenv("LOG_RETENTION_DAYS", "7")
    planned = json.loads(trainwire("retention", "--rows", "--json").out)
    assert planned == [{"table": "training_logs", "job_id": 7, "rows": 2}]
    assert "nothing is removed; if on, the next runs would remove 2 rows" in trainwire("retention", "--rows").out
    with resources.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM training_logs")).scalar_one() == 2
