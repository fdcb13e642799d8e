"""The Loki sink stores every line once, on the twin and on a real Loki."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from tests.contract.loki_api import LokiApi
from trainwire.stores.loki.config import MAX_AHEAD_NS
from trainwire.stores.loki.http import LokiHttp
from trainwire.stores.loki.query import LokiLine, read_lines
from trainwire.workers.sinks.base import SinkUnavailable
from trainwire.workers.sinks.loki.entries import MAX_LINE_BYTES, LogRow
from trainwire.workers.sinks.loki.sink import LokiSink

HOUR_NS = 3600 * 10**9


def rows(*contents: str, ts_ns: int | None = None, step_ns: int = 1000) -> list[LogRow]:
    """Rows of stdout, by default a microsecond apart and a minute ago."""
    first = time.time_ns() - 60 * 10**9 if ts_ns is None else ts_ns
    return [
        LogRow(seq, 1, None, "0-test", "stdout", None, first + seq * step_ns, content)
        for seq, content in enumerate(contents, 1)
    ]


def deliver(loki: LokiApi, made: list[LogRow]) -> list[tuple[int, str]]:
    """Deliver rows to the end, and return the refused ones as (seq, reason)."""
    sink, newest_ns = LokiSink(LokiHttp(loki.url)), dict[str, int]()
    refused: list[tuple[int, str]] = []
    while made:
        delivered = sink.deliver_rows(int(loki.job_id), made, newest_ns)
        refused += [(refusal.seq, refusal.reason) for refusal in delivered.refused]
        newest_ns = dict(delivered.newest_ns)
        made = [row for row in made if row.seq > delivered.confirmed_seq]
    return refused


def stored(loki: LokiApi, expected: int) -> list[LokiLine]:
    """Wait until a job has the expected number of lines, and return them."""
    deadline = time.monotonic() + 20
    while True:
        found = list(
            read_lines(
                LokiHttp(loki.url), int(loki.job_id), time.time_ns() - 160 * HOUR_NS, time.time_ns() + HOUR_NS
            )
        )
        if len(found) >= expected or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_lines_come_back_as_they_went(loki: LokiApi) -> None:
    """Text, order, time to the nanosecond, labels and metadata survive."""
    made = rows("first", "", "ünïcode 😀", "with\ttab", '{"json": "{{braces}}"}')
    assert deliver(loki, made) == []
    found = stored(loki, 5)
    assert [(line.ts_ns, line.line) for line in found] == [(row.ts_ns, row.content) for row in made]
    assert [line.label("seq") for line in found] == ["1", "2", "3", "4", "5"]
    assert found[0].label("log_type") == "stdout"
    assert found[0].label("attempt") == "1"


def test_a_resend_is_stored_once(loki: LokiApi) -> None:
    """The same rows delivered twice, the second time with more behind them, are there once."""
    made = rows(*(f"line {n}" for n in range(300)))
    deliver(loki, made[:200])
    deliver(loki, made)
    assert Counter(line.label("seq") for line in stored(loki, 300)) == {str(row.seq): 1 for row in made}


def test_equal_lines_in_the_same_nanosecond_are_two(loki: LokiApi) -> None:
    """Equal lines with the same time and different numbers are both stored."""
    deliver(loki, rows("same", "same", "same", step_ns=0))
    assert len(stored(loki, 3)) == 3


def test_a_rank_that_was_cut_off_arrives(loki: LokiApi) -> None:
    """Lines three hours old arrive after newer lines of the same stream, and after a resend too."""
    now = time.time_ns()
    made = [
        LogRow(seq, 1, seq % 2, "s", "stdout", None, ts_ns, f"line {seq}")
        for seq, ts_ns in enumerate(
            (now - HOUR_NS // 6, now - 3 * HOUR_NS, now - 60 * 10**9, now - 3 * HOUR_NS + 5, now - 2 * HOUR_NS), 1
        )
    ]
    for _ in range(2):
        assert deliver(loki, made) == []
    loki.flush()
    assert sorted(line.line for line in stored(loki, 5)) == [row.content for row in made]


def test_a_line_too_long_for_one_entry_arrives_in_parts(loki: LokiApi) -> None:
    """The numbered parts of a long line, joined, are the line."""
    line = "".join(f"{n:09d}\n" for n in range(60_000))
    assert deliver(loki, rows("before", line, "after")) == []
    found = stored(loki, 5)
    parts = [part for part in found if part.label("part")]
    assert [part.label("part") for part in parts] == ["1/3", "2/3", "3/3"]
    assert "".join(part.line for part in parts) == line
    assert all(len(part.line.encode()) <= MAX_LINE_BYTES for part in parts)


def test_a_line_of_ten_megabytes_arrives(loki: LokiApi) -> None:
    """A line beyond Loki's limit for one message arrives complete, in several pushes."""
    line = "0123456789" * 1_000_000
    assert deliver(loki, rows("before", line)) == []
    found = stored(loki, 41)
    assert "".join(part.line for part in sorted(found[1:], key=part_number)) == line


