"""Delivery of a backlog of a day: many windows in a turn, each confirmed before the next is sent."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from tests.factories import rows
from tests.twins.loki import Fault, Limits, LokiTwin
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.tables import dead_letters
from trainwire.stores.loki.http import LokiHttp
from trainwire.workers.resources import Resources
from trainwire.workers.sinks import deliver as delivery_module
from trainwire.workers.sinks.base import RefusedRow, SinkUnavailable
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.loki.backlog import LogBacklog
from trainwire.workers.sinks.loki.entries import DeliveredLines, LogBatch
from trainwire.workers.sinks.loki.sink import LokiSink

MINUTE_NS = 60 * 10**9
DAY = range(-24 * 60, 0)
"""The minutes of a day until now."""


class Crash(BaseException):
    """Simulates the death of the worker; no code catches it."""


class CrashingBacklog(LogBacklog):
    """Crashes between the push and the commit while `crashes` is set."""

    crashes: Iterator[bool] = iter(())

    def confirm(self, connection: Connection, delivered: Mapping[int, DeliveredLines]) -> None:
        """Commit the cursors, or crash before."""
        if next(self.crashes, False):
            raise Crash
        super().confirm(connection, delivered)


def store(
    resources: Resources, job: int, minutes: Sequence[float], now_ns: int, log_types: str = "o"
) -> list[str]:
    """Store a job's lines with times of these minutes from now, replacing all of its rows; return them."""
    insert = text(
        "INSERT INTO training_logs (job_id, seq, logged_at, attempt, logged_ns, source, log_type, content) "
        "VALUES (:job, :seq, to_timestamp(:ts), 1, 0, 's', :log_type, :content)"
    )
    lines = [f"job {job} line {seq}" for seq in range(1, len(minutes) + 1)]
    values = [
        {
            "job": job,
            "seq": seq,
            "ts": (now_ns // 1000 + minute * 60 * 10**6) / 10**6,
            "log_type": {"o": "stdout", "e": "stderr"}[log_types[seq % len(log_types)]],
            "content": line,
        }
        for seq, (minute, line) in enumerate(zip(minutes, lines, strict=True), 1)
    ]
    with resources.engine.begin() as connection:
        for table in ("training_logs", "delivery_cursors"):
            connection.execute(text(f"DELETE FROM {table} WHERE job_id = :job"), {"job": job})
        connection.execute(text("DELETE FROM training_jobs WHERE id = :job"), {"job": job})
        connection.execute(
            text("INSERT INTO training_jobs (id, last_log_seq) VALUES (:job, :seq)"),
            {"job": job, "seq": len(lines)},
        )
        connection.execute(insert, values)
    return lines


def deliver(resources: Resources, loki: LokiTwin, crashes: Sequence[bool] = ()) -> int:
    """Deliver like workers, again after each crash; return the number of crashes."""
    crashed, crashing = 0, iter(crashes)
    while True:
        backlog = CrashingBacklog(resources.engine, "loki")
        backlog.crashes = crashing
        sink = LokiSink(LokiHttp(loki.url))
        try:
            Delivery(resources.engine, backlog, sink, slice_s=60, backoff=Backoff(first_s=0, cap_s=0)).run()
        except Crash:
            crashed += 1
        else:
            return crashed


def test_a_day_is_caught_up_in_order_and_each_line_once(resources: Resources) -> None:
    """A day's lines of three jobs are in each job's own stream in order, and no line is sent twice."""
    now = time.time_ns()
    said = {job: store(resources, job, DAY, now) for job in (1, 2, 3)}
    with LokiTwin() as loki:
        deliver(resources, loki)
        for job, lines in said.items():
            found = [(line.line, "late" in line.labels) for line in loki.lines(job)]
            assert found == [(line, False) for line in lines]
        stats = loki.stats()
    assert (stats["duplicates"], stats["refused"]) == (0, 0)
    assert stats["pushes"] <= 3 * (24 * 60 / 50 + 5)


def test_a_worker_that_dies_before_every_other_commit_of_a_day(resources: Resources) -> None:
    """Pushed but unconfirmed lines are sent again unchanged; Loki has them already, and refuses none."""
    now = time.time_ns()
    said = {job: store(resources, job, DAY, now) for job in (1, 2, 3)}
    with LokiTwin() as loki:
        crashed = deliver(resources, loki, [False, True] * 20)
        for job, lines in said.items():
            assert [line.line for line in loki.lines(job)] == lines
        stats = loki.stats()
    assert crashed >= 10
    assert stats["duplicates"] > 0
    assert stats["refused"] == 0


@given(
    st.lists(st.integers(-400, 5), min_size=1, max_size=60),
    st.booleans(),
    st.sampled_from(["o", "oe", "ooe"]),
    st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_with_any_times_loki_refuses_nothing_and_has_each_line_once(
    resources: Resources, minutes: list[int], is_sorted: bool, log_types: str, seed: int
) -> None:
    """Lines with any times are stored once each, though workers die between push and commit."""
    chance = random.Random(seed)
    said = store(resources, 1, sorted(minutes) if is_sorted else minutes, time.time_ns(), log_types)
    with LokiTwin() as loki:
        deliver(resources, loki, [chance.random() < 0.4 for _ in range(30)])
        assert Counter(line.line for line in loki.lines(1)) == Counter(said)
        assert loki.stats()["refused"] == 0


@pytest.mark.parametrize("seq", [100, 730, 777])
def test_a_batch_read_ahead_is_read_again_after_a_refusal(
    resources: Resources, monkeypatch: pytest.MonkeyPatch, seq: int
) -> None:
    """One refused line in a day of many reads does not affect the others, which arrive in order."""
    monkeypatch.setattr(delivery_module, "CHUNK_ROWS", 100)
    said = store(resources, 1, DAY, time.time_ns())
    with resources.engine.begin() as connection:
        too_long = text("UPDATE training_logs SET content = repeat('x', 2000) WHERE seq = :seq")
        connection.execute(too_long, {"seq": seq})
    with LokiTwin(limits=Limits(max_line_bytes=1000)) as loki:
        deliver(resources, loki)
        assert [line.line for line in loki.lines(1)] == said[: seq - 1] + said[seq:]
    assert rows(resources.engine, dead_letters, "stream", "seq") == [("sink:loki", seq)]


class PartsSink:
    """Takes each batch in two parts, and refuses row 5 in the first one, although it sends the second one."""

    name = "loki"

    def __init__(self) -> None:
        self.read_with: list[Mapping[str, int]] = []
        self.reported: list[Mapping[str, int]] = [{}]

    def deliver(self, _job_id: int, batch: LogBatch) -> Iterator[DeliveredLines]:
        """Record the newest times with which the batch was read, and those that the sink has reported."""
        self.read_with.append(batch.newest_ns)
        found = batch.read_rows(batch.confirmed_seq, batch.windows[-1][-1].last_seq)
        newest = dict(batch.newest_ns)
        for number, part in enumerate((found[:10], found[10:])):
            refused = [RefusedRow(row.seq, row.source, "refused", "") for row in part if row.seq == 5]
            for row in part:
                if row.seq != 5:
                    newest[row.log_type] = max(newest.get(row.log_type, 0), row.ts_ns)
            if number:  # nobody asks for more after the last part
                self.reported.append(newest)
            yield DeliveredLines(part[-1].seq, refused, more=number == 0, newest_ns=dict(newest))


def test_a_refusal_in_an_earlier_part_is_not_forgotten(
    resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were read ahead are read again if a row was refused, whichever part of the batch before had it."""
    monkeypatch.setattr(delivery_module, "CHUNK_ROWS", 100)
    minutes = [float(minute) for minute in DAY[:300]]
    minutes[4] = -1  # the newest of all, and not stored
    store(resources, 1, minutes, time.time_ns())
    sink = PartsSink()
    Delivery(resources.engine, LogBacklog(resources.engine, "loki"), sink, slice_s=60).run()
    assert len(sink.read_with) >= 3
    assert sink.read_with == sink.reported[:-1]


@pytest.mark.parametrize("ahead", [4, 9, 30, 60 * 24 * 365 * 5])  # minutes
@pytest.mark.parametrize("seq", [100, 730, 777])
def test_a_line_from_the_future_is_delivered_and_costs_no_other(
    resources: Resources, monkeypatch: pytest.MonkeyPatch, seq: int, ahead: int
) -> None:
    """If one line of a day is minutes or years ahead, all lines are in Loki once, also those read ahead."""
    monkeypatch.setattr(delivery_module, "CHUNK_ROWS", 100)
    minutes = [*DAY]
    minutes[seq - 1] = ahead
    said = store(resources, 1, minutes, time.time_ns())
    with LokiTwin() as loki:
        deliver(resources, loki, [False, True] * 20)
        assert Counter(line.line for line in loki.lines(1)) == Counter(said)
        assert loki.stats()["refused"] == 0
    assert rows(resources.engine, dead_letters, "reason", "seq") == []


AHEAD = {
    "20 minutes": [20 + n / 1000 for n in range(300)],
    "drifting beyond the limit": [4.9 + n / 1000 for n in range(300)],
    "years": [60 * 24 * 365 * 40 + n for n in range(300)],
    "one rank of two": [n / 1000 - 1 + 20 * (n % 2) for n in range(300)],
    "set right after a while": [*(20 + n / 1000 for n in range(150)), *(n / 1000 - 1 for n in range(150))],
}


@pytest.mark.parametrize("minutes", AHEAD.values(), ids=AHEAD)
def test_a_clock_ahead_keeps_the_order_of_its_lines(resources: Resources, minutes: list[float]) -> None:
    """Lines of a clock that is ahead are sent at once, each once; lines with rising times keep their order."""
    said = store(resources, 1, minutes, time.time_ns())
    with LokiTwin() as loki:
        deliver(resources, loki, [False, True] * 5)
        found = loki.lines(1)
        stats = loki.stats()
    assert Counter(line.line for line in found) == Counter(said)
    assert stats["refused"] == 0
    assert not any("late" in line.labels for line in found)
    if minutes == sorted(minutes):
        assert [line.line for line in found] == said
    assert rows(resources.engine, dead_letters, "seq") == []


def test_a_worker_whose_clock_is_behind_that_of_postgres_waits(resources: Resources) -> None:
    """A line that Loki accepts only later is not dead-lettered: it waits, with the reason, and arrives."""
    said = store(resources, 1, [20.0], time.time_ns())
    with LokiTwin() as loki:
        behind = LokiSink(LokiHttp(loki.url), now_ns=lambda: time.time_ns() - 6 * MINUTE_NS)
        delivery = Delivery(resources.engine, LogBacklog(resources.engine, "loki"), behind, slice_s=60)
        with pytest.raises(SinkUnavailable, match="set the clocks of Postgres and of the workers"):
            delivery.run()
        assert loki.lines(1) == []
        with resources.engine.begin() as connection:
            connection.execute(text("UPDATE sink_states SET next_probe_at = now()"))
            connection.execute(text("UPDATE delivery_cursors SET next_attempt_at = now()"))
        deliver(resources, loki)
        assert [line.line for line in loki.lines(1)] == said


def test_a_rank_that_comes_late_does_not_end_the_turn(resources: Resources) -> None:
    """A line that is three hours late has the label of its hour, and one delivery sends all lines."""
    minutes = [*DAY]
    minutes[700] -= 180
    said = store(resources, 1, minutes, time.time_ns())
    with LokiTwin() as loki:
        deliver(resources, loki)
        found = loki.lines(1)
        assert Counter(line.line for line in found) == Counter(said)
        assert [line.line for line in found if "late" in line.labels] == [said[700]]
        assert loki.stats()["duplicates"] == 0


def test_an_outage_in_the_middle_of_a_day_keeps_confirmed_windows(resources: Resources) -> None:
    """If Loki fails after ten windows, these are confirmed, and are not sent again after the outage."""
    said = store(resources, 1, DAY, time.time_ns())
    with LokiTwin() as loki:
        loki.faults.extend([Fault(kind="slow", times=10), Fault(status=503)])
        with pytest.raises(SinkUnavailable):
            deliver(resources, loki)
        assert 0 < len(loki.lines(1)) < len(said)
        deliver(resources, loki)
        assert [line.line for line in loki.lines(1)] == said
        assert loki.stats()["duplicates"] == 0
