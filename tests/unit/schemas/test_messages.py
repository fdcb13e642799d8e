"""Messages are encoded and decoded without a change, and errors name the wrong part."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import NOW_NS
from trainwire.schemas.keys import Kind, shard_of, stream_key
from trainwire.schemas.non_finite import NON_FINITE_NAMES, shown_float
from trainwire.schemas.wire.body_decoding import body_from_object, decode_body
from trainwire.schemas.wire.entries import COMPRESS_OVER_BYTES, Envelope, encode_entry, open_envelope
from trainwire.schemas.wire.limits import MAX_TEXT_CHARS
from trainwire.schemas.wire.messages import Body, Logs, Message, Metrics, Point
from trainwire.schemas.wire.validation import MAX_ID, MAX_TIME_NS, MIN_TIME_NS, InvalidMessage, check_body

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
LINES = st.lists(TEXT, max_size=200)


def over_the_wire(kind: Kind, body: Body) -> Body:
    """Encode a message as a trainer does, and decode the fields as Redis returns them."""
    entry = encode_entry(Message(kind, 42, 1, "0-test", 7, body))
    raw = {
        name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in entry.items()
    }
    envelope = open_envelope(raw)
    assert (envelope.job_id, envelope.attempt, envelope.source, envelope.seq) == (42, 1, "0-test", 7)
    return decode_body(kind, envelope)


@given(LINES)
def test_lines_survive_the_wire(lines: list[str]) -> None:
    """Any Unicode text is decoded unchanged, compressed or not."""
    body = Logs(log_type="stderr", lines=lines, ts=[NOW_NS] * len(lines))
    assert over_the_wire("logs", body) == body


def test_large_bodies_are_compressed() -> None:
    """A body over the limit is compressed with zstd, a small one is not."""
    small = Message("logs", 1, 1, "s", 1, Logs(log_type="stdout", lines=["x"], ts=[1]))
    large = Message("logs", 1, 1, "s", 1, Logs(log_type="stdout", lines=["x" * COMPRESS_OVER_BYTES], ts=[1]))
    assert encode_entry(small)["enc"] == "msgpack"
    assert encode_entry(large)["enc"] == "msgpack+zstd"


def test_numbers_survive_the_wire() -> None:
    """NaN and the infinities are legal values in msgpack."""
    body = Metrics(points=[Point(ts=1, values={"a": math.nan, "b": math.inf, "c": -0.0})])
    came = over_the_wire("metrics", body)
    assert isinstance(came, Metrics)
    values = came.points[0].values
    assert math.isnan(values["a"])
    assert values["b"] == math.inf
    assert math.copysign(1, values["c"]) == -1


@pytest.mark.parametrize("place", ["values", "metrics", "final_metrics"])
def test_json_writes_non_finite_numbers_by_name(place: str) -> None:
    """In every map of numbers of a JSON body the three names are numbers."""
    numbers = {name: name for name in NON_FINITE_NAMES}
    made: dict[str, tuple[Kind, dict[str, Any]]] = {
        "values": ("metrics", {"points": [{"ts": 1, "values": numbers}]}),
        "metrics": ("checkpoints", {"ts": 1, "kind": "best", "uri": "u", "metrics": numbers}),
        "final_metrics": ("completions", {"ts": 1, "status": "failed", "final_metrics": numbers}),
    }
    kind, plain = made[place]
    body = decode_body(kind, Envelope(1, 1, "s", 1, "json", msgspec.json.encode(plain)))
    found = msgspec.to_builtins(body)
    read = (found["points"][0] if place == "values" else found)[place]
    assert math.isnan(read["NaN"])
    assert (read["Infinity"], read["-Infinity"]) == (math.inf, -math.inf)


@given(st.floats())
def test_a_shown_number_is_read_back(value: float) -> None:
    """The number in a JSONB column or a JSON answer is the original one."""
    body = body_from_object("metrics", {"points": [{"ts": 1, "values": {"x": shown_float(value)}}]})
    assert isinstance(body, Metrics)
    read = body.points[0].values["x"]
    assert read == value or (math.isnan(read) and math.isnan(value))


def test_fields_from_the_future_are_ignored() -> None:
    """Unknown fields of a body are ignored."""
    body = body_from_object("logs", {"log_type": "stdout", "lines": ["a"], "ts": [1], "colour": "red"})
    assert body == Logs(log_type="stdout", lines=["a"], ts=[1])


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"ts": MAX_TIME_NS + 1}, "time-out-of-range"),
        ({"ts": MIN_TIME_NS - 1}, "time-out-of-range"),
        ({"step": MAX_ID + 1}, "out-of-range"),
        ({"epoch": -MAX_ID - 1}, "out-of-range"),
        ({"checkpoint_path": "p" * (MAX_TEXT_CHARS["checkpoint_path"] + 1)}, "too-large"),
    ],
)
def test_one_wrong_point_is_found_wherever_it_is(at: int, wrong: dict[str, Any], reason: str) -> None:
    """One point with a wrong time, step, epoch or path makes the message invalid; points may lack all of them."""
    points = [Point(ts=NOW_NS, values={"a": 0.5}, step=1, epoch=0), Point(ts=0, values={}), Point(ts=1, values={})]
    check_body(Metrics(points=points))
    points[at] = msgspec.structs.replace(points[at], **wrong)
    with pytest.raises(InvalidMessage) as caught:
        check_body(Metrics(points=points))
    assert caught.value.reason == reason


def test_text_that_msgpack_cannot_encode_is_named() -> None:
    """A lone surrogate raises InvalidMessage with kind and job, not a UnicodeError."""
    with pytest.raises(InvalidMessage, match="logs of job 5"):
        encode_entry(Message("logs", 5, 1, "s", 1, Logs(log_type="stdout", lines=["\ud800"], ts=[1])))


def test_a_job_has_one_shard() -> None:
    """The shard is the job id modulo the number of shards; the stream's name has it in braces."""
    assert shard_of(MAX_ID, 4) == MAX_ID % 4
    assert stream_key("logs", shard_of(42, 4)) == "ingest:{2}:logs"


def test_an_entry_takes_the_memory_of_its_compressed_body() -> None:
    """Trainers keep entries until they are acknowledged, in the size of their compressed bodies."""
    text = "x" * 4_000_000
    tracemalloc.start()
    try:
        entry = encode_entry(Message("logs", 1, 1, "0-a", 1, Logs(log_type="stdout", lines=[text], ts=[1])))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(entry["body"], bytes)
    assert len(entry["body"]) < 10_000
    assert held_bytes < 100_000
