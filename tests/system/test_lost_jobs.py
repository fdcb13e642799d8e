"""A killed trainer with real workers and beat: its job becomes lost, with an event and a status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from redis.client import PubSub

from tests.factories import Sender, logs, one
from tests.processes import END_S, ROOT, wait_until, workers_running
from tests.system.test_announcing import Subscriber
from trainwire.schemas.events import TrainingStatus
from trainwire.schemas.keys import events_channel
from trainwire.schemas.tables import training_jobs
from trainwire.workers.resources import Resources

TRAINER = "import time\nfrom trainwire import Run\nrun = Run(42)\ntime.sleep(600)\n"


def test_a_killed_trainer_is_announced_as_lost(resources: Resources, tmp_path: Path) -> None:
    """A job becomes lost in time, with reason and time in `trainwire status`; a late message makes it running."""
    env = os.environ | {
        "REDIS_URL": resources.settings.redis_url.get_secret_value(),
        "DATABASE_URL": resources.settings.database_url.get_secret_value(),
    }
    with (
        PubSub(resources.redis.connection_pool, ignore_subscribe_messages=True) as pubsub,
        workers_running(resources.settings, tmp_path, LOST_AFTER_S="6"),
    ):
        trainer = subprocess.Popen(
            [sys.executable, "-c", TRAINER], cwd=ROOT, env=env | {"TRAINWIRE_HEARTBEAT_S": "0.2"}
        )
        try:
            pubsub.subscribe(events_channel(42))
            subscriber = Subscriber(pubsub)
            wait_until(lambda: is_watched(resources), "its first heartbeat")
        finally:
            trainer.kill()
            trainer.wait(END_S)
        event = subscriber.wait_for(
            lambda event: isinstance(event, TrainingStatus) and event.status == "lost", "the loss", timeout_s=120
        )
        assert isinstance(event, TrainingStatus)
        assert (event.previous_status, event.attempt) == ("running", 1)
        assert f"pid {trainer.pid}" in (event.reason or "")
        command = [sys.executable, "-m", "trainwire", "status", "42"]
        shown = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
        assert "status          lost since 20" in shown
        assert "why             no heartbeat for 6 s; the last: host " in shown
        Sender(resources.redis).send(logs("sent later"), job=42, source="0-other")
        subscriber.wait_for(
            lambda event: isinstance(event, TrainingStatus) and event.status == "running", "that it is back"
        )
    job = one(resources.engine, training_jobs, id=42)
    assert (job["status"], job["quiet_since"], job["status_reason"]) == ("running", None, None)


def is_watched(resources: Resources) -> bool:
    """Return whether Redis has a heartbeat of the job."""
    with resources.engine.connect() as connection:
        if not connection.execute(training_jobs.select()).first():
            return False
    return bool(one(resources.engine, training_jobs, id=42)["watched_attempt"])
