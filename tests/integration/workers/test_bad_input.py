"""Bad input: invalid text is stored with replacement characters, unreadable entries are dead-lettered."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import msgpack
import msgspec
import pytest
import zstandard
from sqlalchemy import text

from tests.factories import NOW_NS, Sender, completion, drain, logs, one, rows
from trainwire.schemas.keys import KINDS, Kind, stream_key
from trainwire.schemas.tables import dead_letters, training_jobs, training_logs, training_metrics
from trainwire.schemas.wire.messages import Logs, Metrics, Point
from trainwire.workers.resources import Resources
from trainwire.workers.streams.sweep import drain_everything

YEAR_9999_NS = 253_402_300_799 * 10**9


def envelope(body: bytes, enc: str = "msgpack", **fields: Any) -> dict[str, Any]:
    """Return the flat fields of an entry with any body."""
    return {"v": 1, "job": 1, "attempt": 1, "source": "bad", "seq": 1, "enc": enc, "body": body} | fields


def packed(**body: Any) -> bytes:
    """Return a msgpack body of any shape."""
    return msgspec.msgpack.encode(body)


GOOD_LOGS = packed(log_type="stdout", lines=["x"], ts=[NOW_NS])

BOMB = b"\x81\xa6params\x81\xa1a\xdd" + (20_000_000).to_bytes(4, "big") + b"\x80" * 20_000_000
"""Twenty million empty maps: a few kilobytes when compressed, over a gigabyte as objects."""

JSON_BOMB = b'{"params":{"a":[' + b"{}," * 10_000_000 + b"{}]}}"

NESTED = b"\x81\xa1a" * 60

BURIED: dict[str, tuple[Kind, Mapping[str, Any], str, str]] = {
    "not msgpack": ("logs", envelope(b"\xc1\xff garbage"), "undecodable", "not msgpack"),
    "not json": ("logs", envelope(b"{'a': 1}", "json"), "undecodable", "not JSON"),
    "not zstd": ("logs", envelope(b"plain", "msgpack+zstd"), "undecodable", "not zstd"),
    "unknown encoding": ("logs", envelope(GOOD_LOGS, "pickle"), "unknown-encoding", "'pickle'"),
    "unknown version": ("logs", envelope(GOOD_LOGS, v=3), "unknown-version", "version 3"),
    "several messages without parts": ("logs", envelope(GOOD_LOGS, v=2), "missing-field", "'parts'"),
    "no version": ("logs", {"job": 1}, "missing-field", "'v'"),
    "no fields of ours": ("logs", {"hello": "world"}, "missing-field", "'v'"),
    "job is no number": ("logs", envelope(GOOD_LOGS, job="forty-two"), "wrong-fields", "forty-two"),
    "job too large": ("logs", envelope(GOOD_LOGS, job=2**63), "out-of-range", str(2**63)),
    "job negative": ("logs", envelope(GOOD_LOGS, job=-1), "out-of-range", "-1"),
    "seq zero": ("logs", envelope(GOOD_LOGS, seq=0), "out-of-range", "seq 0"),
    "source empty": ("logs", envelope(GOOD_LOGS, source=""), "wrong-fields", "source"),
    "missing field": ("logs", envelope(packed(log_type="stdout", lines=[])), "wrong-fields", "ts"),
    "wrong type": ("logs", envelope(packed(log_type="stdout", lines=[1], ts=[1])), "wrong-fields", "str"),
    "unknown log type": ("logs", envelope(packed(log_type="stdlog", lines=[], ts=[])), "wrong-fields", "stdlog"),
    "lines without times": (
        "logs", envelope(packed(log_type="stdout", lines=["a"], ts=[])), "wrong-fields", "1 lines but 0 times",
    ),
    "metric is text": (
        "metrics", envelope(packed(points=[{"ts": 1, "values": {"loss": "low"}}])), "wrong-fields", "values",
    ),
    "body of another kind": ("completions", envelope(GOOD_LOGS), "wrong-fields", "ts"),
    "year 10000": (
        "logs", envelope(packed(log_type="stdout", lines=["a"], ts=[2**63]), seq=1) | {
            "enc": "json", "body": json.dumps({"log_type": "stdout", "lines": ["a"], "ts": [YEAR_9999_NS * 2]}),
        }, "time-out-of-range", "years 1 to 9999",
    ),
    "epoch too large": (
        "metrics", envelope(packed(points=[{"ts": 1, "values": {}, "epoch": 2**64 - 1}])), "out-of-range", "epoch",
    ),
    "a list as key": ("metrics", envelope(b"\x81\x91\x01\x01"), "wrong-fields", "str"),
    "a list as key in params": ("metrics", envelope(b"\x81\xa6params\x81\x91\x01\x01"), "wrong-fields", "str"),
    "an extension type": ("logs", envelope(b"\xd4\x05x"), "wrong-fields", "object"),
    "no body": ("logs", envelope(b""), "undecodable", "truncated"),
    "nested deeply": ("metrics", envelope(b"\x81\xa6params" + NESTED + b"\x01"), "wrong-fields", "nested"),
    "a bomb": ("metrics", envelope(zstandard.compress(BOMB), "msgpack+zstd"), "too-large", "params"),
    "a bomb in JSON": ("metrics", envelope(zstandard.compress(JSON_BOMB), "json+zstd"), "too-large", "params"),
    "a number with a plus": ("logs", envelope(GOOD_LOGS, seq="+1"), "wrong-fields", "'+1'"),
    "a jump beyond belief": ("logs", envelope(GOOD_LOGS, seq=2**63 - 1), "seq-jump", str(2**63 - 1)),
    "nested without end": ("metrics", envelope(b'{"params":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}", "json"),
                           "undecodable", "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BURIED)
def test_an_unreadable_entry_is_dead_lettered_alone(case: str, resources: Resources, sender: Sender) -> None:
    """A bad entry becomes a dead letter with raw bytes, reason and value; its neighbours are stored."""
    kind, fields, reason, said = BURIED[case]
    before, after = (
        (completion(), completion(status="failed")) if kind == "completions" else (logs("a"), logs("b"))
    )
    neighbours: Kind = "completions" if kind == "completions" else "logs"
    sender.send(before, source="good")
    entry_id = sender.send_raw(kind, 1, fields)
    sender.send(after, source="good")
    for stream_kind in {kind, neighbours}:
        drain(resources, stream_kind)
    letter = one(resources.engine, dead_letters, entry_id=entry_id)
    assert (letter["kind"], letter["reason"]) == (kind, reason)
    assert said in letter["detail"]
    raw = msgspec.msgpack.decode(letter["raw"], type=dict[bytes, bytes])
    assert set(raw) == {name.encode() for name in fields}
    if neighbours == "logs":
        assert rows(resources.engine, training_logs, "content") == ["a", "b"]
    else:
        assert one(resources.engine, training_jobs, id=1)["status"] == "failed"


def test_broken_text_is_stored_and_visible(resources: Resources, sender: Sender) -> None:
    """NUL, lone surrogates and invalid UTF-8 become U+2400 and U+FFFD; the text around them is kept."""
    sender.send(logs("nul \x00 inside", "fine"))
    lone = json.dumps({"log_type": "stderr", "lines": ["lone \ud800 surrogate"], "ts": [NOW_NS]})
    sender.send_raw("logs", 1, envelope(lone.encode(), "json", seq=1))
    invalid = msgpack.packb({"log_type": "stdout", "lines": [b"caf\xe9 \xf0\x9f\x98\x80"], "ts": [NOW_NS]})
    sender.send_raw("logs", 1, envelope(invalid, seq=2))
    as_str = msgpack.packb(
        {"log_type": "stdout", "lines": ["caf\udce9"], "ts": [NOW_NS]}, unicode_errors="surrogateescape"
    )
    sender.send_raw("logs", 1, envelope(zstandard.compress(as_str), "msgpack+zstd", seq=3))
    cut = b'{"log_type":"stdout","lines":["half \xe2\x82"],"ts":[1]}'
    sender.send_raw("logs", 1, envelope(cut, "json", seq=4))
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == [
        "nul \u2400 inside",
        "fine",
        "lone \ufffd surrogate",
        "caf\ufffd \U0001f600",
        "caf\ufffd",
        "half \ufffd",
    ]
    assert rows(resources.engine, dead_letters, "id", order=["id"]) == []


def test_numbers_without_a_json_form(resources: Resources, sender: Sender) -> None:
    """NaN and infinities are stored and read back as such, in their own columns and in JSONB; 0.0 is a value."""
    values = {"loss": math.nan, "acc": 0.0, "lr": -math.inf, "grad_norm": math.inf, "kl": math.nan, "ok": 1.5}
    sender.send(Metrics(points=[Point(ts=NOW_NS, values=values)]))
    as_json = {"points": [{"ts": NOW_NS, "values": {"loss": "Infinity", "x": "NaN", "accuracy": 0}}]}
    sender.send_raw("metrics", 1, envelope(json.dumps(as_json).encode(), "json"))
    drain(resources, "metrics")
    first, second = rows(resources.engine, training_metrics, "loss", "accuracy", "learning_rate", "extra_metrics")
    assert math.isnan(first[0])
    assert first[1:] == (0.0, -math.inf, {"grad_norm": "Infinity", "kl": "NaN", "ok": 1.5})
    assert second == (math.inf, 0.0, None, {"x": "NaN"})


def test_hostile_names_and_params(resources: Resources, sender: Sender) -> None:
    """NUL in a name, HTML in metric names, NaN and huge numbers in params: stored as text and JSON."""
    params = {"nan": math.nan, "big": 2**64 - 1, "nul\x00": "a\x00b", "deep": [{"x": [1, None, True]}]}
    sender.send(
        Metrics(
            name="run \x00 <b>",
            params=params,
            points=[Point(ts=NOW_NS, values={"<script>alert(1)</script>": 1.0, "nul\x00": 2.0})],
        )
    )
    drain(resources, "metrics")
    job = one(resources.engine, training_jobs, id=1)
    assert job["name"] == "run \u2400 <b>"
    assert job["params"] == {
        "nan": "NaN",
        "big": str(2**64 - 1),
        "nul\u2400": "a\u2400b",
        "deep": [{"x": [1, None, True]}],
    }
    extra = one(resources.engine, training_metrics, job_id=1)["extra_metrics"]
    assert extra == {"<script>alert(1)</script>": 1.0, "nul\u2400": 2.0}


def test_a_line_of_ten_megabytes(resources: Resources, sender: Sender) -> None:
    """A 10 MB line is one row with all its bytes."""
    sender.send(logs("before", "0123456789" * 1_000_000, "after"))
    drain(resources)
    with resources.engine.connect() as connection:
        lengths = (
            connection.execute(text("SELECT length(content) FROM training_logs ORDER BY seq")).scalars().all()
        )
    assert lengths == [6, 10_000_000, 5]


def test_many_values_in_one_point(resources: Resources, sender: Sender) -> None:
    """A point with 100,000 values is one row that has them all."""
    sender.send(Metrics(points=[Point(ts=NOW_NS, values={f"m{n}": float(n) for n in range(100_000)})]))
    drain(resources, "metrics")
    assert len(one(resources.engine, training_metrics, job_id=1)["extra_metrics"]) == 100_000


def test_times_from_odd_clocks(resources: Resources, sender: Sender) -> None:
    """Times of the years 1, 1969 and 9999 are stored to the nanosecond, in the order of arrival."""
    times = [YEAR_9999_NS + 7, -1, -62_135_596_800 * 10**9]
    body = json.dumps({"log_type": "stdout", "lines": ["9999", "1969", "1"], "ts": times})
    sender.send_raw("logs", 1, envelope(body.encode(), "json"))
    sender.send(Logs(log_type="stdout", lines=["now"], ts=[NOW_NS]))
    drain(resources)
    found = rows(resources.engine, training_logs, "content", "logged_at", "logged_ns", order=["seq"])
    found_by_line = {content: (at.isoformat(), ns) for content, at, ns in found}
    assert found_by_line == {
        "9999": ("9999-12-31T23:59:59+00:00", 7),
        "1969": ("1969-12-31T23:59:59.999999+00:00", 999),
        "1": ("0001-01-01T00:00:00+00:00", 0),
        "now": ("2026-09-21T14:13:20.123456+00:00", 789),
    }


def test_a_small_entry_cannot_become_all_our_memory(resources: Resources, sender: Sender) -> None:
    """A compressed body beyond the limit of its decompressed size is dead-lettered, not decompressed."""
    bomb = zstandard.compress(bytes(300 * 1024 * 1024))
    assert len(bomb) < 100_000
    sender.send_raw("logs", 1, envelope(bomb, "msgpack+zstd"))
    drain(resources)
    assert one(resources.engine, dead_letters, job_id=1)["reason"] == "too-large"


def test_unknown_fields_of_json_are_ignored(resources: Resources, sender: Sender) -> None:
    """Unknown fields of a body are not decoded; its known fields are stored."""
    body = json.dumps({"log_type": "stdout", "mine": [[{}]] * 1000, "lines": ["kept"], "ts": [NOW_NS]})
    sender.send_raw("logs", 1, envelope(body.encode(), "json"))
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["kept"]


def test_an_unknown_kind_has_no_stream_of_ours(resources: Resources, sender: Sender) -> None:
    """An entry of an unknown kind is in a stream that no drain reads, and affects no other."""
    sender.client.xadd("ingest:{1}:gradients", {"v": 1})
    sender.send(logs("a"))
    drain(resources)
    assert rows(resources.engine, training_logs, "content") == ["a"]
    assert sender.client.xlen("ingest:{1}:gradients") == 1


def test_the_last_attempt_there_can_be(resources: Resources, sender: Sender) -> None:
    """After the end of attempt 2147483647, messages without an attempt are stored in it."""
    sender.send(completion(), source="last", attempt=2**31 - 1)
    drain(resources, "completions")
    sender.send(logs("after the end of time", ts=NOW_NS + 10**12), source="new", attempt=0)
    assert drain(resources).stored == 1
    assert rows(resources.engine, training_logs, "attempt") == [2**31 - 1]


def test_stored_numbers_stay_numbers(resources: Resources, sender: Sender) -> None:
    """Params and metrics that JSON would read back in another form are not changed by later messages."""
    sender.send(Metrics(name="big", params={"scale": 1e20}, ts=NOW_NS))
    sender.send(completion(final_metrics={"ppl": 1e20}))
    for kind in KINDS:
        drain(resources, kind)
    sender.send(logs("later"))
    sender.send(Metrics(tags={"a": 1}, ts=NOW_NS))
    for kind in KINDS:
        drain(resources, kind)
    job = one(resources.engine, training_jobs, id=1)
    assert (job["params"], job["final_metrics"], job["tags"]) == ({"scale": 1e20}, {"ppl": 1e20}, {"a": 1})


def test_a_stream_of_garbage_does_not_hold_up_the_others(resources: Resources, sender: Sender) -> None:
    """A sweep leaves a stream of invalid entries unchanged and drains the others."""
    for _ in range(200):
        sender.send_raw("checkpoints", 1, {"v": "garbage"})
    sender.send(logs("good"))
    drain_everything(resources)
    assert rows(resources.engine, training_logs, "content") == ["good"]
    assert sender.client.xlen(stream_key("checkpoints", 1)) == 200