def part_number(line: LokiLine) -> int:
    """Return the number of a part."""
    return int((line.label("part") or "0").partition("/")[0])


def test_lines_that_loki_would_refuse_are_named_and_the_rest_arrives(loki: LokiApi) -> None:
    """A line from eight days ago is refused by rule; all others arrive."""
    now = time.time_ns()
    made = rows(*(f"line {n}" for n in range(20)))
    made[3] = LogRow(4, 1, None, "s", "stdout", None, now - 8 * 24 * HOUR_NS, "old")
    assert deliver(loki, made) == [(4, "too-old")]
    assert len(stored(loki, 19)) == 19


def test_a_line_that_loki_takes_only_later_waits(loki: LokiApi) -> None:
    """Lines before it arrive; it stays behind the cursor, with the reason."""
    made = [*rows("before"), LogRow(2, 1, None, "s", "stdout", None, time.time_ns() + HOUR_NS, "future")]
    with pytest.raises(SinkUnavailable, match=r"line 2 is to be sent with .* ahead of this worker's clock"):
        deliver(loki, made)
    assert [line.line for line in stored(loki, 1)] == ["before"]


def test_the_trainers_own_time_is_in_the_metadata(loki: LokiApi) -> None:
    """Lines of a clock that is 20 minutes ahead: Loki keeps order, limited time and the trainer's time."""
    now = time.time_ns()
    own = f"{datetime.fromtimestamp(now // 10**9, UTC) + timedelta(minutes=20):%Y-%m-%dT%H:%M:%S}.123456789Z"
    made = [
        LogRow(n, 1, None, "s", "stdout", None, now + MAX_AHEAD_NS + n, f"line {n}", own) for n in range(1, 101)
    ]
    for _ in range(2):
        assert deliver(loki, made) == []
    found = stored(loki, 100)
    assert [line.line for line in found] == [row.content for row in made]
    assert {line.label("logged_at") for line in found} == {own}


def test_a_replay_of_old_lines_adds_only_missing_ones(loki: LokiApi) -> None:
    """Old lines that Loki has are not sent again; missing ones go to the stream of their hour."""
    now = time.time_ns()
    old = [LogRow(seq, 1, None, "s", "stdout", None, now - 3 * HOUR_NS + seq, f"old {seq}") for seq in (1, 2, 3)]
    new = LogRow(4, 1, None, "s", "stdout", None, now - 60 * 10**9, "new")
    deliver(loki, [old[0], old[2]])
    deliver(loki, [new])
    loki.flush()
    assert len(stored(loki, 3)) == 3
    assert deliver(loki, [*old, new]) == []
    loki.flush()
    assert Counter(line.label("seq") for line in stored(loki, 4)) == {"1": 1, "2": 1, "3": 1, "4": 1}


def test_thousands_of_lines_are_read_back_page_by_page(loki: LokiApi) -> None:
    """More lines than a page holds come back in order, also where a page ends within one time."""
    first = time.time_ns() - 60 * 10**9
    made = [LogRow(n, 1, None, "s", "stdout", None, first + n // 7 * 1000, f"{n}") for n in range(1, 12_001)]
    deliver(loki, made)
    found = stored(loki, 12_000)
    assert [line.label("seq") for line in found] == [str(row.seq) for row in made]


def test_lines_of_one_nanosecond_are_read_back_whole(loki: LokiApi) -> None:
    """More lines of one nanosecond than a page holds are all read back, in the order of their seq."""
    burst = time.time_ns() - 60 * 10**9
    times = [burst - 1] * 10 + [burst] * 12_000 + [burst + 1] * 10
    made = [LogRow(n, 1, None, "s", "stdout", None, ts_ns, f"{n}") for n, ts_ns in enumerate(times, 1)]
    deliver(loki, made)
    found = stored(loki, len(made))
    assert [line.label("seq") for line in found] == [str(row.seq) for row in made]
