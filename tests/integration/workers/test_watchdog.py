"""The watchdog does not disturb the worker's pool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from trainwire.workers.resources import Resources

ROOT = Path(__file__).parents[3]
FORKS = 200
SCRIPT = f"""
import os, signal, sys
from trainwire.workers import watchdog
from trainwire.workers.app import app
from trainwire.workers.settings import load_settings

def send_echo():
    app.__dict__.pop("amqp", None)  # as with the first order: kombu holds a lock while it makes this
    app.amqp

watchdog.LOOK_EVERY_S, watchdog.ECHO_EVERY_S = 0.0001, 0
watchdog.Watchdog(load_settings(), "a worker", send_echo).start()
for _ in range({FORKS}):
    child = os.fork()
    if not child:
        signal.alarm(5)
        app.amqp
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        os._exit(1)
os._exit(0)
"""


def test_a_pool_process_forked_while_the_watchdog_sends_can_send(resources: Resources) -> None:
    """A forked pool process has no lock of kombu held by a thread of its parent."""
    own = {
        "REDIS_URL": resources.settings.redis_url.get_secret_value(),
        "DATABASE_URL": resources.settings.database_url.get_secret_value(),
    }
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, check=False, timeout=120)
    assert done.returncode == 0, "a child hung"
