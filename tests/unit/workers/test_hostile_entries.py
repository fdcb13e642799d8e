"""Entries of a few bytes that would take gigabytes are rejected before they are built, with the reason."""

from __future__ import annotations

import pytest
import zstandard

from benchmarks.drains import hostile
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.messages import Message
from trainwire.workers.drain import poison_entries
from trainwire.workers.drain.decoding import RawEntry, Rejected, decode, memory_bytes
from trainwire.workers.drain.poison_entries import find_poison_entry

CASES = {name: (kind, encoding, body) for name, kind, encoding, body in hostile.cases()}
REFUSED = {
    "15,000,000 empty maps": ("wrong-fields", "Expected `object`, got `array`"),
    "params of 1,000,000 empty lists": ("too-large", "params: more than the 100,000 elements"),
    "error_message of 30 MB": ("too-large", "error_message: 30,000,000 characters, at most 65,536"),
    "checkpoint_path of 30 MB": ("too-large", "30,000,034 bytes, at most 8,388,608"),
    "1,000,000 points of nothing": ("too-large", "points: 1,000,000 items, at most 100,000"),
    "1,000,000 empty lines": ("too-large", "lines: 1,000,000 items, at most 100,000"),
    "nested 1,000,000 deep": ("undecodable", "recursion"),
    "300 MB of zeros": ("too-large", "33,554,432 bytes"),
    "40 MB without compression": ("too-large", "body: 40,000,034 bytes, at most 33,554,432"),
    "JSON, 10,000,000 maps": ("too-large", "params: 30,000,010 bytes, at most 1,048,576"),
    "JSON, an int of 10,000,000 digits": ("wrong-fields", "out of range"),
}
MEMORY_BYTES = 300 * 1024**2


def entry_of(encoding: str, body: bytes) -> RawEntry:
    """Return the entry with its fields as Redis returns them."""
    body = zstandard.compress(body, 3) if encoding.endswith("+zstd") else body
    fields = {"v": "1", "job": "1", "attempt": "1", "source": "s", "seq": "1", "enc": encoding}
    return RawEntry("1-1", {name.encode(): value.encode() for name, value in fields.items()} | {b"body": body})


@pytest.mark.parametrize("name", CASES)
def test_any_entry_takes_little_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process with 300 MB of its own decodes it, or refuses it."""
    monkeypatch.setattr(poison_entries, "CHILD_MEMORY_BYTES", MEMORY_BYTES)
    kind, encoding, body = CASES[name]
    assert find_poison_entry(kind, [entry_of(encoding, body)]) is None


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_the_value_and_the_limit(name: str) -> None:
    """The reason is stable, and the detail names the part, its size and the limit; other entries are messages."""
    kind, encoding, body = CASES[name]
    content, plain_bytes = decode(kind, entry_of(encoding, body))
    if name not in REFUSED:
        assert isinstance(content, Message)
        return
    reason, said = REFUSED[name]
    assert isinstance(content, Rejected)
    assert content.reason == reason
    assert said in content.detail
    assert memory_bytes(content, plain_bytes) >= min(len(body), 32 * 1024**2)


@pytest.mark.parametrize(
    ("name", "least_bytes"),
    [
        ("params of 99,000 empty lists", 99_000 * 64),
        ("100,000 points of nothing", 100_000 * 200),
        ("two lines of 15 MB, an emoji in each", 4 * 2 * 15_000_000),
        ("100,000 empty lines", 100_000 * 40),
    ],
)
def test_a_message_counts_with_its_memory(name: str, least_bytes: int) -> None:
    """The batch counts the memory of a message, not its bytes on the wire."""
    kind: Kind
    kind, encoding, body = CASES[name]
    assert memory_bytes(*decode(kind, entry_of(encoding, body))) >= least_bytes


def test_entries_that_weigh_nothing_count() -> None:
    """The size of an entry without values counts the memory that Python takes for its fields."""
    assert RawEntry("1-1", {b"a": b""}).held_bytes >= 100
    assert RawEntry("1-1", {b"%d" % n: b"" for n in range(1000)}).held_bytes >= 90_000
