"""Reads the Prometheus samples, the workers and the jobs that `trainwire top` shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import redis
from kombu.exceptions import OperationalError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from trainwire.cli.worker_queues import answering_workers
from trainwire.schemas.prometheus_metrics import Metric
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.stack.database import sinks_for
from trainwire.stores.postgres.connections import postgres_trouble
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.postgres.jobs.job_pages import find_jobs
from trainwire.workers.operations.measures import Sample, postgres_samples, redis_samples, unreachable_shards
from trainwire.workers.settings import Settings

ANSWER_WITHIN_S: Final = 0.7
MOST_JOBS: Final = 12
TROUBLED_JOBS: Final = 4
"""Number of places in the list that are reserved for stalled and lost jobs."""


@dataclass(frozen=True)
class Snapshot:
    """The state of the system at `at_s` (monotonic time), with the samples of Prometheus metrics.

    `unreachable` has a text for each store that did not answer.
    """

    at_s: float
    samples: tuple[Sample, ...] = ()
    jobs: tuple[Job, ...] = ()
    workers: dict[str, list[str]] = field(default_factory=dict)
    unreachable: tuple[str, ...] = ()

    def total(self, metric: Metric, label: str | None = None) -> float | None:
        """Return the sum of a Prometheus metric's samples; None if there is no sample.

        If `label` is given, only the samples with this first label count.
        """
        found = self._of(metric, label)
        return sum(found) if found else None

    def most(self, metric: Metric, label: str | None = None) -> float | None:
        """Return the largest value of a Prometheus metric, optionally only of samples with this first label.

        Returns None if there is no sample.
        """
        return max(self._of(metric, label), default=None)

    def labels(self, metric: Metric) -> list[str]:
        """Return the distinct values of a Prometheus metric's first label, in the order of the samples."""
        return list(dict.fromkeys(sample.labels[0] for sample in self.samples if sample.metric is metric))

    def rate(self, before: Snapshot | None, metric: Metric, label: str) -> float | None:
        """Return the increase per second since `before` of a Prometheus metric with this first label.

        Returns None without `before`, or if one of the two snapshots has no sample.
        """
        now, then = self.total(metric, label), before.total(metric, label) if before else None
        if before is None or now is None or then is None or self.at_s <= before.at_s:
            return None
        return max(0.0, (now - then) / (self.at_s - before.at_s))

    def _of(self, metric: Metric, label: str | None) -> list[float]:
        return [
            sample.value
            for sample in self.samples
            if sample.metric is metric and (label is None or sample.labels[0] == label)
        ]


def take(
    client: redis.Redis,
    engine: Engine,
    settings: Settings,
    clock: Callable[[], float] = time.monotonic,
    *,
    streams: redis.Redis | None = None,
) -> Snapshot:
    """Read the current state of the system.

    `streams` is a client of the Redis that stores the streams, None if that is `client`. If a store does not
    answer, its data is missing, and `unreachable` names it.
    """
    samples: list[Sample] = []
    jobs: list[Job] = []
    workers: dict[str, list[str]] = {}
    unreachable: list[str] = []
    try:
        samples += redis_samples(client, settings.ingest_shards, streams)
        for server, shards in unreachable_shards(samples).items():
            unreachable.append(f"{server} does not answer: it has the streams of shard {', '.join(shards)}")
        workers = answering_workers(settings, ANSWER_WITHIN_S)
    except (*STREAM_ERRORS, OperationalError) as exc:
        unreachable.append(f"Redis does not answer: {redis_trouble(exc, settings.redis_url.get_secret_value())}")
    at_s = clock()
    try:
        with engine.connect() as connection:
            samples += postgres_samples(connection, [sink.name for sink in sinks_for(settings)])
            jobs = _jobs(connection)
    except SQLAlchemyError as exc:
        unreachable.append(f"Postgres does not answer: {postgres_trouble(exc)}")
    return Snapshot(at_s, tuple(samples), tuple(jobs), workers, tuple(unreachable))


def _jobs(connection: Connection) -> list[Job]:
    """Return at most MOST_JOBS jobs: running ones, then stalled and lost ones.

    TROUBLED_JOBS places are reserved for stalled and lost jobs.
    """
    running, stalled, lost = (
        find_jobs(connection, MOST_JOBS, status) for status in ("running", "stalled", "lost")
    )
    troubled = stalled + lost
    most_running = MOST_JOBS - min(len(troubled), TROUBLED_JOBS)
    return [*running[:most_running], *troubled][:MOST_JOBS]
