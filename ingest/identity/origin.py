"""The origin of messages: job, attempt, source and rank of one process."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """Identifies one source of messages; `since_ns` is its start by its own clock, in nanoseconds since 1970.

    If `resume_step` is set, the source begins a new attempt that continues from this step, even if the previous
    attempt has not ended. `traceparent` identifies the span of the run, if that is traced.
    """

    job_id: int
    attempt: int
    source: str
    rank: int | None
    since_ns: int | None = None
    resume_step: int | None = None
    traceparent: str | None = None
