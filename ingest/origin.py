"""The origin of messages: job, attempt, source and rank of one process."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """Identifies one source of messages; `since_ns` is its beginning by its own clock, in ns since 1970."""

    job_id: int
    attempt: int
    source: str
    rank: int | None
    since_ns: int | None = None
