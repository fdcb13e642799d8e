"""Log rows packed by Postgres are sent, line for line, as `plan` would send the rows."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.factories import Sender, drain, rows
from tests.twins.loki import Limits, LokiTwin
from trainwire.schemas.tables import dead_letters
from trainwire.schemas.wire.messages import Logs
from trainwire.stores.loki.http import LokiHttp
from trainwire.workers.resources import Resources
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.loki.backlog import LogBacklog, read_rows
from trainwire.workers.sinks.loki.entries import (
    MAX_PUSH_BYTES,
    LogBatch,
    PackedLines,
    can_send_packed,
    entries_of,
    newest_after,
    plan,
)
from trainwire.workers.sinks.loki.sink import REFUSAL_SEARCH_S, LokiSink

MINUTE_NS = 60 * 10**9
ODD_LINES = [
    "",
    'tab\tand "quotes" \\ back',
    "\x1b[31mred\x1b[0m \x00 \x7f",
    "ünï 😀   end",
    "</script>",
    "a\r\nb",
]


def read(resources: Resources, *, most_rows: int = 10_000, most_bytes: int = 2**30) -> LogBatch:
    """Read the waiting rows of job 1."""
    with resources.engine.connect() as connection:
        return LogBacklog(resources.engine, "loki").read(connection, [1], most_rows, most_bytes)[1]


def entries(batch: LogBatch) -> list[list[Any]]:
    """Return the entries of all packs, by number."""
    made = [entry for pack in packs_of(batch) for entry in json.loads(f"[{pack.values}]")]
    return sorted(made, key=lambda entry: int(entry[2]["seq"]))


def packs_of(batch: LogBatch) -> list[PackedLines]:
    """Return the packs of all windows."""
    return [pack for window in batch.windows for pack in window]


def are_plain(batch: LogBatch, now_ns: int) -> bool:
    """Return whether each window can be sent unchanged, after the one before it."""
    newest_ns = batch.newest_ns
    for window in batch.windows:
        if not can_send_packed(window, newest_ns, now_ns):
            return False
        newest_ns = newest_after(window, newest_ns)
    return True


def publish(resources: Resources, sender: Sender, lines: Sequence[str], times: Sequence[int], **more: Any) -> None:
    """Store lines of job 1, of stdout unless `more` names another type."""
    sender.send(Logs(lines=list(lines), ts=list(times), **({"log_type": "stdout"} | more)))
    drain(resources)


def store(resources: Resources, lines: Sequence[tuple[float, str]]) -> None:
    """Have these times and lines, and nothing else, in Postgres as job 1."""
    insert = text(
        "INSERT INTO training_logs (job_id, seq, logged_at, attempt, logged_ns, source, log_type, content) "
        "VALUES (1, :seq, to_timestamp(:ts), 1, 0, 's', 'stdout', :content)"
    )
    with resources.engine.begin() as connection:
        connection.execute(text("TRUNCATE training_logs, delivery_cursors"))
        rows = [{"seq": seq, "ts": ts, "content": content} for seq, (ts, content) in enumerate(lines, 1)]
        connection.execute(insert, rows)


def test_packed_lines_equal_the_entries_of_the_rows(resources: Resources, sender: Sender) -> None:
    """For odd texts, levels and ranks Postgres produces the entries of `entries_of`."""
    now = time.time_ns() - MINUTE_NS
    times = [now + n for n in range(len(ODD_LINES))]
    publish(resources, sender, ODD_LINES, times)
    publish(resources, sender, ODD_LINES, times, log_type="stderr", levels=[*['WA"RN'] * 5, "x" * 99], rank=3)
    batch = read(resources)
    with resources.engine.connect() as connection:
        rows = read_rows(connection, 1, 0, 100, 2**30)
    assert entries(batch) == [list(entry) for row in rows for entry in entries_of(row)]
    assert {pack.log_type for pack in packs_of(batch)} == {"stdout", "stderr"}
    assert are_plain(batch, time.time_ns())


def test_a_time_far_ahead_is_sent_with_a_limit_and_the_trainers_own(resources: Resources, sender: Sender) -> None:
    """A future time is limited to five minutes after the row was stored; the metadata has the trainer's time."""
    now = time.time_ns()
    times = [now, now + 4 * MINUTE_NS, now + 20 * MINUTE_NS, now + 20 * MINUTE_NS + 1, 2**63 - 1]
    publish(resources, sender, ["x"] * 5, times, levels=["INFO"] * 5, rank=1)
    with resources.engine.connect() as connection:
        rows = read_rows(connection, 1, 0, 100, 2**30)
        ask = text("SELECT DISTINCT CAST(extract(epoch FROM created_at) * 1000000 AS bigint) FROM training_logs")
        latest = connection.execute(ask).scalar_one() * 1000 + 5 * MINUTE_NS
    batch = read(resources)
    assert entries(batch) == [list(entry) for row in rows for entry in entries_of(row)]
    assert are_plain(batch, time.time_ns())
    assert [row.ts_ns for row in rows] == [*times[:2], latest + 3, latest + 4, latest + 5]
    assert [row.logged_at for row in rows[:2]] == [None, None]
    assert [row.logged_at for row in rows[2:]] == [f"{rfc3339_us(ts)}{ts % 1000:03d}Z" for ts in times[2:]]


