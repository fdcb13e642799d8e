"""What messages say about the attempts of a job: the newest is the job's own state, earlier ones are kept here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from copy import copy
from typing import Final

from trainwire.schemas.messages import Body
from trainwire.workers.drain.jobs import JobState

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
    "provenance",
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


def has_changed(job: JobState, before: JobState) -> bool:
    """Tell whether the newest attempt of a job is another, or is not as it was."""
    return job.attempt != before.attempt or any(getattr(job, name) != getattr(before, name) for name in FIELDS)


def _as_earlier(state: JobState) -> JobState:
    """Return a copy; an attempt that never said its end is lost, for another has begun."""
    earlier = copy(state)
    if not earlier.is_finished:
        earlier.status = "lost"
    return earlier
