"""Bytes from outside that cannot be decoded are an answer of the function that reads them, never a crash."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import requests
import zstandard

from tests.unit.test_decoders import MODULES, source_of
from trainwire.ingest.spool.segments import Record, Segments, framed
from trainwire.schemas.events import decode_event, decode_events
from trainwire.schemas.metric_download import WrongBlock, decode_frame
from trainwire.schemas.wire.stop_requests import read_stop
from trainwire.schemas.wire.validation import InvalidMessage
from trainwire.stores.mlflow.http import MlflowApi, MlflowUnavailable
from trainwire.workers.sinks.jsonl.files import read_lines

DEEP = 100_000
READ_ELSEWHERE = {"schemas/decode_errors.py", "workers/drain/decoding.py"}
"""The constant itself, and the drain, which takes every error of its decoders for a wrong entry."""
JSON = {
    "no JSON": b"{",
    "no UTF-8": b'{"x":"\xff"}',
    "nested": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
}
MSGPACK = {
    "truncated": b"\x81",
    "no UTF-8": b"\x81\xa1\xff\x01",
    "nested": b"\x81\xa1x" + b"\x91" * DEEP + b"\xc0",
}
WRONG_TEXT = b"\x94\x02\x01\xa1\xff\xc4\x00"
"""A record of the spool whose encoding is not UTF-8."""


@pytest.mark.parametrize("data", JSON.values(), ids=JSON)
def test_a_wrong_event_is_an_invalid_message(data: bytes) -> None:
    """One event or several: whatever is wrong with the bytes, the error is `InvalidMessage`."""
    for decode in (decode_event, decode_events):
        with pytest.raises(InvalidMessage):
            decode(b'{"type":"training_deleted",' + data[1:])
        with pytest.raises(InvalidMessage):
            decode(data)


@pytest.mark.parametrize("data", JSON.values(), ids=JSON)
def test_a_wrong_request_to_stop_is_none(data: bytes) -> None:
    """A request to stop that cannot be decoded does not end the trainer's thread that reads it."""
    assert read_stop(data) is None


@pytest.mark.parametrize("data", MSGPACK.values(), ids=MSGPACK)
def test_a_wrong_block_of_metrics_is_reported(data: bytes) -> None:
    """A block of metrics that cannot be decoded is a `WrongBlock`."""
    with pytest.raises(WrongBlock):
        decode_frame(zstandard.compress(data))


@pytest.mark.parametrize(
    "data", [*MSGPACK.values(), b"\x94\x02\x01\xa1\xff\xc4\x00"], ids=[*MSGPACK, "wrong text"]
)
def test_a_wrong_record_of_the_spool_is_left_out(data: bytes, tmp_path: Path) -> None:
    """A record with a right checksum and wrong content is damage; the messages around it are read."""
    good = msgspec.msgpack.encode(Record(1, 1, "msgpack", b"x"))
    nested = b"\x95" + good[1:] + b"\x91" * DEEP + b"\xc0"
    (tmp_path / f"logs-{1:020d}.seg").write_bytes(framed(good) + framed(data) + framed(nested))
    segments = Segments(tmp_path, "logs")
    assert [record.seq for record in segments.read(1)] == [1]


@pytest.mark.parametrize("data", JSON.values(), ids=JSON)
def test_a_wrong_line_of_a_jsonl_file_has_no_number(data: bytes, tmp_path: Path) -> None:
    """A line of another program between ours is passed over, not the end of the delivery."""
    (tmp_path / "2026-11-30.jsonl").write_bytes(b'{"seq":1}\n' + data + b'\n{"seq":2}\n')
    assert [seq for seq, _ in read_lines(tmp_path)] == [1, None, 2]


@pytest.mark.parametrize("data", JSON.values(), ids=JSON)
def test_a_wrong_answer_of_mlflow_is_unavailable(data: bytes) -> None:
    """An answer of MLflow, or of a proxy before it, that is no JSON is retried later."""
    answer = requests.Response()
    answer.status_code, answer.raw = 200, None
    answer._content = data
    with pytest.raises(MlflowUnavailable):
        MlflowApi(lambda *_arguments, **_options: answer).get("runs/get")


def test_errors_of_decoders_have_one_list() -> None:
    """No module lists the errors of msgspec's decoders itself, so none can forget one of them."""
    found = {str(module): [*caught_of_msgspec(source_of(module))] for module in MODULES}
    assert {module for module, errors in found.items() if errors} <= READ_ELSEWHERE


def test_such_a_list_is_found() -> None:
    """The check above finds an `except` and a `suppress` with an error of msgspec."""
    assert list(caught_of_msgspec("try: pass\nexcept (OSError, msgspec.DecodeError): pass")) == ["DecodeError"]
    assert list(caught_of_msgspec("with suppress(msgspec.MsgspecError): pass")) == ["MsgspecError"]


def caught_of_msgspec(source: str) -> Iterator[str]:
    """Yield the names of msgspec's general errors in a module; a `ValidationError` alone is a decision."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("DecodeError", "MsgspecError"):
            yield node.attr
