"""Pushes log rows to Loki over HTTP. Only a response with status 204 proves that the rows are stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import urllib3

from trainwire.stores.loki.http import LokiHttp, LokiUnavailable, message_of, unavailable
from trainwire.stores.loki.query import read_lines
from trainwire.workers.sinks.base import RefusedRow, SinkUnavailable
from trainwire.workers.sinks.loki.entries import (
    DeliveredLines,
    LogBatch,
    LogRow,
    PackedLines,
    Push,
    PushPlan,
    can_send_packed,
    hour_of,
    labels_of,
    newest_after,
    plan,
    shown_time,
)

PUSH_PATH: Final = "/loki/api/v1/push"
STORED: Final = 204
PARTIAL: Final = 400
TOO_FAR_BEHIND: Final = "too far behind"
"""Part of Loki's error message for a line that is over an hour older than the newest one of its stream."""
AHEAD: Final = (
    "line {} is to be sent with {}, over ten minutes ahead of this worker's clock; it waits: "
    "set the clocks of Postgres and of the workers"
)
"""Error if a row's time is in the future.

The cause is not a trainer's clock, because `LogBacklog` limits times by the clock of Postgres.
"""
REFUSAL_SEARCH_S: Final = 5.0
"""Seconds after which no further window of a job is sent, and the search for refused rows by halving ends.

The rest waits for the job's next turn.
"""
RATE_LIMIT_RETRY_S: Final = 15.0
"""For how long a push is retried at Loki's rate limit, if earlier pushes of the same plan have succeeded.

In a later turn all of these would be repeated, and a row larger than `ingestion_burst_size_mb` (6 by default)
would never be delivered.
"""
RATE_LIMIT_PAUSE_S: Final = 0.5


