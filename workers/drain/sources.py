"""The sources of one transaction: positions, counts of messages, and attempts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection

from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN, Body, Completion, Message
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.workers.drain import job_rows
from trainwire.workers.drain.decoding import Content, Lost, Rejected
from trainwire.workers.drain.jobs import JobState
from trainwire.workers.drain.lifetimes import Lifetime, began_at
from trainwire.workers.drain.positions import Position, SourceKey, SourceRow

Source = tuple[int, str]
"""Identifies a source: (job, source)."""


class Sources:
    """The sources that have entries of one kind in a transaction.

    A completion may report the end of another source (`Completion.of`), for example one that was killed: these
    sources are included. `jobs` are the locked jobs, which the transaction changes, `rows` the rows of `named`.
    """

    def __init__(
        self,
        connection: Connection,
        kind: Kind,
        contents: Sequence[Content],
        jobs: Mapping[int, JobState],
        rows: dict[SourceKey, SourceRow],
    ) -> None:
        self._kind = kind
        self._jobs = jobs
        senders = _senders(contents)
        self.rows = rows
        self.attempts = {(job_id, source): row.attempt for (job_id, source, _), row in self.rows.items()}
        without_attempt = {
            each.job_id
            for each in contents
            if each.attempt == ATTEMPT_UNKNOWN
            and not isinstance(each, Rejected)
            and (each.job_id, _subject(each)) not in self.attempts
        }
        self.spans = AttemptSpans(without_attempt, job_rows.load_spans(connection, without_attempt))
        self._changed: set[SourceKey] = {(job_id, source, kind) for job_id, source in senders}
        self._completed = {
            (job_id, source)
            for (job_id, source, of), row in self.rows.items()
            if of == "completions" and row.position.received > row.dead_lettered
        }
        """Sources of which a completion that they sent themselves is stored."""

    def row(self, job_id: int, source: str, kind: Kind) -> SourceRow:
        """Return the row of a source for a kind of messages; add a new one if there is none."""
        key = (job_id, source, kind)
        if key not in self.rows:
            self.rows[key] = SourceRow(self.attempts.get((job_id, source), 0), Position())
        return self.rows[key]

    def changed_rows(self) -> dict[SourceKey, SourceRow]:
        """Return the rows to save, with the attempt of each source set: of all senders, and other changed ones."""
        changed = {key: self.row(*key) for key in self._changed}
        for (job_id, source, _), row in changed.items():
            row.attempt = self.attempts.get((job_id, source), self._jobs[job_id].attempt)
        return changed

    def attempt_of(self, message: Message) -> int:
        """Return the attempt under which to store a message, and record it for the source.

        A completion that reports the end of another source does not change the attempt of that source, if it is
        known.
        """
        sender = message.job_id, message.source
        of = (message.job_id, _subject(message)) if self._kind == "completions" else sender
        attempt = self.attempts.get(of)
        if attempt is None or (of == sender and message.attempt not in {ATTEMPT_UNKNOWN, attempt}):
            body = message.body
            attempt = self._set_attempt(of, message.attempt, Lifetime.of(body), began_at(body), body.resume_step)
        self.attempts.setdefault(sender, attempt)
        return attempt

    def set_attempt_of_loss(self, lost: Lost) -> None:
        """Record the attempt of a source that has declared messages lost."""
        lifetime = None if lost.began_ns is None else Lifetime(to_datetime(lost.began_ns))
        self._set_attempt((lost.job_id, lost.source), lost.attempt, lifetime, lost.began_ns)

    def _set_attempt(
        self,
        source: Source,
        stated: int,
        lifetime: Lifetime | None,
        began_ns: int | None,
        resume_step: int | None = None,
    ) -> int:
        job, known = self._jobs[source[0]], self.attempts.get(source)
        if stated == ATTEMPT_UNKNOWN and known is None:
            known = self.spans.earlier_attempt(job, lifetime)
        attempt = self.attempts[source] = job.attempt_of_source(stated, known, began_ns, resume_step)
        return attempt

    def add_counts(self, message: Message) -> None:
        """Copy the counts of a stored completion to the positions of its source.

        Of several completions, the highest counts apply. Counts that another source reported apply only until the
        source's own completion, which replaces them.
        Sources that a launcher names as killed count 0 messages at least.
        """
        body = message.body
        if not isinstance(body, Completion):
            return
        job_id, source = message.job_id, _subject(message)
        for killed in _killed(message):
            self._note_killed(job_id, killed, self.attempts.get((job_id, message.source)))
        if source != message.source:
            sender = self.row(job_id, message.source, self._kind)
            sender.produced = _highest(sender.produced, message.seq)  # the sender has no completion of its own
            if (job_id, source) in self._completed:
                return
        elif (job_id, source) not in self._completed:
            self._completed.add((job_id, source))
            self._clear_counts(job_id, source)
        for kind in KINDS:
            produced, dropped = (body.produced or {}).get(kind), (body.dropped or {}).get(kind)
            if kind == "completions" and not set(KINDS).issuperset(body.produced or ()):
                produced = None  # messages of an unknown kind: without this count the sum is not complete
            if produced is None and dropped is None:
                continue
            row = self.row(job_id, source, kind)
            row.produced, row.dropped = _highest(row.produced, produced), _highest(row.dropped, dropped)
            row.position.only_advanced = False  # the last acks of a source are written in full
            self._changed.add((job_id, source, kind))

    def _note_killed(self, job_id: int, source: str, attempt: int | None) -> None:
        """Record that a source has ended without a completion, even if none of its messages has arrived.

        It counts 0 messages at least, and may have made more: the sum of the job is not proven.
        """
        if (job_id, source) in self._completed:
            return
        if attempt is not None:
            self.attempts.setdefault((job_id, source), attempt)
        row = self.row(job_id, source, "metrics")
        if row.produced is None:
            row.produced = 0
            self._changed.add((job_id, source, "metrics"))

    def _clear_counts(self, job_id: int, source: str) -> None:
        """Clear the counts that another source reported for `source`, which now reports its own.

        Without this, the counts of kinds that its own completion does not mention would remain.
        """
        for kind in KINDS:
            row = self.rows.get((job_id, source, kind))
            if row is not None and (row.produced, row.dropped) != (None, None):
                row.produced = row.dropped = None
                self._changed.add((job_id, source, kind))


class AttemptSpans:
    """The start and end times of all attempts of `jobs`, to find the attempt of a late source.

    A late source is older than the newest attempt of its job. `known` are the rows (job, attempt, start, end) in
    Postgres.
    """

    def __init__(
        self, jobs: Iterable[int], known: Iterable[tuple[int, int, datetime | None, datetime | None]]
    ) -> None:
        self._spans: dict[int, dict[int, Lifetime | None]] = {job_id: {} for job_id in jobs}
        for job_id, attempt, began, ended in known:
            self._spans[job_id][attempt] = Lifetime(began, ended) if began else None

    def note(self, job: JobState, body: Body, attempt: int) -> None:
        """Update the times of an attempt by a message that was applied to its job."""
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
        """Return the attempt of a source that is older than the newest attempt of its job; None for other sources.

        It is the attempt that was running when the source began. If none was, it is a new number below all others
        (0, -1, ...), because higher numbers are for newer attempts.
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


def named(kind: Kind, contents: Sequence[Content]) -> set[Source]:
    """Return the sources that have sent `contents`, and those whose end they report."""
    senders = _senders(contents)
    if kind != "completions":
        return senders
    messages = [each for each in contents if isinstance(each, Message)]
    return senders | {(each.job_id, source) for each in messages for source in (_subject(each), *_killed(each))}


def _senders(contents: Sequence[Content]) -> set[Source]:
    return {(each.job_id, each.source) for each in contents if each.job_id and each.source}


def _subject(content: Message | Lost) -> str:
    """Return the source that an entry is about: in a completion with the field `of` its value, else the sender."""
    if isinstance(content, Message) and isinstance(content.body, Completion) and content.body.of is not None:
        return storable_text(content.body.of)
    return content.source


def _killed(message: Message) -> list[str]:
    """Return the sources that the completion of a launcher names as killed."""
    body = message.body
    return [storable_text(name) for name in body.killed or ()] if isinstance(body, Completion) else []


def _highest(*counts: int | None) -> int | None:
    return max((count for count in counts if count is not None), default=None)
