"""What one committed transaction did to its jobs, for those who tell others about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainwire.schemas.keys import Kind
from trainwire.schemas.kinds import ROW_KINDS, RowKind
from trainwire.schemas.messages import Body, Completion, Logs, Message
from trainwire.workers.drain.jobs import JobState


@dataclass(frozen=True, slots=True)
class Change:
    """One job before and after a transaction, and its messages that were stored, in their order."""

    kind: Kind
    before: JobState
    after: JobState
    messages: Sequence[Message]
    source_attempts: Mapping[tuple[int, str], int]

    def attempt_of(self, message: Message) -> int:
        """Return the attempt that a message was stored under."""
        return message.attempt or self.source_attempts[message.job_id, message.source]

    def new_rows(self, kind: RowKind) -> tuple[int, int] | None:
        """Return the first and last `seq` of the rows that the transaction gave to the job; None for none."""
        column = ROW_KINDS[kind].last_seq
        first, last = getattr(self.before, column) + 1, getattr(self.after, column)
        return (first, last) if first <= last else None


@dataclass(frozen=True, slots=True)
class StatusChange:
    """One job before and after it was found to be stalled, lost or back, and why."""

    before: JobState
    after: JobState
    reason: str | None


def log_lines(body: Body) -> Logs | None:
    """Return the log lines that a message leaves: its own, or for a completion its traceback."""
    if isinstance(body, Logs):
        return body
    if not isinstance(body, Completion) or body.traceback is None:
        return None
    return Logs(log_type="stderr", lines=[f"TRACEBACK:\n{body.traceback}"], ts=[body.ts])
