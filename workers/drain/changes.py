"""The changes that a committed transaction made to jobs, from which events are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainwire.schemas.keys import Kind
from trainwire.schemas.kinds import ROW_KINDS, RowKind
from trainwire.schemas.messages import Message
from trainwire.workers.drain.jobs import JobState


@dataclass(frozen=True, slots=True)
class Change:
    """A job before and after a transaction, and its messages that were stored, in order."""

    kind: Kind
    before: JobState
    after: JobState
    messages: Sequence[Message]
    source_attempts: Mapping[tuple[int, str], int]

    def attempt_of(self, message: Message) -> int:
        """Return the attempt that a message was stored under."""
        return message.attempt or self.source_attempts[message.job_id, message.source]

    def new_rows(self, kind: RowKind) -> tuple[int, int] | None:
        """Return the first and last `seq` of the rows that the transaction added to the job; None for none."""
        column = ROW_KINDS[kind].last_seq
        first, last = getattr(self.before, column) + 1, getattr(self.after, column)
        return (first, last) if first <= last else None


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A job before and after its status was changed by its heartbeats, and the reason."""

    before: JobState
    after: JobState
    reason: str | None
