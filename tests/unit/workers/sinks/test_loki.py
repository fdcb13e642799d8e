"""The Loki sink under Loki's rate limit, on the twin."""

from __future__ import annotations

import time

import pytest

from tests.twins.loki import LokiTwin
from tests.twins.loki_faults import FOREVER, Fault
from trainwire.stores.loki.http import LokiHttp, LokiUnavailable
from trainwire.workers.sinks.loki.entries import LogRow
from trainwire.workers.sinks.loki.sink import RATE_LIMIT_PAUSE_S, RATE_LIMIT_RETRY_S, LokiSink

MINUTE_NS = 60 * 10**9


def long_row() -> LogRow:
    """A row of several pushes."""
    return LogRow(1, 1, None, "s", "stdout", None, time.time_ns() - MINUTE_NS, "0123456789" * 500_000)


def test_a_row_that_is_begun_waits_for_the_rate_limit() -> None:
    """A row of several pushes waits for the rate limit and continues; it is not begun again."""
    with LokiTwin() as twin:
        twin.faults.extend([Fault(kind="slow"), Fault(status=429, times=3)])
        pauses: list[float] = []
        delivered = LokiSink(LokiHttp(twin.url), sleep=pauses.append).deliver_rows(7, [long_row()], {})
        assert (delivered.confirmed_seq, pauses) == (1, [RATE_LIMIT_PAUSE_S] * 3)
        assert "".join(line.line for line in twin.lines(7)) == long_row().content


def test_rows_that_are_not_begun_wait_for_another_turn() -> None:
    """If Loki accepts no push at all, the delivery does not wait, so that other jobs are not delayed."""
    with LokiTwin() as twin:
        twin.fail_with(429)
        with pytest.raises(LokiUnavailable, match="rate limit"):
            LokiSink(LokiHttp(twin.url), sleep=lambda _: pytest.fail("waited")).deliver_rows(7, [long_row()], {})


def test_retries_end() -> None:
    """A rate limit that is never lifted becomes an outage."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with LokiTwin() as twin:
        twin.faults.extend([Fault(kind="slow"), Fault(status=429, times=FOREVER)])
        sink = LokiSink(LokiHttp(twin.url), clock=lambda: now[0], sleep=sleep)
        with pytest.raises(LokiUnavailable, match="rate limit"):
            sink.deliver_rows(7, [long_row()], {})
    assert now[0] == RATE_LIMIT_RETRY_S
