"""Defines the changes that a committed transaction made to a job; `workers.events` publishes them as events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainwire.schemas.keys import Kind
from trainwire.schemas.tables.kinds import ROW_KINDS, RowKind
from trainwire.schemas.wire.messages import Message
from trainwire.workers.drain.jobs import JobState


@dataclass(frozen=True, slots=True)
class Change:
    """The state of a job before and after a transaction, and the messages of the job that it stored, in order."""

    kind: Kind
    before: JobState
    after: JobState
    messages: Sequence[Message]
    source_attempts: Mapping[tuple[int, str], int]
    traceparent: str | None = None
    """The span of the run that sent the last of the messages, if it is traced."""

    def attempt_of(self, message: Message) -> int:
        """Return the attempt under which `message` was stored."""
        return message.attempt or self.source_attempts[message.job_id, message.source]

    def new_rows(self, kind: RowKind) -> tuple[int, int] | None:
        """Return the first and last `seq` of the rows that the transaction added to the job, or None."""
        column = ROW_KINDS[kind].last_seq
        first, last = getattr(self.before, column) + 1, getattr(self.after, column)
        return (first, last) if first <= last else None


@dataclass(frozen=True, slots=True)
class StatusChange:
    """The state of a job before and after its heartbeats changed its status, and the reason."""

    before: JobState
    after: JobState
    reason: str | None
