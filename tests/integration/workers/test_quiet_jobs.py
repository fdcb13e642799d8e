"""Jobs that send little beside one that fills their stream, with valid messages or with garbage."""

from __future__ import annotations

import random
import time

import pytest
import zstandard
from sqlalchemy import text

from tests.factories import Sender, logs, rows
from trainwire.schemas.keys import HALTED_KEY, ahead_key, stream_key
from trainwire.schemas.tables import dead_letters, training_logs
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Message
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.errors import MostlyInvalid, RowsLocked
from trainwire.workers.resources import Resources

STREAM = stream_key("logs", 1)
GARBAGE = {"v": 1, "job": 9, "attempt": 1, "source": "s", "enc": "x", "body": "y"}


def drained_once(resources: Resources) -> None:
    """Drain one small batch."""
    small = resources.settings.model_copy(update={"drain_batch_bytes": 4096})
    ticks = iter(range(0, 10**6, 100))
    Drain(resources.engine, IngestStream(resources.streams, "logs", 1), small, clock=lambda: next(ticks)).run()


def test_a_quiet_job_goes_before_a_backlog(resources: Resources, sender: Sender) -> None:
    """The lines of a quiet job, behind 500 messages of another, are stored with the first batch."""
    for number in range(500):
        sender.send(logs(f"flood {number} " + "x" * 300))
        if number % 100 == 99:
            sender.send(logs(f"quiet {number}"), job=5)
    drained_once(resources)
    quiet = text("SELECT content FROM training_logs WHERE job_id = 5 ORDER BY seq")
    with resources.engine.connect() as connection:
        assert list(connection.execute(quiet).scalars()) == [f"quiet {n}" for n in range(99, 500, 100)]
    assert len(rows(resources.engine, training_logs, "seq")) < 100
    assert sender.client.exists(ahead_key(STREAM))


def test_no_source_changes_its_order(resources: Resources, sender: Sender) -> None:
    """Of sources that flood in turn each line is stored once, in the source's order, without a gap."""
    chance = random.Random(7)
    sources = [(4 * n + 1, name) for n in range(6) for name in "ab"]
    sent: dict[tuple[int, str], list[str]] = {source: [] for source in sources}
    for turn in range(60):
        flooding = chance.choice(sources)
        for _ in range(chance.randrange(60)):
            job, name = source = flooding if chance.random() < 0.9 else chance.choice(sources)
            line = f"{name} {turn}: {len(sent[source])}"
            sent[source].append(line)
            body = logs(line + "x" * chance.randrange(400))
            entry = encode_entry(Message("logs", job, 1, name, len(sent[source]), body))
            sender.send_raw("logs", job, {**entry, "job": "0" * chance.randrange(3) + str(job)})
        drained_once(resources)
    while sender.client.xlen(STREAM):
        drained_once(resources)
    stored: dict[tuple[int, str], list[str]] = {source: [] for source in sources}
    for job, content in rows(resources.engine, training_logs, "job_id", "content"):
        stored[job, content[0]].append(content.rstrip("x"))
    assert stored == sent
    with resources.engine.connect() as connection:
        holes = text("SELECT count(*) FROM source_positions WHERE missing <> '[]'")
        assert connection.execute(holes).scalar_one() == 0


def test_garbage_of_one_job_holds_up_no_other(resources: Resources, sender: Sender) -> None:
    """In a stream halted by garbage, valid messages of other jobs are stored and acknowledged."""
    for seq in range(1, 301):
        sender.send_raw("logs", 9, GARBAGE | {"seq": seq})
        if seq % 100 == 50:
            sender.send(logs(f"good {seq}"), job=5)
    for expected in (["good 50", "good 150", "good 250"], ["good 50", "good 150", "good 250", "later"]):
        with pytest.raises(MostlyInvalid):
            Drain(resources.engine, IngestStream(sender.client, "logs", 1), resources.settings).run()
        assert rows(resources.engine, training_logs, "content") == expected
        sender.send(logs("later"), job=5, seq=4)
    assert rows(resources.engine, dead_letters, "id", order=["id"]) == []
    assert sender.client.hget("ingest:acks:5", "0-test:logs") == b"4"
    assert sender.client.xlen(STREAM) == 302, "the last that was taken marks the place, and one was not looked at"


NAMED = [4 * number + 1 for number in range(20)]


@pytest.mark.parametrize(
    "garbage",
    [
        [{"job": NAMED[number % 20]} for number in range(2000)],
        [GARBAGE | {"job": NAMED[number % 20], "source": f"h{number}", "seq": 1} for number in range(300)],
        [GARBAGE | {"job": 1, "source": f"h{number}", "seq": 1} for number in range(1500)],
        [GARBAGE | {"job": 1, "source": "s" * 201, "seq": number + 1} for number in range(300)],
    ],
    ids=["one field", "20 jobs", "1,500 sources", "no valid source"],
)
def test_garbage_in_the_name_of_jobs_does_not_stop_them(
    resources: Resources, sender: Sender, garbage: list[dict[str, object]]
) -> None:
    """While their stream is halted the messages of the jobs that the garbage names are stored and acknowledged."""
    for fields in garbage:
        sender.send_raw("logs", 1, fields)
    began = time.process_time()
    for turn in range(2):
        for job in NAMED:
            sender.send(logs(f"{turn} {job}"), job=job)
        with pytest.raises(MostlyInvalid):
            Drain(resources.engine, IngestStream(sender.client, "logs", 1), resources.settings).run()
        for job in NAMED:
            assert sender.client.hget(f"ingest:acks:{job}", "0-test:logs") == str(turn + 1).encode()
    assert time.process_time() - began < 15
    assert len(rows(resources.engine, training_logs, "seq")) == 40
    assert rows(resources.engine, dead_letters, "id", order=["id"]) == []
    assert sender.client.xlen(STREAM) == len(garbage) + 1, "the last one that was taken marks the place"


