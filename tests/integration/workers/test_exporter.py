"""The metrics of the workers, read with Prometheus' parser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, drain, logs, metrics
from trainwire.schemas.keys import (
    BEAT_QUEUE,
    BEAT_TICKS_KEY,
    DEFAULT_SHARDS,
    HALTED_KEY,
    alive_field,
    alive_key,
    shard_of,
    stream_key,
)
from trainwire.schemas.prometheus_metrics import GATEWAY_METRICS, WORKERS_METRICS, Metric
from trainwire.schemas.wire.heartbeats import Heartbeat, encode_heartbeat
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stores.postgres.connections import open_redis
from trainwire.workers.durations import timed_delivery
from trainwire.workers.operations.exporter import Exporter
from trainwire.workers.resources import Resources
from trainwire.workers.settings import load_settings

UNITS: Final = (
    *("entries", "seconds", "bytes", "rows", "orders", "messages", "letters", "jobs", "values", "value"),
    *("trainers", "items", "requests", "connections"),
)
STATES: Final = ("up", "halted", "holding")
"""The suffix of names whose value is 1 or 0."""


class Scrape:
    """One scrape, as text and as values."""

    def __init__(self, resources: Resources) -> None:
        registry = CollectorRegistry()
        registry.register(Exporter(resources))
        self.families = list(text_string_to_metric_families(generate_latest(registry).decode()))
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Return one value."""
        return self.samples[name, frozenset(labels.items())]

    def named(self, name: str) -> dict[Mapping[str, str] | str, float]:
        """Return all values of a name, by their joined labels."""
        return {
            ",".join(sorted(dict(labels).values())): value
            for (of, labels), value in self.samples.items()
            if of == name
        }


def with_settings(resources: Resources, **overrides: object) -> Resources:
    """Return the resources with other settings."""
    settings = load_settings(
        database_url=resources.settings.database_url, redis_url=resources.settings.redis_url, **overrides
    )
    return Resources(settings, resources.engine, resources.redis)


def something_of_everything(resources: Resources, sender: Sender) -> None:
    """Create at least one sample of each metric."""
    sender.send(logs("a", "b"), seq=1)
    sender.send(logs("c"), seq=4)
    sender.send_raw("logs", 1, {"v": "nonsense"})
    sender.lose(1, 7, source="0-lost")
    sender.send(metrics(loss=0.5))
    drain(resources)
    drain(resources, "metrics")
    with timed_delivery(resources.engine, "loki"):
        pass
    resources.redis.hset(BEAT_TICKS_KEY, "sweep", int(resources.redis.time()[0]) * 1000 - 7000)


def exported(metric: Metric) -> tuple[str, str, frozenset[str]]:
    """Return the name, kind and labels of a metric from a parser."""
    return metric.name.removesuffix("_total"), metric.kind, frozenset(metric.labels)


def test_the_exporter_exports_the_list(resources: Resources, sender: Sender) -> None:
    """The exporter has every metric of the list with its type and labels, and no others."""
    something_of_everything(resources, sender)
    found = {
        (family.name, family.type, frozenset(name for name in sample.labels if name != "le"))
        for family in Scrape(resources).families
        for sample in family.samples
    }
    assert found == {exported(metric) for metric in WORKERS_METRICS}


