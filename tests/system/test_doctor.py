"""`trainwire doctor` on real processes: healthy ones, and workers that run and consume nothing."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.processes import wait_until, workers_running
from trainwire.cli.commands.operations.doctor import run_checks
from trainwire.cli.doctor import processes
from trainwire.schemas.keys import BEAT_QUEUE
from trainwire.workers.findings import worst
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings, load_settings


def without_loki(settings: Settings) -> Settings:
    """Return the settings of workers without sinks."""
    return load_settings(database_url=settings.database_url, redis_url=settings.redis_url, loki_enabled=False)


def test_a_healthy_stack_has_no_findings(resources: Resources, tmp_path: Path) -> None:
    """With a worker and a beat there are no findings, and the exit code is 0."""
    settings = without_loki(resources.settings)
    with workers_running(settings, tmp_path):
        wait_until(lambda: worst(run_checks(settings)) == 0, "a clean bill of health")


def test_a_worker_that_lives_and_consumes_nothing(
    resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders that expired although a worker consumes the queue are an error that names the worker."""
    monkeypatch.setattr(processes, "LATE_S", 1.0)
    settings = without_loki(resources.settings)
    with workers_running(settings, tmp_path) as (worker,):
        children = psutil.Process(worker.process.pid).children()
        for child in children:
            child.suspend()
        wait_until(lambda: resources.redis.llen(BEAT_QUEUE) > 6, "orders that nobody takes")

        def is_found() -> bool:
            by_check = {found.check: found for found in run_checks(settings)}
            found = by_check[f"queue-{BEAT_QUEUE}"]
            return found.level == "error" and "w0@" in found.says

        wait_until(is_found, "the finding", 120)
        for child in children:
            child.resume()  # else their worker does not end
    assert "queue-deliver-mlflow" not in {found.check for found in run_checks(settings)}
