"""The transport to Redis: reads acknowledgements, appends messages, sends heartbeats and claims."""

from __future__ import annotations

import email.parser  # noqa: F401 - redis-py imports it when it connects; as the next line
import encodings.idna  # noqa: F401 - Python imports it with the first host name: see trainwire.ingest.process.forks
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from redis.backoff import NoBackoff
from redis.retry import Retry

from trainwire.ingest.sending.heartbeat import SourceHeartbeat
from trainwire.ingest.sending.transports.transport import Answer, Claim, ack_reports, foreign_claim
from trainwire.ingest.sending.unacked import EncodedMessage
from trainwire.ingest.servers.outage import Unavailable
from trainwire.schemas.keys import Kind
from trainwire.schemas.streams.clients import STREAM_ERRORS, drop_connections, open_streams
from trainwire.schemas.streams.source_streams import Appended, SourceStreams, StreamReports
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.schemas.wire.entries import Entry
from trainwire.schemas.wire.heartbeats import read_claim
from trainwire.schemas.wire.stop_requests import StopRequest, read_stop

CONNECT_TIMEOUT_S: Final = 2
SOCKET_TIMEOUT_S: Final = 5
AT_ONCE_BYTES: Final = 16 * 1024
"""If Redis had room at the last exchange, messages up to this size are sent without asking first.

That saves a round trip. During a hold, each connected trainer therefore sends at most one exchange.
"""

_REDIS_ERRORS: Final = (*STREAM_ERRORS, OSError, UnicodeError)  # UnicodeError: a host name too long for DNS


class RedisConnection:
    """The `Transport` of one source to the Redis with the streams."""

    least_interval_s = 0.0

    def __init__(self, redis_url: str, job_id: int, source: str) -> None:
        self._redis_url = redis_url
        self._has_answered = False
        self._had_room = False
        self._client = open_streams(
            redis_url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # the sender retries, and logs it
        )
        self._streams = SourceStreams(self._client, job_id, source)

    def exchange(
        self,
        batches: Mapping[Kind, Sequence[EncodedMessage]],
        kinds: Sequence[Kind],
        heartbeat: SourceHeartbeat | None = None,
    ) -> Answer:
        """Send a heartbeat, read the acknowledgements of `kinds`, and append the messages if Redis has room."""
        stop = None if heartbeat is None else self.send_heartbeat(heartbeat)
        if not (batches or kinds):
            return Answer(stop=stop)
        size_bytes = sum(message.size_bytes for batch in batches.values() for message in batch)
        is_at_once = bool(batches) and size_bytes <= AT_ONCE_BYTES and self._had_room
        self._had_room = False  # unless the exchange succeeds
        answer = self._append_at_once(batches, kinds) if is_at_once else self.read_reports(kinds)
        answer.stop = answer.stop or stop
        if batches and not is_at_once and not answer.must_hold:
            entries = _entries(batches)
            with self._translated():
                _note_appended(answer, batches, self._streams.append(entries))
        self._had_room = not answer.must_hold
        return answer

    def read_reports(self, kinds: Sequence[Kind]) -> Answer:
        """Return the acknowledgements of `kinds`, the hold, and whether the job was deleted or has to stop.

        If `kinds` is empty, only the hold and `behind_s` are read.
        """
        with self._translated():
            found = self._streams.read_reports(kinds)
        return _answer(kinds, found)

    def _append_at_once(self, batches: Mapping[Kind, Sequence[EncodedMessage]], kinds: Sequence[Kind]) -> Answer:
        with self._translated():
            found, result = self._streams.read_and_append(kinds, _entries(batches))
        answer = _answer(kinds, found)
        _note_appended(answer, batches, result)
        return answer

    def send_heartbeat(self, source: SourceHeartbeat) -> StopRequest | None:
        """Send a heartbeat and renew the claim; return the request to stop, or None if there is none.

        No error is raised if Redis refuses the heartbeat, because it may still accept messages.
        """
        with self._translated():
            reply = self._streams.write_heartbeat(
                source.heartbeat(0), source.rank_claim() if source.may_claim else None
            )
        source.note_answer(reply.claim, is_taken=reply.is_taken)
        return read_stop(reply.stop)

    def claim(self, source: SourceHeartbeat, *, by_force: bool = False) -> Claim | None:
        with self._translated():
            claim, now_ms = self._streams.take_claim(source.rank_claim(), by_force=by_force)
        return foreign_claim(source, read_claim(claim), now_ms)

    def withdraw_heartbeat(self, source: SourceHeartbeat) -> None:
        with self._translated():
            reply = self._streams.withdraw(source.rank_claim())
        source.note_claim(reply)

    def close(self) -> None:
        drop_connections(self._client)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise `Unavailable` for each redis-py error in the block."""
        try:
            yield
        except _REDIS_ERRORS as exc:
            raise Unavailable(redis_trouble(exc, "" if self._has_answered else self._redis_url)) from exc
        self._has_answered = True


def _answer(kinds: Sequence[Kind], found: StreamReports) -> Answer:
    acks = ack_reports(kinds, found.acks, is_job_deleted=found.is_job_deleted)
    return Answer(
        found.must_hold,
        found.is_job_deleted,
        acks,
        stop=read_stop(found.stop),
        is_unknown_resume=found.is_unknown_resume,
        behind_s=found.behind_s,
    )


def _entries(batches: Mapping[Kind, Sequence[EncodedMessage]]) -> dict[Kind, list[Entry]]:
    return {kind: [message.entry for message in batch] for kind, batch in batches.items()}


def _note_appended(answer: Answer, batches: Mapping[Kind, Sequence[EncodedMessage]], result: Appended) -> None:
    answer.seqs = {
        kind: [message.seq for message in batches[kind][:count]] for kind, count in result.counts.items()
    }
    answer.refusal = None if result.refusal is None else Unavailable(result.refusal)
