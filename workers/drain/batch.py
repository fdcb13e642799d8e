"""Stores one batch of stream entries in one transaction: rows, jobs, positions and dead letters."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy

from msgspec.structs import replace
from sqlalchemy import Connection

from trainwire.schemas.keys import Kind
from trainwire.schemas.tables.kinds import ROW_KINDS
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN, Body, Completion, Message, Metrics
from trainwire.schemas.wire.validation import InvalidMessage
from trainwire.stores.postgres.storable_text import storable_text
from trainwire.workers.drain import job_rows, occurrences, positions, rows, store
from trainwire.workers.drain.arrivals import (
    Arrival,
    first_seq_of,
    in_order,
    last_seq_of,
    rejection,
    split_arrival,
)
from trainwire.workers.drain.changes import Change
from trainwire.workers.drain.decoding import Content, Lost, Rejected
from trainwire.workers.drain.jobs import FINAL_PATHS, JobState
from trainwire.workers.drain.positions import MAX_RANGES, Position, SourceKey, SourceRow
from trainwire.workers.drain.sources import Sources, named
from trainwire.workers.drain.stream import Ack
from trainwire.workers.errors import MostlyInvalid, Refused
from trainwire.workers.job_traces import NO_TRACES

MAX_JUMP = 10**9
"""Largest accepted gap between two message numbers of a source.

