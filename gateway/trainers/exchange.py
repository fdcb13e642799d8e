"""Executes a trainer's request in Redis: heartbeat, claim, acknowledgements and messages."""

from __future__ import annotations

from typing import Final

import redis

from trainwire.schemas.keys import KINDS
from trainwire.schemas.streams.source_streams import SourceStreams
from trainwire.schemas.wire.exchange import ExchangeAnswer, ExchangeRequest

_SOME_KIND: Final = KINDS[:1]
"""One kind, read if a request wants no acknowledgements: the flag of a deleted job is read with them."""


def run_exchange(client: redis.Redis, job_id: int, request: ExchangeRequest) -> ExchangeAnswer:
    """Execute a checked request in Redis, in the same order as a trainer that is connected to Redis directly.

    While Redis is nearly full, no message is appended and `hold` is set in the answer. The messages of a deleted
    job are reported as taken, and not appended. A repeated request is harmless: the workers store each message
    number of a source once. Raises the errors of the Redis client; some of the entries may have been appended by
    then.
    """
    streams = SourceStreams(client, job_id, request.source)
    answer = ExchangeAnswer()
    _send_heartbeat(streams, request, answer)
    if not (request.entries or request.acks):
        return answer
    reports = streams.read_reports(request.acks or _SOME_KIND)
    answer.is_job_deleted, answer.stop = reports.is_job_deleted, reports.stop
    answer.is_unknown_resume = reports.is_unknown_resume
    answer.behind_ms = round(1000 * reports.behind_s)
    answer.acks = {kind: reports.acks[kind] for kind in request.acks}
    if reports.must_hold:
        answer.hold = True
    elif reports.is_job_deleted:  # acknowledged, and not stored
        answer.taken = {kind: len(entries) for kind, entries in request.entries.items()}
    elif request.entries:
        result = streams.append(
            {kind: [each.stream_fields() for each in batch] for kind, batch in request.entries.items()}
        )
        answer.taken, answer.refusal = result.counts, result.refusal
    return answer


def _send_heartbeat(streams: SourceStreams, request: ExchangeRequest, answer: ExchangeAnswer) -> None:
    """Write the heartbeat of a source, and take or withdraw its claim; set the results in `answer`."""
    claim = request.claim
    if request.has_ended:
        if claim is not None:
            found = streams.withdraw(claim)
            answer.claim = found if isinstance(found, bytes) else None
    elif request.heartbeat is not None:
        reply = streams.write_heartbeat(request.heartbeat, claim)
        answer.is_alive, answer.stop = reply.is_taken, reply.stop
        answer.claim = reply.claim if isinstance(reply.claim, bytes) else None
    elif claim is not None:
        answer.claim, answer.now_ms = streams.take_claim(claim, by_force=request.by_force)