def rfc3339_us(ts_ns: int) -> str:
    """Return a time to the microsecond."""
    at = datetime(1970, 1, 1) + timedelta(microseconds=ts_ns // 1000)
    return at.isoformat(timespec="microseconds")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_the_packing(resources: Resources, lines: list[str]) -> None:
    """Any text that Postgres stores survives the conversion to JSON."""
    lines = [line.replace("\0", "␀") for line in lines]
    store(resources, [(time.time(), line) for line in lines])
    assert [line for _, line, _ in entries(read(resources))] == lines


def test_a_pack_is_no_larger_than_a_push_may_be(resources: Resources, sender: Sender) -> None:
    """Ten megabytes of lines are several packs in order, none above the limit."""
    now = time.time_ns() - MINUTE_NS
    publish(resources, sender, ["x" * 100_000] * 100, range(now, now + 100))
    packs = packs_of(read(resources))
    assert all(len(pack.values) <= MAX_PUSH_BYTES for pack in packs)
    assert 5 <= len(packs) <= 7
    assert [pack.last_seq for pack in packs] == sorted(pack.last_seq for pack in packs)


def test_bytes_and_rows_bound_a_batch(resources: Resources, sender: Sender) -> None:
    """A batch has limits of rows and bytes, and at least one row."""
    now = time.time_ns() - MINUTE_NS
    publish(resources, sender, ["x" * 1000] * 10, range(now, now + 10))
    assert len(entries(read(resources, most_rows=3))) == 3
    assert len(entries(read(resources, most_bytes=3000))) == 3
    assert len(entries(read(resources, most_bytes=1))) == 1


def test_one_read_brings_many_windows_of_a_stream(resources: Resources, sender: Sender) -> None:
    """The lines of a job, one in ten minutes, are read at once and sent unchanged, in windows."""
    now = time.time_ns()
    publish(resources, sender, [f"{n}" for n in range(30)], [now - (30 - n) * 10 * MINUTE_NS for n in range(30)])
    batch = read(resources)
    assert len(entries(batch)) == 30
    assert 6 <= len(batch.windows) <= 7
    assert all(sum(len(json.loads(f"[{pack.values}]")) for pack in window) <= 5 for window in batch.windows)
    assert are_plain(batch, now)


def test_ranks_whose_clocks_differ_are_plain_in_every_window(resources: Resources, sender: Sender) -> None:
    """All windows of two ranks can be sent unchanged, though one rank's clock is two minutes behind."""
    now = time.time_ns()
    times = [now - (300 - n + 2 * rank) * MINUTE_NS for n in range(300) for rank in (0, 1)]
    publish(resources, sender, ["x"] * 600, times)
    batch = read(resources)
    assert len(batch.windows) >= 6
    assert are_plain(batch, now)


def test_reading_ahead_begins_where_the_batch_ends(resources: Resources, sender: Sender) -> None:
    """Consecutive batches are the rows in order, and empty after the last row."""
    now = time.time_ns()
    publish(resources, sender, [f"{n}" for n in range(30)], [now - (30 - n) * 10 * MINUTE_NS for n in range(30)])
    backlog = LogBacklog(resources.engine, "loki")
    found, batch = list[str](), read(resources, most_rows=12)
    with resources.engine.connect() as connection:
        while True:
            found += [line for _, line, _ in entries(batch)]
            if not batch.is_followed:
                break
            assert are_plain(batch, now)
            batch = backlog.read_on(connection, {1: batch}, 12, 2**30)[1]
    assert found == [f"{n}" for n in range(30)]


@pytest.mark.parametrize(
    ("lines", "offset_minutes", "why"),
    [
        (["late"], -100, "later than the stream's window"),
        (["old"], -8 * 24 * 60, "older than Loki takes"),
        (["x" * 300_000], -1, "too long for one entry"),
    ],
)
def test_odd_rows_are_read_as_rows(
    resources: Resources, sender: Sender, lines: list[str], offset_minutes: int, why: str
) -> None:
    """If one row among plain ones is odd, the sink reads the rows instead of the pack, and gets the same ones."""
    now = time.time_ns()
    publish(resources, sender, ["before"], [now - MINUTE_NS])
    publish(resources, sender, lines, [now + offset_minutes * MINUTE_NS])
    publish(resources, sender, ["after"], [now - MINUTE_NS])
    batch = read(resources)
    assert not are_plain(batch, now), why
    assert [row.seq for row in batch.read_rows(0, 3)] == [1, 2, 3]
    assert [row.seq for row in batch.read_rows(1, 2)] == [2]


@given(st.lists(st.integers(-150, 15), min_size=1, max_size=12), st.integers(-200, 5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packs_and_rows_have_the_same_plan(resources: Resources, offsets: list[int], newest: int) -> None:
    """For any times, packs that pass `can_send_packed` have rows that `plan` puts, unchanged, into one stream."""
    now = time.time_ns() // 1000 * 1000
    store(resources, [((now + offset * MINUTE_NS) / 1e9, "x") for offset in offsets])
    with resources.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO delivery_cursors (sink, job_id, state) VALUES ('loki', 1, CAST(:newest AS jsonb))"),
            {"newest": json.dumps({"stdout": now + newest * MINUTE_NS})},
        )
    batch = read(resources)
    confirmed, newest_ns = 0, batch.newest_ns
    for window in batch.windows:
        sent = window[-1].last_seq
        made = plan(batch.read_rows(confirmed, sent), newest_ns, now)
        if not can_send_packed(window, newest_ns, now):
            break
        assert (made.confirmed_seq, made.refused, set(made.pushes)) == (sent, [], {("stdout", None)})
        confirmed, newest_ns = sent, newest_after(window, newest_ns)
        assert newest_ns == made.newest_ns


def test_the_refused_line_of_a_pack_is_found(resources: Resources, sender: Sender) -> None:
    """A line that Loki refuses unexpectedly is a dead letter; the others of its pack arrive once."""
    now = time.time_ns() - MINUTE_NS
    lines = [f"line {n}" if n != 17 else "x" * 2000 for n in range(50)]
    publish(resources, sender, lines, range(now, now + 50))
    with LokiTwin(limits=Limits(max_line_bytes=1000)) as loki:
        backlog = LogBacklog(resources.engine, "loki")
        Delivery(resources.engine, backlog, LokiSink(LokiHttp(loki.url)), slice_s=60).run()
        assert [line.line for line in loki.lines(1)] == [line for line in lines if line != "x" * 2000]
    assert rows(resources.engine, dead_letters, "stream", "seq", "kind") == [("sink:loki", 18, "logs")]


def test_a_loki_that_refuses_every_line_gets_the_time_of_a_turn(resources: Resources, sender: Sender) -> None:
    """A search for refused lines that runs out of time continues in the next turn; each is refused once."""
    now = time.time_ns() - MINUTE_NS
    publish(resources, sender, ["x" * 20] * 32, range(now, now + 32))
    ticks = iter(range(10**6))
    with LokiTwin(limits=Limits(max_line_bytes=10)) as loki, resources.engine.begin() as connection:
        sink = LokiSink(LokiHttp(loki.url), clock=lambda: float(next(ticks)))
        backlog = LogBacklog(resources.engine, "loki")
        confirmed, refused, turns = 0, list[int](), 0
        while confirmed < 32:
            (delivered,) = sink.deliver(1, backlog.read(connection, [1], 1000, 2**30)[1])
            assert confirmed < delivered.confirmed_seq <= confirmed + REFUSAL_SEARCH_S + 1
            confirmed, turns = delivered.confirmed_seq, turns + 1
            refused += [refusal.seq for refusal in delivered.refused]
            backlog.confirm(connection, {1: delivered})
    assert refused == list(range(1, 33))
    assert turns > 5


def test_deleted_rows_are_not_waited_for(resources: Resources, sender: Sender) -> None:
    """A job whose last rows were deleted does not stay behind, and later rows are delivered."""
    now = time.time_ns() - MINUTE_NS
    publish(resources, sender, ["a", "b"], [now, now + 1])
    with resources.engine.begin() as connection:
        connection.execute(text("DELETE FROM training_logs"))
    with LokiTwin() as loki:
        backlog = LogBacklog(resources.engine, "loki")
        delivery = Delivery(resources.engine, backlog, LokiSink(LokiHttp(loki.url)), slice_s=60)
        assert not delivery.run().more
        with resources.engine.connect() as connection:
            assert backlog.jobs_behind(connection, 10) == []
        publish(resources, sender, ["c"], [now + 2])
        delivery.run()
        assert [line.line for line in loki.lines(1)] == ["c"]
