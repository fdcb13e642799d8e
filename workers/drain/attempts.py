"""What messages say about the attempts of a job: the newest is the job's own state, earlier ones are kept here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from datetime import datetime
from typing import Final

from trainwire.schemas.messages import Body, Completion
from trainwire.schemas.times import to_datetime
from trainwire.workers.drain.jobs import JobState, began_at
from trainwire.workers.drain.lifetimes import Lifetime

AttemptKey = tuple[int, int]
"""Job, attempt."""
Load = Callable[[Collection[AttemptKey]], Mapping[AttemptKey, JobState]]

FIELDS: Final = (
    "name",
    "status",
    "started_at",
    "completed_at",
    "exit_code",
    "error_message",
    "params",
    "tags",
    "mlflow_run_id",
)
"""What is kept of each attempt."""


class EarlierAttempts:
    """The attempts that are no longer their job's newest, as the messages of one transaction leave them.

    Their late messages, the end among them, change nothing of the job and everything of the attempt.
    """

    def __init__(self) -> None:
        self._superseded: dict[AttemptKey, JobState] = {}
        self._late: dict[AttemptKey, list[Body]] = defaultdict(list)

    def note(self, job: JobState, body: Body, attempt: int) -> None:
        """Take note of a message before its job is folded with it."""
        if job.status == "pending" or attempt == job.attempt:
            return
        if attempt < job.attempt:
            self._late[job.id, attempt].append(body)
        else:
            self._superseded[job.id, job.attempt] = _as_earlier(job)

    def fold(self, load: Load) -> list[JobState]:
        """Return the states of all attempts that were noted; `load` finds what is known of some from before."""
        unknown = self._late.keys() - self._superseded.keys()
        states = self._superseded | (dict(load(unknown)) if unknown else {})
        for (job_id, attempt), bodies in self._late.items():
            state = states.get((job_id, attempt)) or JobState(job_id, attempt=attempt)
            for body in bodies:
                state.fold(body, attempt)
            states[job_id, attempt] = _as_earlier(state)
        return list(states.values())


class AttemptSpans:
    """When each attempt of `jobs` began and ended, to find the one of a source that is older than the newest.

    `known` are (job, attempt, began, ended) as they are in Postgres.
    """

    def __init__(
        self, jobs: Iterable[int], known: Iterable[tuple[int, int, datetime | None, datetime | None]]
    ) -> None:
        self._spans: dict[int, dict[int, Lifetime | None]] = {job_id: {} for job_id in jobs}
        for job_id, attempt, began, ended in known:
            self._spans[job_id][attempt] = Lifetime(began, ended) if began else None

    def note(self, job: JobState, body: Body, attempt: int) -> None:
        """Take note of a message once its job is folded with it."""
        spans = self._spans.get(job.id)
        if spans is None:
            return
        if attempt == job.attempt:
            spans[attempt] = Lifetime(job.started_at, job.completed_at) if job.started_at else None
            return
        known, began_ns = spans.get(attempt), began_at(body)
        if known is None and began_ns is not None:
            known = spans[attempt] = Lifetime(to_datetime(began_ns))
        if known is not None and isinstance(body, Completion) and body.is_of_job:
            spans[attempt] = Lifetime(known.began, to_datetime(body.ts))

    def earlier_attempt(self, job: JobState, source: Lifetime | None) -> int | None:
        """Return the attempt of a source that is older than the newest attempt of its job, None if it is not.

        That is the attempt which was running when the source began. Where none was, it is a new one, below all
        that are known: 0, then -1 and so on, for the numbers that follow belong to what is newer.
        """
        if source is None or not job.is_preceded_by(source):
            return None
        spans = self._spans[job.id]
        began_before = [
            (span, attempt)
            for attempt, span in spans.items()
            if attempt != job.attempt and span is not None and not source.is_before(span.began)
        ]
        if began_before:
            span, attempt = max(began_before, key=lambda found: (found[0].began, found[1]))
            if span.ended is None or source.began <= span.ended:
                return attempt
        return min([1, *spans]) - 1


def has_changed(job: JobState, before: JobState) -> bool:
    """Tell whether the newest attempt of a job is another, or is not as it was."""
    return job.attempt != before.attempt or any(getattr(job, name) != getattr(before, name) for name in FIELDS)


def _as_earlier(state: JobState) -> JobState:
    """Return a copy; an attempt that never said its end is lost, for another has begun."""
    earlier = copy(state)
    if not earlier.is_finished:
        earlier.status = "lost"
    return earlier
