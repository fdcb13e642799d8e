"""`dead-letters show` prints any body, however malformed."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.cli.commands.operations.dead_letters import DeadLetter, shown_entry

FIELDS = {b"v": b"1", b"job": b"42", b"attempt": b"1", b"source": b"s", b"seq": b"3"}
LETTER = DeadLetter(
    id=1,
    stream="ingest:{2}:logs",
    entry_id="1-1",
    kind="logs",
    job_id=42,
    source="s",
    seq=3,
    reason="not-decodable",
    detail="",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
)


def _shown(body: bytes, encoding: bytes = b"msgpack") -> str:
    lines = shown_entry(LETTER, msgspec.msgpack.encode(FIELDS | {b"enc": encoding, b"body": body}))
    return "\n".join(lines).partition("body ")[2]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"\xd4\x05x", "\"Ext(5, b'x')\""),
        (b"\x81\xa1a\xd4\x05x", '{\n "a": "Ext(5, b\'x\')"\n}'),
        (b"\x81\xd4\x05x\x01", repr(b"\x81\xd4\x05x\x01")),
        (b"\xc4\x01\xff", "\"b'\\\\xff'\""),
        (b"\xd6\xff\0\0\0\1", '"1970-01-01T00:00:01+00:00"'),
        (b"\xcb\x7f\xf0\0\0\0\0\0\0", '"Infinity"'),
        (b"\xa1\xff", repr(b"\xa1\xff")),
    ],
)
def test_values_without_a_json_form_are_shown_as_python_writes_them(body: bytes, shown: str) -> None:
    """Extension types, bytes, times and infinities are shown as text, and other bodies as bytes."""
    assert _shown(body) == shown


@given(st.binary(max_size=64), st.sampled_from([b"msgpack", b"json", b"msgpack+zstd", b"json+zstd", b"?"]))
def test_every_body_is_shown(body: bytes, encoding: bytes) -> None:
    """`show` prints a line for any bytes."""
    assert _shown(body, encoding)
