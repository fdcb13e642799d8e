"""Alerts by real worker processes and beat, from the training's call to the webhook."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import text

from tests.processes import ROOT, wait_until, workers_running
from tests.webhook_receiver import Received, receiving
from trainwire.stores.postgres.alerts import CURSOR
from trainwire.workers.resources import Resources

TRAINER: Final = """
from trainwire import Run
with Run(42, "digits") as run:
    run.alert("Loss spikes", "at step 7", level="warning")
    run.metric(loss=float("nan"), step=7)
    raise SystemExit(3)
"""
RULES: Final = """
[destinations.ops]
webhook = "{url}"
secret = "0123456789abcdef"
[[rules]]
name = "all"
on = ["failed", "alert", "nan"]
to = "ops"
"""


def test_a_training_reports_and_fails(resources: Resources, tmp_path: Path) -> None:
    """Each occurrence reaches the webhook once, while a worker is killed in between."""
    env = os.environ | {"REDIS_URL": resources.settings.redis_url.get_secret_value()}
    rules = tmp_path / "alerts.toml"
    with receiving() as receiver:
        rules.write_text(RULES.format(url=receiver.url))
        with workers_running(resources.settings, tmp_path, ALERT_RULES=str(rules)) as (worker,):
            wait_until(lambda: _are_in_force(resources), "the rules are in force")
            subprocess.run([sys.executable, "-c", TRAINER], cwd=ROOT, env=env, check=False, timeout=120)
            wait_until(lambda: receiver.requests, "the first alert", 120)
            worker.kill()
            worker.start()
            wait_until(lambda: len(_titles(receiver.requests)) == 3, "all alerts", 120)
    # The end may be stored before the name: each kind of messages has its own stream.
    assert {title.replace(" (digits)", "") for title in _titles(receiver.requests)} == {
        "Job 42: Loss spikes",
        "Job 42: loss is NaN",
        "Job 42 failed",
    }
    ids = {request.headers["webhook-id"] for request in receiver.requests}
    assert len(ids) == 3


def _are_in_force(resources: Resources) -> bool:
    """Return whether workers have evaluated the rules once: what was stored before is not reported."""
    with resources.engine.connect() as connection:
        found = connection.execute(
            text("SELECT count(*) FROM delivery_cursors WHERE sink = :sink"), {"sink": CURSOR}
        )
        return bool(found.scalar_one())


def _titles(requests: Sequence[Received]) -> set[str]:
    return {request.document["data"]["title"] for request in requests}
