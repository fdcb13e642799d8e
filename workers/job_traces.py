"""Finds the traces of jobs, so that a delivery joins the trace of the run, even days later (docs/tracing.md).

The drain saves the `traceparent` of a job's newest message in the hash of the job's acknowledgements in Redis,
if the process of the drain is traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import redis

from trainwire.schemas.keys import acks_key
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.schemas.streams.servers import ask_each
from trainwire.schemas.tracing import TRACEPARENT, checked_traceparent
from trainwire.stores.tracing import is_tracing

NO_TRACES: Final[Mapping[int, str]] = MappingProxyType({})
_FIELD: Final = TRACEPARENT.encode()


def traces_of(entries: Iterable[tuple[int | None, Mapping[bytes, bytes]]]) -> Mapping[int, str]:
    """Return the last `traceparent` of each job, if it is valid.

    `entries` are pairs of a job and the fields of a stream entry. Returns an empty mapping if this process is not
    traced.
    """
    if not is_tracing():
        return NO_TRACES
    found = {job_id: fields[_FIELD] for job_id, fields in entries if job_id is not None and _FIELD in fields}
    return {job_id: text for job_id, value in found.items() if (text := checked_traceparent(value)) is not None}


def find_traces(client: redis.Redis, job_ids: Sequence[int]) -> Mapping[int, str]:
    """Return the saved `traceparent` of those jobs that have one.

    Returns an empty mapping if this process is not traced, or if Redis does not answer: deliveries work without
    traces.
    """
    if not is_tracing():
        return NO_TRACES
    try:
        found = ask_each(client, {job_id: [("HGET", acks_key(job_id), TRACEPARENT)] for job_id in job_ids})
    except STREAM_ERRORS:
        return NO_TRACES
    checked = {job_id: checked_traceparent(value) for job_id, (value,) in found.replies.items()}
    return {job_id: text for job_id, text in checked.items() if text is not None}