class LokiSink:
    """Pushes log rows to Loki. Several threads may use it at the same time."""

    name: Final = "loki"

    def __init__(
        self,
        http: LokiHttp,
        now_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self._http = http
        self._now_ns = now_ns
        self._clock = clock

    def deliver(self, job_id: int, batch: LogBatch) -> Iterator[DeliveredLines]:
        """Push the batch, window by window; see `Sink`.

        Ends early after a window with refused rows, and after `REFUSAL_SEARCH_S` seconds, so that other jobs do
        not wait.
        """
        if not batch.windows:
            yield DeliveredLines(batch.last_seq, newest_ns=batch.newest_ns)
        deadline = self._clock() + REFUSAL_SEARCH_S
        done = DeliveredLines(batch.confirmed_seq, newest_ns=batch.newest_ns)
        for number, packs in enumerate(batch.windows, 1):
            try:
                done = self._deliver_window(job_id, batch, packs, done)
            except LokiUnavailable as exc:
                raise SinkUnavailable(str(exc), exc.retry_after_s) from exc
            is_whole = done.confirmed_seq == packs[-1].last_seq and not done.refused
            done.more = is_whole and number < len(batch.windows) and self._clock() < deadline
            yield done
            if not done.more:
                return

    def _deliver_window(
        self, job_id: int, batch: LogBatch, packs: Sequence[PackedLines], before: DeliveredLines
    ) -> DeliveredLines:
        """Push the packs of one window unchanged or, if that is not possible, a prefix of its rows."""
        last_seq = packs[-1].last_seq
        if can_send_packed(packs, before.newest_ns, self._now_ns()) and self._push_packs(job_id, packs):
            return DeliveredLines(last_seq, newest_ns=newest_after(packs, before.newest_ns))
        if rows := batch.read_rows(before.confirmed_seq, last_seq):
            return self.deliver_rows(job_id, rows, before.newest_ns)
        return DeliveredLines(last_seq, newest_ns=before.newest_ns)  # they have just been deleted

    def deliver_rows(self, job_id: int, rows: Sequence[LogRow], newest_ns: Mapping[str, int]) -> DeliveredLines:
        """Push a prefix of `rows` according to `plan`; `newest_ns` is the newest time sent before, by log type.

        Raises `SinkUnavailable` if the time of the first row is too far ahead of this worker's clock, and
        `LokiUnavailable` if Loki cannot store rows now.

        If Loki refuses some rows, the rows are halved until each refused row is alone. Loki has then stored the
        other rows of such a push; when they are sent again they are identical, and Loki keeps one copy. If Loki
        refuses every line, each takes two requests, so rows that are left after `REFUSAL_SEARCH_S` seconds wait
        for the next turn.
        """
        deadline = self._clock() + REFUSAL_SEARCH_S
        now_ns = self._now_ns()
        whole = plan(rows, newest_ns, now_ns)
        if whole.confirmed_seq < rows[0].seq:
            raise SinkUnavailable(AHEAD.format(rows[0].seq, shown_time(rows[0].ts_ns)), may_be_the_jobs=True)
        delivered = DeliveredLines(rows[0].seq - 1, newest_ns=newest_ns)
        parts = [[row for row in rows if row.seq <= whole.confirmed_seq]]
        while parts and (self._clock() < deadline or delivered.confirmed_seq < rows[0].seq):
            part = parts.pop()
            planned = plan(part, delivered.newest_ns, now_ns)
            refusal = self._push_all(job_id, planned)
            if refusal is not None and len(part) > 1:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                continue
            delivered.confirmed_seq, delivered.newest_ns = planned.confirmed_seq, planned.newest_ns
            delivered.refused += planned.refused
            if refusal is not None:
                delivered.refused.append(RefusedRow(part[0].seq, part[0].source, "refused", refusal))
        return delivered

    def _push_packs(self, job_id: int, packs: Sequence[PackedLines]) -> bool:
        """Push the packs; return False if Loki refuses a line in them."""
        for pack in packs:
            labels = msgspec.json.encode(labels_of(job_id, (pack.log_type, None))).decode()
            body = f'{{"streams":[{{"stream":{labels},"values":[{pack.values}]}}]}}'
            if self._refusal(self._http.post_json(PUSH_PATH, body.encode())) is not None:
                return False
        return True

    def _push_all(self, job_id: int, planned: PushPlan) -> str | None:
        """Push the entries of a plan until Loki refuses some; return its message, or None if it accepts all."""
        retry_s = 0.0
        for chunk in (chunk for push in planned.pushes.values() for chunk in push.chunks()):
            refusal = self._push_with_retry(job_id, chunk, retry_s)
            if refusal is not None:
                return refusal
            retry_s = RATE_LIMIT_RETRY_S
        return None

    def _push_with_retry(self, job_id: int, push: Push, retry_s: float) -> str | None:
        """Push entries, and retry for about `retry_s` seconds at Loki's rate limit; returns like `_push_all`."""
        deadline = self._clock() + retry_s
        while True:
            try:
                return self._push(job_id, push)
            except LokiUnavailable as exc:
                if not exc.is_rate_limit or self._clock() >= deadline:
                    raise
            self._sleep(RATE_LIMIT_PAUSE_S)

    def _push(self, job_id: int, push: Push) -> str | None:
        stream = {"stream": labels_of(job_id, push.key), "values": push.entries}
        refusal = self._refusal(self._http.post_json(PUSH_PATH, msgspec.json.encode({"streams": [stream]})))
        if refusal is not None and TOO_FAR_BEHIND in refusal and push.key[1] is None:
            return self._push_late(job_id, push)
        return refusal

    def _push_late(self, job_id: int, push: Push) -> str | None:
        """Push those entries that are not in Loki yet to a separate stream for each hour, with the label `late`.

        Returns Loki's message if it refuses some of them, else None. This is needed after a replay, or if another
        client writes to the job's stream. In other cases `plan` recognizes late lines.
        """
        times = [row.ts_ns for row in push.rows]
        stored = {
            (line.ts_ns, line.label("seq"), line.label("part"))
            for line in read_lines(self._http, job_id, min(times), max(times), f', log_type="{push.key[0]}"')
        }
        late: dict[str, Push] = {}
        for entry, row in zip(push.entries, push.rows, strict=True):
            if (row.ts_ns, entry[2]["seq"], entry[2].get("part")) not in stored:
                hour = hour_of(row.ts_ns)
                late.setdefault(hour, Push((push.key[0], hour))).add(entry, row)
        refusals = [self._push(job_id, of_an_hour) for of_an_hour in late.values()]
        return next((refusal for refusal in refusals if refusal is not None), None)

    @staticmethod
    def _refusal(answer: urllib3.BaseHTTPResponse) -> str | None:
        """Return None if the response confirms all entries, or Loki's message if it refuses some."""
        if answer.status == STORED:
            return None
        if answer.status == PARTIAL:
            return message_of(answer)[:1000] or "400 without a message"
        raise unavailable(answer)
