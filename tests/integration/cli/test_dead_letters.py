"""`trainwire dead-letters` on a hostile entry."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import redis
from sqlalchemy import Engine, insert

from tests.integration.cli.conftest import Trainwire
from trainwire.schemas.tables import dead_letters

HOSTILE = "[red]x[/red] \x1b]0;x\x07\x1b[2Jend"
SHOWN = "[red]x[/red] end"


@pytest.fixture
def letter(engine: Engine) -> int:
    """Store one dead letter whose bytes and texts are hostile."""
    fields = {b"v": b"1", b"job": b"42", b"attempt": b"1", b"source": b"s", b"seq": b"3", b"enc": b"json"}
    raw = msgspec.msgpack.encode(fields | {b"body": json.dumps({"lines": HOSTILE, "n": 2}).encode()})
    letter = {
        "stream": "ingest:{2}:logs",
        "entry_id": "1-1",
        "kind": "logs",
        "job_id": 42,
        "source": "s",
        "seq": 3,
        "reason": "wrong-fields",
        "detail": HOSTILE,
        "raw": raw,
        "raw_sha256": b"x",
    }
    with engine.begin() as connection:
        connection.execute(insert(dead_letters), letter)
    return 1


@pytest.mark.usefixtures("letter")
def test_dead_letters_are_listed_and_shown(connected: Trainwire) -> None:
    """`list` shows reason and detail, `show` the content of the entry; neither sends control sequences."""
    listed = connected("dead-letters", "list").out
    assert SHOWN in listed
    assert [row["reason"] for row in json.loads(connected("dead-letters", "list", "--json").out)] == [
        "wrong-fields"
    ]
    shown = connected("dead-letters", "show", "1").out
    assert '"n": 2' in shown
    assert "b'seq' = b'3'" in shown
    assert "\x1b" not in listed + shown


@pytest.mark.usefixtures("letter")
def test_dead_letters_are_replayed(connected: Trainwire, client: redis.Redis) -> None:
    """`replay` appends the unchanged entry to its stream."""
    assert connected("dead-letters", "replay", "1").out == "sent again 1\n"
    entries: Any = client.xrange("ingest:{2}:logs")
    assert [fields[b"seq"] for _id, fields in entries] == [b"3"]
    assert json.loads(connected("dead-letters", "list", "--json").out) == []


@pytest.mark.usefixtures("letter")
def test_dead_letters_are_discarded(connected: Trainwire) -> None:
    """`discard` deletes; an unknown number is an error; without numbers nothing is deleted."""
    assert connected("dead-letters", "discard").code == 1
    assert connected("dead-letters", "discard", "1", "--all").code == 1
    assert "no dead letter 9" in connected("dead-letters", "discard", "9").err
    assert connected("dead-letters", "discard", "--all").out == "discarded 1\n"
    assert connected("dead-letters", "list").out == "no dead letters\n"
    assert connected("dead-letters", "show", "1").code == 1


def test_a_row_that_a_sink_refused_is_not_put_into_a_stream(
    connected: Trainwire, client: redis.Redis, engine: Engine, letter: int
) -> None:
    """`replay` names the command to use for it and keeps it; `--all` replays the others."""
    refused = {"stream": "sink:loki", "entry_id": "42-7", "kind": "logs", "job_id": 42, "seq": 7, "raw": b"x"}
    with engine.begin() as connection:
        words = {"reason": "too-old", "detail": "", "raw_sha256": b"x"}
        connection.execute(insert(dead_letters), refused | words)
    shown = connected("dead-letters", "replay", "2")
    assert shown.code == 1
    assert "`trainwire replay 42 --sink loki --from 7`" in shown.err
    every = connected("dead-letters", "replay", "--all")
    assert every.out == f"sent again {letter}\n"
    assert "because a sink refused them: 1;" in every.err
    assert [row["id"] for row in json.loads(connected("dead-letters", "list", "--json").out)] == [2]
    assert client.keys("sink:*") == []
