"""Measures a machine with thousands of live trainers: latency to the committed row, backlog, CPU and memory."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any, Final

import psutil
from sqlalchemy import text

from benchmarks.drains.baselines import rows_in
from benchmarks.processes import cpu_seconds, running, servers
from benchmarks.stores import empty
from benchmarks.trainers.simulated_trainers import Crowd
from trainwire.schemas.keys import CHECKPOINT_QUEUE, DEFAULT_SHARDS, KINDS, NOTIFY_QUEUE, stream_key
from trainwire.stack.stack import STORE_QUEUES
from trainwire.stack.valkey import DEFAULT_MAXMEMORY
from trainwire.workers.resources import Resources

SIZES: Final = (100, 1000, 5000, 10_000, 15_000, 20_000)
"""Numbers of trainers."""
MEASURED_S: Final = 15.0
STARTS_PER_S: Final = 2000
"""Number of trainers that start within a second."""
SETTLING_S: Final = 4.0
"""Seconds between the start of the last trainer and the measurement."""
LONGEST_DRAIN_S: Final = 20.0
LATEST_START_S: Final = 420.0
"""No number of trainers is begun after this number of seconds."""


@dataclass(frozen=True)
class Load:
    """The measurement of one number of trainers, in a period in which all were running.

    `rows_per_s` lines and points were made each second, and `stored_per_s` were stored.
    `p50_s`, `p95_s` and `max_s` are seconds from a line's `logged_at` to the commit of its row. `lag_s` is the
    time from the last message to the last acknowledgement, None if messages were still waiting after
    `LONGEST_DRAIN_S`. `cores` has the CPU time by kind of process, divided by the elapsed time. `late_s` is the
    longest delay that the simulation itself added.
    """

    rows_per_s: float
    stored_per_s: float
    p50_s: float
    p95_s: float
    max_s: float
    lag_s: float | None
    lines_per_entry: float
    waiting: int
    valkey_mb: float
    cores: Mapping[str, float]
    late_s: float
    resent: int

    @property
    def microseconds(self) -> float:
        """The CPU time per line or point of all processes except the simulation."""
        ours = sum(cores for kind, cores in self.cores.items() if kind != "trainers")
        return 1e6 * ours / self.stored_per_s


def measure(resources: Resources, trainers: int, measured_s: float) -> Load:
    """Run the processes of `trainwire up` with default settings, and `trainers` simulated trainers."""
    empty(resources)
    resources.redis.config_set("maxmemory", DEFAULT_MAXMEMORY)
    ours, theirs = multiprocessing.Pipe()
    url = resources.settings.redis_url.get_secret_value()
    start_s = max(1.0, trainers / STARTS_PER_S)
    simulation = multiprocessing.get_context("spawn").Process(
        target=_simulate, args=(theirs, url, trainers, start_s, measured_s), daemon=True
    )
    with ExitStack() as stack:
        kinds: dict[str, psutil.Process] = {}
        for name, queues in (("worker", STORE_QUEUES), ("notifier", NOTIFY_QUEUE), ("rollups", CHECKPOINT_QUEUE)):
            alone = ("--concurrency", "1") if name != "worker" else ()
            command = ("trainwire.workers", "worker", "--name", name, "--queues", queues, *alone)
            kinds[name] = stack.enter_context(running(resources, *command))
        kinds["beat"] = stack.enter_context(running(resources, "trainwire.workers", "beat", ready="beat"))
        simulation.start()
        stack.callback(simulation.kill)
        kinds["trainers"] = psutil.Process(simulation.pid)
        kinds["postgres"], kinds["valkey"] = servers(resources)
        began = _received(ours) + start_s + SETTLING_S
        _sleep_until(began)
        before, stored, peak, waiting = _seconds(kinds), _stored_rows(resources), 0.0, 0
        while time.time() < began + measured_s:
            peak = max(peak, resources.redis.info("memory")["used_memory"] / 1e6)
            waiting = _waiting(resources)
            _sleep_until(min(time.time() + 1, began + measured_s))
        stored_per_s = (_stored_rows(resources) - stored) / (time.time() - began)
        cores = {kind: (used - before[kind]) / (time.time() - began) for kind, used in _seconds(kinds).items()}
        lag_s, produced, lines, entries, late_s, resent = _received(ours)
    latencies = _latencies(resources, began, began + measured_s)
    is_drained = lag_s < LONGEST_DRAIN_S
    assert not is_drained or _stored(resources) == produced, (produced, _stored(resources))
    assert not is_drained or rows_in(resources, "training_logs") == lines
    return Load(
        cores=cores,
        stored_per_s=stored_per_s,
        valkey_mb=peak,
        waiting=waiting,
        lines_per_entry=lines / entries,
        lag_s=lag_s if is_drained else None,
        late_s=late_s,
        resent=resent,
        **latencies,
    )


def _simulate(pipe: Pipe, url: str, trainers: int, start_s: float, measured_s: float) -> None:
    crowd = Crowd(url, trainers, start_s)
    gc.disable()  # it would look at all trainers again and again, which no trainer of a machine of its own does
    began = time.time() + 0.5
    pipe.send(began)
    lag_s = crowd.run(began, began + start_s + SETTLING_S + measured_s, LONGEST_DRAIN_S)
    pipe.send((lag_s, crowd.produced, crowd.lines, crowd.entries, crowd.late_s, crowd.resent))
    time.sleep(LONGEST_DRAIN_S)  # a trainer that disconnects would be a load of its own


def _received(pipe: Pipe) -> Any:
    assert pipe.poll(120), "the simulation does not answer"
    return pipe.recv()


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.time()))


def _waiting(resources: Resources) -> int:
    """Return the number of entries in all streams."""
    pipeline = resources.redis.pipeline(transaction=False)
    for shard in range(DEFAULT_SHARDS):
        for kind in KINDS:
            pipeline.xlen(stream_key(kind, shard))
    return sum(pipeline.execute())


def _stored(resources: Resources) -> dict[str, int]:
    """Return the number of stored messages by kind."""
    positions = text("SELECT kind, CAST(sum(last_seq) AS bigint) FROM source_positions GROUP BY kind")
    with resources.engine.connect() as connection:
        return {kind: int(count) for kind, count in connection.execute(positions)}


def _stored_rows(resources: Resources) -> int:
    """Return the number of stored lines and points."""
    counts = text("SELECT coalesce(CAST(sum(last_log_seq + last_metric_seq) AS bigint), 0) FROM training_jobs")
    with resources.engine.connect() as connection:
        return int(connection.execute(counts).scalar_one())


def _latencies(resources: Resources, began: float, ended: float) -> dict[str, float]:
    """Return lines and points/s, and percentiles of the time to the commit of the lines, made in the period."""
    found = text(
        "SELECT count(*), percentile_cont(CAST(ARRAY[0.5, 0.95, 1] AS float[])) WITHIN GROUP (ORDER BY "
        "CAST(extract(epoch FROM pg_xact_commit_timestamp(xmin) - logged_at) AS float)) FROM training_logs "
        "WHERE logged_at >= to_timestamp(:began) AND logged_at < to_timestamp(:ended)"
    )
    points = text(
        "SELECT count(*) FROM training_metrics "
        "WHERE logged_at >= to_timestamp(:began) AND logged_at < to_timestamp(:ended)"
    )
    period = {"began": began, "ended": ended}
    with resources.engine.connect() as connection:
        lines, (p50_s, p95_s, max_s) = connection.execute(found, period).one()
        rows = lines + connection.execute(points, period).scalar_one()
    return {"rows_per_s": rows / (ended - began), "p50_s": p50_s, "p95_s": p95_s, "max_s": max_s}


def _seconds(kinds: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Return the CPU seconds of each process, including its running and ended children."""
    return {kind: cpu_seconds(process) for kind, process in kinds.items()}