@pytest.mark.parametrize("metric", [*WORKERS_METRICS, *GATEWAY_METRICS], ids=lambda metric: metric.name)
def test_every_name_has_its_unit(metric: Metric) -> None:
    """A name ends in its unit, a counter's in its unit and `_total`; no other ends in `_total`."""
    assert metric.name.startswith("trainwire_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.removesuffix("_total").endswith(UNITS + STATES)


def test_ingestion_is_counted_in_its_own_transaction(resources: Resources, sender: Sender) -> None:
    """Entries, rows, bytes, duplicates and the drain's time are those of the commits, resends included."""
    sender.send(logs("a", "b"), seq=1)
    drain(resources)
    sender.send(logs("a", "b"), seq=1)
    sender.send(logs("c"), seq=2)
    page: list[Any] = sender.client.xrange(stream_key("logs", 1)) or []
    size = sum(len(value) for _, fields in page for value in fields.values())
    first = Scrape(resources).value("trainwire_ingest_bytes_total", kind="logs", shard="1")
    drain(resources)
    scrape = Scrape(resources)
    where = {"kind": "logs", "shard": "1"}
    assert scrape.value("trainwire_ingest_entries_total", **where) == 3
    assert scrape.value("trainwire_ingest_duplicate_entries_total", **where) == 1
    assert scrape.value("trainwire_ingest_rows_total", **where) == 3
    assert scrape.value("trainwire_ingest_bytes_total", **where) - first == size > 0
    assert scrape.value("trainwire_drain_duration_seconds_count", **where) == 2
    assert scrape.value("trainwire_drain_duration_seconds_sum", **where) > 0


def test_unsent_messages_of_live_trainers(resources: Resources) -> None:
    """Sums and the maximum over trainers with a heartbeat within LOST_AFTER_S; none is no error."""
    none = Scrape(resources)
    assert none.value("trainwire_live_trainers") == none.value("trainwire_trainer_spool_largest_bytes") == 0
    now_ms = int(resources.redis.time()[0]) * 1000
    said = [
        Heartbeat(job=1, source="0-a", at=now_ms, unsent=3, spooled_bytes=1000, dropped=1),
        Heartbeat(job=1, source="1-b", at=now_ms - 20_000, unsent=4, spooled_bytes=5000, dropped=2),
        Heartbeat(job=2, source="0-c", at=now_ms - 5000),  # an SDK that does not report it
        Heartbeat(job=3, source="0-d", at=now_ms - 90_000, unsent=10**6, spooled_bytes=10**9, dropped=10**6),
    ]
    for beat in said:
        key = alive_key(shard_of(beat.job, DEFAULT_SHARDS))
        resources.redis.hset(key, alive_field(beat.job, beat.source), encode_heartbeat(beat))
    resources.redis.hset(alive_key(0), "4/0-e", "nonsense")
    scrape = Scrape(resources)
    assert scrape.value("trainwire_live_trainers") == 3
    assert scrape.value("trainwire_trainer_unsent_messages") == 7
    assert scrape.value("trainwire_trainer_spool_bytes") == 6000
    assert scrape.value("trainwire_trainer_spool_largest_bytes") == 5000
    assert scrape.value("trainwire_trainer_dropped_items") == 3
    assert resources.redis.hlen(alive_key(3)) == 1  # looking changes nothing


def test_the_lag_of_a_stream(resources: Resources, sender: Sender) -> None:
    """Waiting entries and the age of the oldest are metrics, and so is a halted stream."""
    old_ms = int(sender.client.time()[0]) * 1000 - 90_000
    sender.send(logs("old"), job=2, entry_id=f"{old_ms}-1")
    sender.send(logs("new"), job=2)
    sender.client.hset(HALTED_KEY, stream_key("logs", 2), "garbage")
    sender.client.lpush(BEAT_QUEUE, "{}", "{}")
    scrape = Scrape(resources)
    assert scrape.value("trainwire_stream_lag_entries", kind="logs", shard="2") == 2
    assert 90 <= scrape.value("trainwire_stream_lag_seconds", kind="logs", shard="2") < 150
    assert scrape.value("trainwire_stream_lag_entries", kind="logs", shard="1") == 0
    assert scrape.value("trainwire_stream_lag_seconds", kind="logs", shard="1") == 0
    assert scrape.value("trainwire_stream_halted", kind="logs", shard="2") == 1
    assert scrape.value("trainwire_queue_orders", queue=BEAT_QUEUE) == 2


def test_gaps_dead_letters_and_jobs(resources: Resources, sender: Sender) -> None:
    """Missing messages, dead letters by reason, and jobs by status equal those in Postgres."""
    something_of_everything(resources, sender)
    scrape = Scrape(resources)
    assert scrape.named("trainwire_missing_messages") == {"logs": 2}
    assert scrape.named("trainwire_lost_messages") == {"logs": 7}
    assert sum(scrape.named("trainwire_dead_letters").values()) == 1
    assert scrape.value("trainwire_jobs", status="running") == 1


def test_the_lag_of_a_sink(resources: Resources, sender: Sender) -> None:
    """Unconfirmed rows of a sink are counted in rows and in seconds, and an outage in seconds."""
    sender.send(logs("a", "b", "c"))
    drain(resources)
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_logs SET created_at = created_at - interval '1 hour'"))
        cursor = "INSERT INTO delivery_cursors (sink, job_id, confirmed_seq) VALUES ('loki', 1, 1)"
        connection.execute(text(cursor))
        down = "INSERT INTO sink_states (sink, down_since) VALUES ('loki', now() - interval '2 hours')"
        connection.execute(text(down))
    scrape = Scrape(resources)
    assert scrape.value("trainwire_sink_lag_rows", sink="loki") == 2
    assert 3600 <= scrape.value("trainwire_sink_lag_seconds", sink="loki") < 3700
    assert 7200 <= scrape.value("trainwire_sink_down_seconds", sink="loki") < 7300
    assert scrape.value("trainwire_sink_confirmed_rows", sink="loki") == 1
    assert "mlflow" not in scrape.named("trainwire_sink_lag_rows"), "a sink that is not set up has no lag"


def test_the_newest_training_metrics_of_running_jobs(resources: Resources, sender: Sender) -> None:
    """Each metric of a running job has its newest value, also NaN; finished jobs have none."""
    sender.send(metrics(loss=0.9, accuracy=0.1))
    sender.send(metrics(loss=float("nan"), grad_norm=3.5))
    sender.send(metrics(loss=0.2), job=5)
    drain(resources, "metrics")
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = 'completed' WHERE id = 5"))
    scrape = Scrape(resources)
    assert scrape.value("trainwire_training_value", job_id="1", metric="accuracy") == 0.1
    assert scrape.value("trainwire_training_value", job_id="1", metric="grad_norm") == 3.5
    assert math.isnan(scrape.value("trainwire_training_value", job_id="1", metric="loss"))
    assert len(scrape.named("trainwire_training_value")) == 3


def test_training_metrics_are_bounded(resources: Resources, sender: Sender) -> None:
    """With any number of training metrics the number of series is limited, and the others are counted."""
    for job in (1, 5, 9):
        values = {f"m{number}": float(number) for number in range(40)}
        sender.send(Metrics(points=[Point(ts=NOW_NS, values=values)]), job=job)
    drain(resources, "metrics")
    scrape = Scrape(with_settings(resources, metrics_max_series=50, metrics_max_jobs=2))
    assert len(scrape.named("trainwire_training_value")) == 50
    assert scrape.value("trainwire_training_left_out_values") == 30


def test_a_store_that_is_down_is_a_metric(resources: Resources, sender: Sender) -> None:
    """Without Redis the scrape is answered with the metrics from Postgres."""
    something_of_everything(resources, sender)
    settings = load_settings(database_url=resources.settings.database_url, redis_url="redis://127.0.0.1:1/0")
    lost = Resources(settings, resources.engine, open_redis(settings))
    scrape = Scrape(lost)
    assert scrape.value("trainwire_store_up", store="redis") == 0
    assert scrape.value("trainwire_store_up", store="postgres") == 1
    assert scrape.value("trainwire_jobs", status="running") == 1
    assert scrape.named("trainwire_stream_lag_entries") == {}
