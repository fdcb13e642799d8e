"""Measures the time from SIGKILL of a process of `trainwire up` to the next committed row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil
import redis
import sqlalchemy
from sqlalchemy import Engine, text

from benchmarks import load
from benchmarks.processes import wait_until
from trainwire.schemas.keys import shard_of, stream_key
from trainwire.stack.folders import published
from trainwire.stack.supervisor import FREE_KILLS, KILLS_FORGOTTEN_AFTER_S
from trainwire.stores.postgres.connections import open_engine, open_redis
from trainwire.workers.settings import Settings, load_settings

KILLS: Final = 20
LINE_EVERY_S: Final = 0.02
SETTLE_S: Final = 1.5
"""Seconds of undisturbed work between two kills."""
START_TIMEOUT_S: Final = 90
BACK_TIMEOUT_S: Final = 30
STORES: Final = ("valkey", "postgres")
_STORED: Final = text("SELECT coalesce(max(last_log_seq), 0) FROM training_jobs")


@dataclass
class Outage:
    """Times of all kills of one process in seconds, until a line that was sent after the kill is stored.

    For a store they begin when it accepts commands again.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """CPU time of the new worker process and its children up to the next row."""


@dataclass(frozen=True)
class RunningStack:
    """A `trainwire up` with servers and data of its own."""

    data_dir: Path
    settings: Settings
    redis: redis.Redis
    engine: Engine

    def process(self, name: str) -> psutil.Process:
        """Return the process of a part of the stack."""
        return psutil.Process(json.loads((self.data_dir / "run" / f"{name}.json").read_text())["pid"])

    def stored(self) -> int:
        """Return the number of stored lines, or -1 if Postgres does not answer."""
        with suppress(sqlalchemy.exc.DBAPIError), self.engine.connect() as connection:
            return int(connection.execute(_STORED).scalar_one())
        return -1

    def accepts(self, store: str) -> bool:
        """Return whether a store accepts commands."""
        if store == "postgres":
            return self.stored() >= 0
        with suppress(redis.RedisError):
            return bool(self.redis.ping())
        return False


def measure(scale: float) -> Iterator[Outage]:
    """Kill the worker and both stores again and again, and yield the measured times of each."""
    kills = max(3, round(KILLS * scale))
    with stack() as running, trickle(running) as sent:
        wait_until(lambda: running.stored() > 0, START_TIMEOUT_S)
        worker = Outage("worker")
        for number in range(kills):
            # A worker that is killed often is started with a delay, until it has run for some seconds.
            time.sleep(SETTLE_S if number == 0 or number % FREE_KILLS else KILLS_FORGOTTEN_AFTER_S + 1)
            killed = running.process("worker")
            killed.kill()
            wait_until(lambda killed=killed: not is_alive(killed), BACK_TIMEOUT_S)  # type: ignore[misc]
            worker.seconds.append(_until_new_rows(running, sent()))
            worker.cpu_s.append(cpu_s(running.process("worker")))
        yield worker
        for store in STORES:
            outage = Outage(store)
            for _ in range(max(3, kills // 4)):
                time.sleep(SETTLE_S)
                killed = running.process(store)
                killed.kill()
                wait_until(lambda killed=killed: not is_alive(killed), BACK_TIMEOUT_S)  # type: ignore[misc]
                wait_until(lambda store=store: running.accepts(store), BACK_TIMEOUT_S)  # type: ignore[misc]
                outage.seconds.append(_until_new_rows(running, sent()))
            yield outage


def _until_new_rows(running: RunningStack, sent: int) -> float:
    """Return the seconds until a line is stored that was sent after now (line number > `sent`)."""
    began = time.perf_counter()
    wait_until(lambda: running.stored() > sent, BACK_TIMEOUT_S)
    return time.perf_counter() - began


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children since their starts, in seconds."""
    return sum(sum(one.cpu_times()[:2]) for one in [process, *process.children(recursive=True)])


@contextmanager
def trickle(running: RunningStack) -> Iterator[Callable[[], int]]:
    """Send a line every 20 ms until the block ends; the value returns the number of the last line sent.

    A line that Redis does not take is sent again, as trainers do.
    """
    sent, stop = 0, threading.Event()

    def send() -> None:
        nonlocal sent
        while not stop.wait(LINE_EVERY_S):
            with suppress(redis.RedisError):
                own.xadd(stream, load.log_entry(load.JOB, sent + 1, [f"line {sent + 1}"]))
                sent += 1

    own = open_redis(running.settings)
    stream = stream_key("logs", shard_of(load.JOB, running.settings.ingest_shards))
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield lambda: sent
    finally:
        stop.set()
        thread.join()
        own.close()


@contextmanager
def stack() -> Iterator[RunningStack]:
    """Run `trainwire up` with one worker and no web server, in a data folder of its own."""
    with TemporaryDirectory(prefix="trainwire-bench-") as folder, (Path(folder) / "up.log").open("wb") as log:
        data_dir = Path(folder) / "data"
        env = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
        env |= {
            "LOKI_ENABLED": "false",
            "PYTHONWARNINGS": "ignore",
            "XDG_STATE_HOME": folder,
            "XDG_DATA_HOME": folder,
        }
        command = [sys.executable, "-m", "trainwire", "up", "--data-dir", str(data_dir)]
        up = subprocess.Popen(
            [*command, "--no-flower", "--no-gateway", "--no-metrics"], env=env, stdout=log, stderr=log
        )
        try:
            wait_until(lambda: "Ctrl-C stops it" in Path(log.name).read_text(), START_TIMEOUT_S)
            address = published(data_dir)
            assert address is not None
            settings = load_settings(database_url=address["database_url"], redis_url=address["redis_url"])
            engine, client = open_engine(settings, name="bench"), open_redis(settings)
            yield RunningStack(data_dir, settings, client, engine)
            engine.dispose()
            client.close()
        finally:
            up.terminate()
            up.wait(60)
