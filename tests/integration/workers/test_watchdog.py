"""The watchdog does not disturb the worker's pool, and survives errors of the disk, as beat does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from celery import Celery

from trainwire.schemas.keys import BEAT_LEASE_KEY, echo_key
from trainwire.workers.beat import HOLD_EVERY_S, BeatLease, LeasedScheduler
from trainwire.workers.resources import Resources
from trainwire.workers.watchdog import Watchdog

ROOT = Path(__file__).parents[3]
FORKS = 200
SCRIPT = f"""
import os, signal, sys
from trainwire.workers import watchdog
from trainwire.workers.orders.order_sender import send_order
from trainwire.workers.resources import process_resources
from trainwire.workers.settings import load_settings

def send_echo():
    send_order(process_resources().redis, "trainwire.echo", ["a worker"], "echo.a worker")

watchdog.LOOK_EVERY_S, watchdog.ECHO_EVERY_S = 0.0001, 0
watchdog.Watchdog(load_settings(), "a worker", send_echo).start()
for _ in range({FORKS}):
    child = os.fork()
    if not child:
        signal.alarm(60)
        send_echo()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        os._exit(1)
os._exit(0)
"""


def test_a_pool_process_forked_while_the_watchdog_sends_can_send(resources: Resources) -> None:
    """A forked pool process does not wait for a lock that a thread of its parent holds."""
    own = {
        "REDIS_URL": resources.settings.redis_url.get_secret_value(),
        "DATABASE_URL": resources.settings.database_url.get_secret_value(),
    }
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, check=False, timeout=280)
    assert done.returncode == 0, "a child hung"


def test_beat_survives_an_error_of_its_file(
    client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beat keeps its lease while the file for health checks cannot be written."""
    monkeypatch.setattr(LeasedScheduler, "lease", BeatLease(client), raising=False)
    monkeypatch.setattr(LeasedScheduler, "alive_file", tmp_path / "missing" / "alive")
    scheduler = LeasedScheduler(Celery(), lazy=True)
    assert scheduler.tick() <= HOLD_EVERY_S
    assert client.exists(BEAT_LEASE_KEY)


def test_the_watchdog_survives_an_error_of_its_file(resources: Resources, tmp_path: Path) -> None:
    """The watchdog sends its next order while the file for health checks cannot be written."""
    sent: list[str] = []
    settings = resources.settings.model_copy(update={"alive_file": tmp_path / "missing" / "alive"})
    resources.redis.set(echo_key("a worker"), 1)
    Watchdog(settings, "a worker", lambda: sent.append("echo"))._check_echo(0.0)
    assert sent == ["echo"]
