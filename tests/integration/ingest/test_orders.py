"""The work order is one that a real Celery worker understands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.bells import Bells

WORKER = """
import sys
from celery import Celery

app = Celery("twin", broker=sys.argv[1])
app.conf.update(task_default_queue="ingest", accept_content=["json"], broker_connection_retry_on_startup=True)

@app.task(name="trainwire.drain", ignore_result=True, bind=True)
def drain(self, kind, shard):
    request = self.request
    app.connection().default_channel.client.set("seen", f"{kind} {shard} {request.expires is not None}")

app.worker_main(["worker", "--pool=solo", "--concurrency=1", "--without-gossip", "--without-mingle",
                 "--without-heartbeat", "-l", "WARNING", "-Q", "ingest"])
"""


def test_a_celery_worker_runs_the_order(valkey: Any, tmp_path: Path, until: Callable[..., None]) -> None:
    """A bell becomes a call of trainwire.drain with kind and shard, and an expiry date."""
    bells = Bells(valkey.url)
    bells.ring("checkpoints", 3)
    script = tmp_path / "celery_twin.py"
    script.write_text(WORKER)
    worker = subprocess.Popen([sys.executable, str(script), valkey.url], cwd=tmp_path)
    try:
        until(lambda: valkey.client.get("seen"), 30.0)
        assert valkey.client.get("seen") == b"checkpoints 3 True"
        valkey.client.flushall()  # no queue binding is left: an order must still arrive
        bells.ring("logs", 0)
        until(lambda: valkey.client.get("seen") == b"logs 0 True", 30.0)
    finally:
        worker.kill()
        worker.wait()
        bells.close()


def test_a_bell_that_cannot_be_rung_is_forgotten() -> None:
    """Without a server, ringing neither raises nor hangs."""
    Bells("redis://127.0.0.1:1/0").ring("logs", 0)
