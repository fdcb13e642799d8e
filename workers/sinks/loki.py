"""Loki over HTTP: one stream a push, and only 204 is proof."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import urllib3

from workers.sinks.base import RefusedRow
from workers.sinks.log_rows import DeliveredLines, LogBatch, LogRow
from workers.sinks.loki_http import LokiHttp, unavailable, words_of
from workers.sinks.loki_lines import Push, hour_of, is_plain, labels_of, newest_after, plan
from workers.sinks.loki_query import read_lines

PUSH_PATH: Final = "/loki/api/v1/push"
STORED: Final = 204
PARTIAL: Final = 400
TOO_FAR_BEHIND: Final = "too far behind"
"""What Loki says of a line more than an hour behind its stream's newest."""


class LokiSink:
    """Pushes log rows; safe to use from several threads."""

    name: Final = "loki"

    def __init__(self, http: LokiHttp, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._http = http
        self._now_ns = now_ns

    def deliver(self, job_id: int, batch: LogBatch) -> DeliveredLines:
        """Push a prefix of the batch; see `Sink`. Rows are looked at one by one only where it takes that."""
        if is_plain(batch, self._now_ns()) and self._push_packs(job_id, batch):
            return DeliveredLines(max(pack.last_seq for pack in batch.packs), newest_ns=newest_after(batch))
        return self.deliver_rows(job_id, batch.read_rows(), batch.newest_ns)

    def deliver_rows(self, job_id: int, rows: Sequence[LogRow], newest_ns: Mapping[str, int]) -> DeliveredLines:
        """Push a prefix of `rows`, each by the rules; `newest_ns` is what was sent before."""
        planned = plan(rows, newest_ns, self._now_ns())
        delivered = DeliveredLines(planned.confirmed_seq, planned.refused, planned.newest_ns)
        for push in planned.pushes.values():
            for chunk in push.chunks():
                delivered.refused += self._push(job_id, chunk)
        return delivered

    def _push_packs(self, job_id: int, batch: LogBatch) -> bool:
        """Push what Postgres has packed; False where Loki refuses a line of it."""
        for pack in batch.packs:
            labels = msgspec.json.encode(labels_of(job_id, (pack.log_type, None))).decode()
            body = f'{{"streams":[{{"stream":{labels},"values":[{pack.values}]}}]}}'
            if self._refusal(self._http.post_json(PUSH_PATH, body.encode())) is not None:
                return False
        return True

    def _push(self, job_id: int, push: Push) -> list[RefusedRow]:
        """Push entries of one stream; where Loki refuses some, halve until they stand alone.

        A 400 has stored the good entries; sent again they are the same, and Loki keeps one.
        """
        refusal = self._post(job_id, push)
        if refusal is None:
            return []
        if TOO_FAR_BEHIND in refusal and push.key[1] is None:
            return self._push_late(job_id, push)
        if len(push.entries) == 1:
            row = push.rows[0]
            return [RefusedRow(row.seq, row.source, "refused", refusal)]
        middle = len(push.entries) // 2
        halves = push.part(0, middle), push.part(middle, len(push.entries))
        return [refused for half in halves for refused in self._push(job_id, half)]

    def _push_late(self, job_id: int, push: Push) -> list[RefusedRow]:
        """Push under the label of their hour what Loki does not have and takes into the stream no more.

        Only a replay comes here, or a stream that somebody else writes to: the plan knows what is late.
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
        return [refused for of_an_hour in late.values() for refused in self._push(job_id, of_an_hour)]

    def _post(self, job_id: int, push: Push) -> str | None:
        stream = {"stream": labels_of(job_id, push.key), "values": push.entries}
        return self._refusal(self._http.post_json(PUSH_PATH, msgspec.json.encode({"streams": [stream]})))

    @staticmethod
    def _refusal(answer: urllib3.BaseHTTPResponse) -> str | None:
        """Return None on proof that all is stored, or Loki's words where it refuses some of it."""
        if answer.status == STORED:
            return None
        if answer.status == PARTIAL:
            return words_of(answer)[:1000] or "400 without a word"
        raise unavailable(answer)
