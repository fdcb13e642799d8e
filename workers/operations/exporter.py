"""One process that exports the Prometheus metrics of all workers.

It computes them from Postgres and Redis at each scrape instead of counting in the workers, so that a killed worker
cannot make a figure wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from trainwire.schemas import prometheus_metrics as names
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.stores.local_hosts import is_local_host, is_loopback
from trainwire.workers.durations import cumulated
from trainwire.workers.operations.measures import (
    Sample,
    postgres_samples,
    redis_samples,
    trainer_samples,
    training_samples,
    unreachable_shards,
)
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.plugin import sinks_on
from trainwire.workers.streams.outage_log import OutageLog

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log = structlog.get_logger("trainwire.workers.operations.exporter")

FAMILIES: Final = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}


class Exporter(Collector):
    """Computes the metrics from Postgres and Redis at each scrape, for prometheus_client.

    The metrics of a store that does not answer have no values, and `STORE_UP` is 0 for it.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._sinks = [sink.name for sink in sinks_on(resources.settings)]
        self._one_at_a_time = threading.Lock()
        self._notes = OutageLog("exporter")

    def describe(self) -> list[Metric]:
        """Return no metrics, so that the registration of this collector does not read the stores."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read Postgres and Redis, and yield all metrics. Concurrent scrapes read one after another."""
        with self._one_at_a_time:
            samples = [
                *self._read("postgres", self._from_postgres, (SQLAlchemyError,)),
                *self._read("redis", self._from_redis, STREAM_ERRORS),
            ]
        yield from families(samples)

    def _read(
        self, store: str, read: Callable[[], list[Sample]], unavailable: tuple[type[Exception], ...]
    ) -> list[Sample]:
        try:
            return [*read(), Sample(names.STORE_UP, (store,), 1)]
        except unavailable as exc:
            log.warning("exporter.unavailable", store=store, reason=str(exc).partition("\n")[0])
            return [Sample(names.STORE_UP, (store,), 0)]

    def _from_postgres(self) -> list[Sample]:
        settings = self._resources.settings
        with self._resources.engine.connect() as connection:
            return [
                *postgres_samples(connection, self._sinks),
                *training_samples(connection, settings.metrics_max_jobs, settings.metrics_max_series),
            ]

    def _from_redis(self) -> list[Sample]:
        found, shards = self._resources, self._resources.settings.ingest_shards
        samples = [
            *redis_samples(found.redis, shards, found.stream_client),
            *trainer_samples(found.streams, shards, found.settings.lost_after_s),
        ]
        unreachable = unreachable_shards(samples)
        self._notes.note(
            {server: f"shards {', '.join(which)} are not seen" for server, which in unreachable.items()}
        )
        return samples


def families(samples: list[Sample]) -> Iterator[Metric]:
    """Convert samples to metric families of prometheus_client. Metrics without samples become empty families."""
    by_metric: dict[names.Metric, list[Sample]] = {metric: [] for metric in names.WORKERS_METRICS}
    for sample in samples:
        by_metric[sample.metric].append(sample)
    for metric, found in by_metric.items():
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for sample in found:
                histogram.add_metric(sample.labels, cumulated(sample.counts), sample.value)
            yield histogram
            continue
        family = FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
        for sample in found:
            family.add_metric(sample.labels, sample.value)
        yield family


def serve(resources: Resources, address: str, port: int) -> threading.Thread:
    """Start an HTTP server for scrapes in a thread, and return the thread.

    On a loopback address it answers only requests to host names like `localhost`: there is no password, and pages
    of other sites must not read the metrics through a browser on this machine (DNS rebinding).
    """
    registry = CollectorRegistry()
    registry.register(Exporter(resources))
    server, thread = start_http_server(port, address, registry)
    app = server.get_app()
    if app is not None and is_loopback(address):
        server.set_app(_local_only(app))
    return thread


def _local_only(app: WSGIApplication) -> WSGIApplication:
    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "localhost")
        if is_local_host(host):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"host {host[:200]!r}: on a loopback address only names like localhost are answered\n".encode()]

    return checked
