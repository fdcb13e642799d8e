"""Spans of drains, deliveries and requests, decoded from what a collector received."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.factories import Sender, drain, logs, rows
from tests.gateway_server import GatewayServer
from tests.otlp_receiver import OtlpReceiver, collecting
from trainwire.gateway.settings import load_gateway_settings
from trainwire.schemas.events import decode_event
from trainwire.schemas.keys import acks_key
from trainwire.schemas.tables import dead_letters, training_logs
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Message
from trainwire.stores import tracing
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.events.notify import events_of, publish
from trainwire.workers.job_traces import find_traces
from trainwire.workers.resources import Resources

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FIRST = f"00-{TRACE}-{SPAN}-01"
SECOND = f"00-{'2' * 32}-{'3' * 16}-01"
HOSTILE: list[bytes] = [
    *(b"", b"\xff\xfe", b"0" * 55, FIRST.upper().encode(), FIRST.encode() + b"\n", b"x" * 1_000_000),
    *(f"00-{'0' * 32}-{SPAN}-01".encode(), f"ff-{TRACE}-{SPAN}-01".encode(), b"'; DROP TABLE training_jobs"),
]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch, resources: Resources) -> Iterator[OtlpReceiver]:
    """A collector that receives all spans of this process, once `tracing.flush` is called."""
    monkeypatch.setattr(tracing, "_spans", None)
    with collecting() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        settings = resources.settings.model_copy(update={"trace_slow_s": 0.0})
        tracing.trace_process(settings, "test", os.environ)
        yield receiver
        tracing.flush()


def send(sender: Sender, job: int, seq: int, traceparent: str | bytes | None) -> None:
    """Append a log line of a job, with any value in the field `traceparent`."""
    entry: dict[Any, Any] = encode_entry(Message("logs", job, 1, f"0-{job}", seq, logs(f"line {seq}")))
    sender.send_raw("logs", job, entry if traceparent is None else {**entry, "traceparent": traceparent})


def test_several_traces_are_linked(resources: Resources, sender: Sender, collector: OtlpReceiver) -> None:
    """A transaction with messages of two traces begins its own trace, with a link to each; its commit is in it."""
    send(sender, 4, 1, FIRST)
    send(sender, 8, 1, SECOND)
    send(sender, 12, 1, None)
    drain(resources, job=4)
    tracing.flush()
    (span,) = collector.named("drain")
    assert not span.parent_id
    assert set(span.links) == {FIRST[3:52], SECOND[3:52]}
    (commit,) = collector.named("commit")
    assert (commit.trace_id, commit.parent_id) == (span.trace_id, span.span_id)


def test_hostile_values_are_ignored(resources: Resources, sender: Sender, collector: OtlpReceiver) -> None:
    """Messages with an invalid traceparent are stored; no span, event or acknowledgement has the value."""
    for seq, value in enumerate(HOSTILE, 1):
        send(sender, 1, seq, value)
    changes: list[Any] = []
    drained = Drain(
        resources.engine, IngestStream(resources.streams, "logs", 1), resources.settings, on_commit=changes.extend
    ).run()
    assert drained.stored == len(HOSTILE)
    assert len(rows(resources.engine, training_logs, "content")) == len(HOSTILE)
    assert not rows(resources.engine, dead_letters, "id", order=["id"])
    assert not resources.streams.hexists(acks_key(1), "traceparent")
    assert all(change.traceparent is None for change in changes)
    tracing.flush()
    assert collector.named("drain")
    assert not any(span.parent_id or span.links for span in collector.named("drain"))


@pytest.mark.usefixtures("collector")
def test_the_trace_of_a_job_is_found_later(resources: Resources, sender: Sender) -> None:
    """The trace of a job's newest message is kept for its deliveries; an invalid value in Redis is ignored."""
    send(sender, 4, 1, FIRST)
    drain(resources, job=4)
    send(sender, 4, 2, SECOND)
    send(sender, 8, 1, None)
    drain(resources, job=4)
    resources.streams.hset(acks_key(12), "traceparent", "nonsense")
    assert find_traces(resources.streams, [4, 8, 12, 16]) == {4: SECOND}


@pytest.mark.usefixtures("collector")
def test_events_carry_the_trace(resources: Resources, sender: Sender) -> None:
    """An event has the traceparent of the run whose messages it is about."""
    send(sender, 4, 1, FIRST)
    changes: list[Any] = []
    Drain(
        resources.engine, IngestStream(resources.streams, "logs", 0), resources.settings, on_commit=changes.extend
    ).run()
    with resources.redis.pubsub() as followed:  # type: ignore[no-untyped-call]
        followed.subscribe("events:4")
        publish(resources.redis, events_of(changes))
        received = list(iter(lambda: followed.get_message(timeout=1), None))
    events = [decode_event(message["data"]) for message in received if message["type"] == "message"]
    assert {event.traceparent for event in events} == {FIRST}


def test_untraced_workers_add_nothing(resources: Resources, sender: Sender) -> None:
    """A worker that is not traced ignores the field: no event has it, and Redis keeps nothing of it."""
    assert not tracing.is_tracing()
    send(sender, 4, 1, FIRST)
    changes: list[Any] = []
    Drain(
        resources.engine, IngestStream(resources.streams, "logs", 0), resources.settings, on_commit=changes.extend
    ).run()
    assert not resources.streams.hexists(acks_key(4), "traceparent")
    with resources.redis.pubsub() as followed:  # type: ignore[no-untyped-call]
        followed.subscribe("events:4")
        publish(resources.redis, events_of(changes))
        received = list(iter(lambda: followed.get_message(timeout=1), None))
    texts = [message["data"] for message in received if message["type"] == "message"]
    assert texts
    assert not any(b"traceparent" in text for text in texts)


def test_requests_join_the_trace_of_their_header(
    database_url: str, redis_url: str, collector: OtlpReceiver
) -> None:
    """A request is a span below the one in its header; an invalid header, or two of them, are ignored."""
    settings = load_gateway_settings(database_url=database_url, redis_url=redis_url)
    with GatewayServer(settings) as gateway:
        for header in (FIRST, "nonsense", f"{FIRST}, {SECOND}"):
            answer = gateway.http.get(f"{gateway.url}/jobs/77", headers={"traceparent": header}, timeout=30)
            assert answer.status_code == 404
        events = gateway.http.get(
            f"{gateway.url}/jobs/events", headers={"traceparent": SECOND}, stream=True, timeout=30
        )
        assert events.headers["content-type"].startswith("text/event-stream")
        tracing.flush()
        spans = collector.named("GET /jobs/{job_id}")
        assert [span.parent_id for span in spans] == [SPAN, "", ""]
        assert spans[0].trace_id == TRACE
        assert spans[0].attributes["http.response.status_code"] == 404
        assert spans[0].attributes["trainwire.job_id"] == "77"
        (stream,) = [span for span in collector.spans if span.trace_id == SECOND[3:35]]
        assert stream.attributes["http.response.status_code"] == 200
        events.close()