def test_numbers_that_cannot_be_do_not_stop_others_in_a_halted_stream(
    resources: Resources, sender: Sender
) -> None:
    """In a halted stream 200 messages of a source with jumping numbers are left; others are stored."""
    for seq in range(1, 201):
        sender.send_raw("logs", 9, GARBAGE | {"seq": seq})
    for number in range(200):
        sender.send(logs("far"), job=13, seq=5 * 10**9 * (number + 1))
    sender.send(logs("good"), job=5)
    with pytest.raises(MostlyInvalid):
        Drain(resources.engine, IngestStream(sender.client, "logs", 1), resources.settings).run()
    assert rows(resources.engine, training_logs, "content") == ["good"]
    assert sender.client.hexists(HALTED_KEY, STREAM)


def test_much_of_one_source_is_stored_in_a_halted_stream(resources: Resources, sender: Sender) -> None:
    """More entries of a source than one read-ahead are stored in order, also with other spellings of `job`."""
    for seq in range(1, 3001):
        sender.send_raw("logs", 9, GARBAGE | {"seq": seq})
    content = [f"{number} " + random.Random(number).randbytes(1500).hex() for number in range(400)]
    for number, line in enumerate(content):
        entry = encode_entry(Message("logs", 5, 1, "0-test", number + 1, logs(line)))
        sender.send_raw("logs", 5, {**entry, "job": random.Random(number).choice(["5", "05", "005"])})
        sender.send_raw("logs", 5, GARBAGE | {"job": ("+5", " 5")[number % 2], "source": "0-test"})
    with pytest.raises(MostlyInvalid):
        Drain(resources.engine, IngestStream(sender.client, "logs", 1), resources.settings).run()
    assert rows(resources.engine, training_logs, "content") == content


def test_large_invalid_entries_ahead_do_not_stop_others(resources: Resources, sender: Sender) -> None:
    """Behind invalid entries of nine sources, each of which fills a batch, valid entries are stored."""
    for seq in range(1, 301):
        sender.send_raw("logs", 9, GARBAGE | {"seq": seq})
    large = GARBAGE | {"seq": 1, "enc": "json+zstd", "body": zstandard.compress(b"x" * 2_000_000)}
    for number in range(9):
        sender.send_raw("logs", 9, large | {"source": f"large-{number}"})
    sender.send(logs("good"), job=5)
    for _ in range(2):
        with pytest.raises(MostlyInvalid):
            Drain(resources.engine, IngestStream(sender.client, "logs", 1), resources.settings).run()
        assert "good" in rows(resources.engine, training_logs, "content")
        sender.send_raw("logs", 9, large | {"seq": 2, "source": "large-0"})
        sender.send(logs("later"), job=5)
    assert rows(resources.engine, training_logs, "content") == ["good", "later"]


@pytest.mark.parametrize("jam", ["18446744073709551615-18446744073709551615", "18446744073709551615-0"])
def test_a_jam_and_its_repair_do_not_end_the_look(resources: Resources, sender: Sender, jam: str) -> None:
    """Behind garbage, valid messages are stored before a jam, and after its repair."""
    stream = IngestStream(resources.streams, "logs", 1)

    def drained() -> list[str]:
        with pytest.raises(MostlyInvalid):
            Drain(resources.engine, stream, resources.settings).run()
        return rows(resources.engine, training_logs, "content")

    for seq in range(1, 301):
        sender.send_raw("logs", 9, GARBAGE | {"seq": seq})
    sender.send(logs("before"), job=5)
    sender.send_raw("logs", 9, GARBAGE | {"seq": 301}, jam)
    assert drained() == ["before"]
    resources.streams.delete(STREAM)
    for seq in range(302, 602):
        sender.send_raw("logs", 9, GARBAGE | {"seq": seq})
    sender.send(logs("after"), job=5)
    assert drained() == ["before", "after"]
    sender.send(logs("later"), job=5)
    assert drained() == ["before", "after", "later"]


def test_a_locked_job_holds_up_no_other(resources: Resources, sender: Sender) -> None:
    """While a session has locked the row of a job, messages of other jobs are stored, and then its own."""
    sender.send(logs("first"))
    drained_once(resources)
    for number in range(3):
        sender.send(logs(f"locked {number}"))
        sender.send(logs(f"other {number}"), job=5)
    stream = IngestStream(resources.streams, "logs", 1)
    began = time.monotonic()
    with resources.engine.begin() as session:
        session.execute(text("SELECT FROM training_jobs WHERE id = 1 FOR UPDATE"))
        for _ in range(2):
            with pytest.raises(RowsLocked, match=r"wait for another session: 1$"):
                Drain(resources.engine, stream, resources.settings).run()
        assert rows(resources.engine, training_logs, "content", order=["job_id", "seq"]) == [
            *("first", "other 0", "other 1", "other 2")
        ]
        sender.send(logs("locked 3"))
    assert time.monotonic() - began < resources.settings.drain_slice_s, "no drain waits or searches for long"
    while sender.client.xlen(STREAM):
        Drain(resources.engine, stream, resources.settings).run()
    stored = rows(resources.engine, training_logs, "content", order=["job_id", "seq"])
    assert stored == ["first", *(f"locked {n}" for n in range(4)), *(f"other {n}" for n in range(3))]
