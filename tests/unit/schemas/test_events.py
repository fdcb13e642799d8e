"""The events as their consumers receive them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainwire.schemas.events import (
    Event,
    LogLine,
    TrainingLog,
    TrainingProgress,
    TrainingStatus,
    decode_event,
    decode_events,
    encode_event,
    schema_text,
)
from trainwire.schemas.wire.validation import InvalidMessage

ROOT = Path(__file__).parents[3]


def test_the_committed_schema_is_that_of_the_types() -> None:
    """docs/events.schema.json is the output of `python -m trainwire.schemas.events`."""
    assert (ROOT / "docs" / "events.schema.json").read_text() == schema_text()


def test_every_event_is_documented() -> None:
    """docs/events.md names each type and each of its fields."""
    document = (ROOT / "docs" / "events.md").read_text()
    for name, definition in json.loads(schema_text())["$defs"].items():
        for field in definition["properties"]:
            assert field in document, f"{name}.{field}"
        for tag in definition["properties"].get("type", {}).get("enum", []):
            assert tag in document


def test_an_event_has_all_common_fields_even_where_they_are_null() -> None:
    """Every event has version, job, attempt, kind and range under the same names."""
    event = TrainingStatus(job_id=3, attempt=2, status="stalled", previous_status="running", reason="silent")
    assert json.loads(encode_event(event)) == {
        "type": "training_status",
        "v": 1,
        "job_id": 3,
        "attempt": 2,
        "kind": None,
        "first_seq": None,
        "last_seq": None,
        "status": "stalled",
        "previous_status": "running",
        "reason": "silent",
    }


def test_events_survive_the_channel() -> None:
    """An encoded event is decoded to an equal one, alone or in a list."""
    line = LogLine(seq=2**62, attempt=1, ts=1_790_000_000_000_000_001, log_type="stderr", text='<b>"\\☃', rank=0)
    events: list[Event] = [
        TrainingLog(job_id=2**63 - 1, attempt=1, kind="logs", first_seq=2**62, last_seq=2**62, lines=[line]),
        TrainingProgress(job_id=1, attempt=1, kind="metrics", status="running", metrics={"a": "NaN", "b": 0.0}),
    ]
    encoded = [encode_event(event) for event in events]
    assert [decode_event(data) for data in encoded] == events
    assert decode_events(b"[" + b",".join(encoded) + b"]") == events


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"training_status","v":2,"job_id":1,"attempt":1,"status":"running"}',
        b'{"type":"training_else","v":1,"job_id":1,"attempt":1}',
        b'{"type":"training_status","v":1,"job_id":"1","attempt":1,"status":"running"}',
        b"hello",
        b"\xff",
    ],
)
def test_an_invalid_event_is_named(data: bytes) -> None:
    """Another version, an unknown type, a wrong field and invalid bytes raise `InvalidMessage`."""
    with pytest.raises(InvalidMessage, match="not an event of version 1"):
        decode_event(data)
    with pytest.raises(InvalidMessage, match="not events of version 1"):
        decode_events(b"[" + data + b"]")
