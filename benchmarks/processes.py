"""Starts the processes under measurement: workers, the gateway, and the Celery worker for comparison."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import psutil
from sqlalchemy import text

from tests.forked_starts import StartedProcess, start_module
from tests.processes import server_variables
from trainwire.schemas.keys import Kind, ordered_key, stream_key
from trainwire.workers.resources import Resources

ROOT = Path(__file__).parents[1]
DEADLINE_S = 600
POLL_S = 0.005
"""Resolution of polled times, well below the times that are measured."""


def _start_program(
    module: str, arguments: tuple[str, ...], env: Mapping[str, str], log: IO[bytes]
) -> StartedProcess:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)


_start: Callable[[str, tuple[str, ...], Mapping[str, str], IO[bytes]], StartedProcess] = _start_program


def start_by_forks() -> None:
    """Start processes by forks from now on, as the tests do.

    It takes a third of the CPU time, but the memory of a fork is not that of a program.
    """
    global _start  # noqa: PLW0603
    _start = start_module


@dataclass
class Drained:
    """Measurement of the drain of a full stream.

    It has the seconds, the peak memory of the pool process, and samples of (second, rows).
    """

    seconds: float
    peak_mb: float
    samples: list[tuple[float, int]] = field(default_factory=list)


@contextmanager
def running(
    resources: Resources, module: str, *arguments: str, ready: str = " ready.", **env: str
) -> Iterator[psutil.Process]:
    """Run a Python module as a process until the block ends. The block starts when the output contains `ready`.

    Loki is disabled unless `env` has LOKI_URL.
    """
    env = (
        os.environ
        | {"LOKI_ENABLED": str("LOKI_URL" in env)}
        | env
        | {
            **server_variables(resources.settings),
            "PYTHONWARNINGS": "ignore",
        }
    )
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        process = _start(module, arguments, env, log)
        try:
            wait_until(lambda: ready in (Path(folder) / "log").read_text(), 60)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def running_gateway(resources: Resources, port: int) -> AbstractContextManager[psutil.Process]:
    """Run a gateway on this port of 127.0.0.1 until the block ends, practically without a rate limit."""
    limits = {"GATEWAY_PORT": str(port), "GATEWAY_REQUESTS_PER_S": "100000"}
    return running(resources, "trainwire.gateway", ready="Uvicorn running", **limits)


def drain_with_a_worker(resources: Resources, kind: Kind, shard: int, table: str) -> Drained:
    """Drain a full stream with a real worker that has one pool process.

    Measure the time until the stream is empty.
    """
    key = stream_key(kind, shard)
    resources.redis.set(ordered_key(key), 1, ex=DEADLINE_S)  # until the worker is ready
    with running(resources, "trainwire.workers", "worker", "--concurrency", "1") as worker:
        (pool,) = worker.children()
        column = {"training_logs": "last_log_seq", "training_metrics": "last_metric_seq"}[table]
        progress = text(f"SELECT coalesce(sum({column}), 0) FROM training_jobs")
        result = Drained(0, 0)
        began = time.perf_counter()
        resources.redis.delete(ordered_key(key))
        while resources.redis.xlen(key):
            result.seconds = time.perf_counter() - began
            result.peak_mb = max(result.peak_mb, pool.memory_info().rss / 2**20)
            if not result.samples or result.seconds - result.samples[-1][0] > 0.5:
                with resources.engine.connect() as connection:
                    result.samples.append((result.seconds, int(connection.execute(progress).scalar_one())))
            assert result.seconds < DEADLINE_S
            time.sleep(POLL_S)
        result.seconds = time.perf_counter() - began
    return result


def wait_until(condition: Callable[[], object], timeout_s: float) -> None:
    """Poll a condition every `POLL_S` until it is true; fail after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def servers(resources: Resources) -> tuple[psutil.Process, psutil.Process]:
    """Return the main processes of Postgres and of Valkey."""
    with resources.engine.connect() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    postgres = psutil.Process(backend).parent()
    assert postgres is not None
    return postgres, psutil.Process(int(resources.redis.info("server")["process_id"]))


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process, including its running and ended children."""
    own = process.cpu_times()
    children = (child.cpu_times() for child in process.children())
    ended = own.children_user + own.children_system
    return float(own.user + own.system + ended + sum(child.user + child.system for child in children))