A larger one is a mistake of the sender: accepted, it would count so many messages as missing for ever.
"""
MOSTLY_INVALID_FROM = 100
"""Minimum number of new entries in a batch before `MostlyInvalid` may be raised."""


class Batch:
    """Stores decoded entries (`arrivals`) of one kind in a transaction that its caller commits.

    The constructor locks the jobs of the entries, and creates missing ones.
    """

    def __init__(self, connection: Connection, kind: Kind, arrivals: Sequence[Arrival]) -> None:
        self._connection = connection
        self._kind = kind
        # A completion becomes a log row: the traceback of a failure.
        self._storage = ROW_KINDS["logs" if kind == "completions" else kind]
        job_ids = {each.content.job_id for each in arrivals if each.content.job_id and each.content.source}
        with store.pipelined(connection) as driver:
            driver.execute(store.LOCK_BRIEFLY)
            lock = job_rows.JobLock(driver, job_ids)
            query = positions.PositionQuery(driver, named(kind, [each.content for each in arrivals]))
            driver.execute(store.SAVEPOINT)
        self._jobs = lock.jobs(connection)
        deleted = job_ids - self._jobs.keys()
        self._discarded = [each.content for each in arrivals if each.content.job_id in deleted]
        self._arrivals = in_order([each for each in arrivals if each.content.job_id not in deleted])
        self._jobs_before = {job_id: copy(job) for job_id, job in self._jobs.items()}
        contents = [each.content for each in self._arrivals]
        self._sources = Sources(connection, kind, contents, self._jobs, query.rows())
        self._unusable = job_rows.missing_checkpoints(connection, _named_checkpoints(contents))
        """(job, URI) of the checkpoints in completions for which verification has found no usable file."""
        self.duplicates = 0
        self.stored = 0
        self.letters: list[Rejected] = []
        self._messages: list[Message] = []
        self._changed_rows: dict[SourceKey, SourceRow] = {}

    def store(self, stream: str, max_invalid_ratio: float) -> None:
        """Write rows, job states, positions and dead letters.

        Raises `MostlyInvalid` if a larger share than `max_invalid_ratio` of at least `MOSTLY_INVALID_FROM` new
        entries cannot be stored.
        """
        self._store(self._new_messages())
        if self._kind == "completions":
            job_rows.load_results(self._connection, (job for job in self._jobs.values() if job.is_finished))
        new = self.stored + len(self.letters)
        if new >= MOSTLY_INVALID_FROM and len(self.letters) > max_invalid_ratio * new:
            first = self.letters[0]
            raise MostlyInvalid(
                f"{len(self.letters)} of {new} new entries of {stream} cannot be stored, the first "
                f"({first.raw.entry_id}) because: {first.detail}. Nothing was taken from the stream. Repair their "
                "sender or the workers, or set DRAIN_MAX_INVALID_RATIO=1 to send them to the dead letters"
            )
        store.save_dead_letters(self._connection, stream, self._kind, self.letters)
        self._changed_rows = self._sources.changed_rows()
        positions.save_positions(self._connection, self._changed_rows)
        discarded = Counter(content.job_id for content in self._discarded if content.job_id is not None)
        job_rows.note_discarded(self._connection, stream, discarded)

    def acks(self) -> list[Ack]:
        """Return the acknowledgements to publish once the caller has committed.

        They include the positions of all kinds for which a stored completion has counts: after a restore of
        Postgres to an older state, these may be lower than the acknowledgements that the trainer has. Messages of
        deleted jobs are acknowledged as well, so that trainers do not send them again.
        """
        last_seqs: dict[tuple[int, str], int] = defaultdict(int)
        for content in self._discarded:
            if content.job_id is not None and content.source is not None:
                source = content.job_id, content.source
                last_seqs[source] = max(last_seqs[source], last_seq_of(content))
        return [(*key, row.position) for key, row in self._changed_rows.items()] + [
            (job_id, source, self._kind, Position(last_seq, is_discarded=True))
            for (job_id, source), last_seq in last_seqs.items()
        ]

    @property
    def rows_written(self) -> int:
        """The number of rows that this batch has added to the table of its kind."""
        return sum(
            getattr(self._jobs[job_id], self._storage.last_seq) - getattr(before, self._storage.last_seq)
            for job_id, before in self._jobs_before.items()
        )

    def changes(self, traces: Mapping[int, str] = NO_TRACES) -> list[Change]:
        """Return one `Change` for each job of which a message was stored. Call it after the commit.

        `traces` has the `traceparent` of each job whose run is traced.
        """
        by_job: dict[int, list[Message]] = defaultdict(list)
        for message in self._messages:
            by_job[message.job_id].append(message)
        return [
            Change(
                self._kind,
                self._jobs_before[job_id],
                self._jobs[job_id],
                messages,
                self._sources.attempts,
                traces.get(job_id),
            )
            for job_id, messages in by_job.items()
        ]

    def _new_messages(self) -> list[Arrival]:
        """Add the message number of each entry to the position of its source; return the entries to store.

        Omitted are duplicates, which are counted, declarations of lost messages, which are recorded as ranges, and
        entries that go to the dead letters.
        """
        new = []
        for arrival in self._split_where_needed():
            content = arrival.content
            if content.job_id is None or content.source is None or content.seq is None:
                assert isinstance(content, Rejected)  # noqa: S101 - other contents have all three
                self.letters.append(content)
                continue
            position = self._sources.row(content.job_id, content.source, self._kind).position
            if problem := _problem_of(content, first_seq_of(content), position):
                self.letters.append(rejection(arrival, *problem))
            elif isinstance(content, Lost):
                if not position.lose(content.seq, content.last, content.reason):
                    self.duplicates += 1
            elif not position.accept(first_seq_of(content), content.seq):
                self.duplicates += 1
            elif isinstance(content, Rejected):
                self._dead_letter(content)
            else:
                new.append(arrival)
            if isinstance(content, Lost):
                self._sources.set_attempt_of_loss(content)
        return new

    def _split_where_needed(self) -> Iterator[Arrival]:
        """Yield the arrivals; an entry of several messages is split unless exactly these are expected next."""
        for arrival in self._arrivals:
            content = arrival.content
            if (
                not isinstance(content, Message)
                or not content.parts
                or self._sources.row(*_source(content), self._kind).position.last_seq + 1 == content.first
            ):
                yield arrival
            else:
                yield from split_arrival(arrival.raw, content)

    def _store(self, arrivals: Sequence[Arrival]) -> None:
        """Store `arrivals` in order.

        If Postgres refuses them, store each half separately, recursively; a single entry that is refused is
        dead-lettered.
        """
        if not arrivals:
            return
        ids = {arrival.content.job_id for arrival in arrivals}
        messages = [arrival.content for arrival in arrivals if isinstance(arrival.content, Message)]
        before = {job_id: copy(job) for job_id, job in self._jobs.items() if job_id in ids}
        attempts = dict(self._sources.attempts)
        try:
            with store.postgres_errors():
                self._write(messages, before)
        except (Refused, InvalidMessage) as exc:
            store.roll_back_batch(self._connection)
            self._jobs.update(before)
            self._sources.attempts = attempts
            if len(arrivals) == 1 and messages[0].parts:
                self._store([*split_arrival(arrivals[0].raw, messages[0])])
                return
            if len(arrivals) == 1:
                detail = f"Postgres refused this message: {exc}"
                self._dead_letter(rejection(arrivals[0], "refused", detail, messages[0].seq))
                return
            middle = len(arrivals) // 2
            self._store(arrivals[:middle])
            store.save_point(self._connection)
            self._store(arrivals[middle:])
        else:
            self.stored += len(arrivals)
            self._messages.extend(messages)
            for message in messages:
                self._sources.add_counts(message)

    def _write(self, messages: Sequence[Message], before: Mapping[int, JobState]) -> None:
        """COPY the rows of `messages`, apply the messages to their jobs, and write the jobs and attempts.

        `before` are the job states as they are in Postgres now, which include messages that were written earlier
        in this transaction.
        """
        earlier = job_rows.EarlierAttempts()
        with store.copying(self._connection, self._storage) as write_row:
            for message in messages:
                for row in self._fold(message, earlier):
                    write_row(row)
        if self._kind == "metrics":
            occurrences.save_reported_alerts(self._connection, messages, self._sources.attempt_of)
        jobs = [self._jobs[job_id] for job_id in {message.job_id for message in messages}]
        changed = job_rows.save_jobs(self._connection, jobs, before, self._storage.last_seq)
        changed = [job for job in changed if job_rows.has_changed(job, before[job.id])]
        job_rows.save_attempts(self._connection, changed + earlier.fold(self._connection))

    def _fold(self, message: Message, earlier: job_rows.EarlierAttempts) -> Iterable[rows.Row]:
        """Update the state of the job with one message; return the table rows to write for the message."""
        body, job = message.body, self._jobs[message.job_id]
        attempt = self._sources.attempt_of(message)
        row = self._sources.row(message.job_id, message.source, self._kind)
        row.note_place(body)
        if job.status == "pending" and _resumes(body):
            row.position.is_unknown_resume = True
        if isinstance(body, Completion):
            body = self._without_unusable_paths(job.id, body)
        is_stated = message.attempt != ATTEMPT_UNKNOWN
        earlier.note(job, body, attempt, is_stated)
        job.fold(body, attempt, is_stated=is_stated)
        self._sources.spans.note(job, body, attempt)
        stored = rows.log_lines(body) if isinstance(body, Completion) else body
        if stored is None:
            return []
        origin = rows.Origin(message.job_id, attempt, message.source, getattr(body, "rank", None))
        last_seq = getattr(job, self._storage.last_seq)
        count, new = rows.rows_of(origin, last_seq + 1, stored)
        setattr(job, self._storage.last_seq, last_seq + count)
        return new

    def _without_unusable_paths(self, job_id: int, body: Completion) -> Completion:
        """Return the completion without paths of checkpoints that have no usable file.

        The job then keeps its earlier paths.
        """
        named = {name: getattr(body, name) for name in FINAL_PATHS}
        left_out = {
            name: None for name, uri in named.items() if uri and (job_id, storable_text(uri)) in self._unusable
        }
        return replace(body, **left_out) if left_out else body

    def _dead_letter(self, letter: Rejected) -> None:
        """Add a message to the dead letters, and count it for its source.

        The position of the source must already contain the number of the message.
        """
        assert letter.job_id is not None and letter.source is not None  # noqa: S101, PT018 - had a position
        self._sources.row(letter.job_id, letter.source, self._kind).dead_lettered += 1
        self.letters.append(letter)


def _resumes(body: Body) -> bool:
    """Return whether the source of a message continues an earlier attempt of its job."""
    progress = body.progress if isinstance(body, Metrics) else None
    return body.resume_step is not None or (progress is not None and progress.resume_step is not None)


def _problem_of(content: Content, seq: int, position: Position) -> tuple[str, str] | None:
    """Return reason and detail for a dead letter if `seq` cannot be added to `position`; else return None."""
    is_lost = isinstance(content, Lost)
    if seq == position.last_seq + 1 and not is_lost:
        return None
    last = last_seq_of(content)
    if last > position.last_seq + MAX_JUMP:
        return "seq-jump", f"seq {seq} after {position.last_seq}: no trainer leaves out {MAX_JUMP:,} messages"
    if position.would_scatter(seq, last, lost=is_lost):
        return "scattered", f"seq {seq}: {MAX_RANGES:,} separate ranges of this source are missing or lost already"
    return None


def _named_checkpoints(contents: Iterable[Content]) -> set[tuple[int, str]]:
    """Return (job number, URI) of the best, last and final checkpoint paths in completions among `contents`."""
    return {
        (content.job_id, storable_text(uri))
        for content in contents
        if isinstance(content, Message) and isinstance(content.body, Completion)
        for uri in (getattr(content.body, name) for name in FINAL_PATHS)
        if uri
    }


def _source(message: Message) -> tuple[int, str]:
    return message.job_id, message.source
