"""The entries of one transaction: who is new, in which order, into which rows, and what cannot be stored."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace
from sqlalchemy import Connection

from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.kinds import ROW_KINDS
from trainwire.schemas.messages import ATTEMPT_UNKNOWN, Completion, Message
from trainwire.schemas.times import to_datetime
from trainwire.schemas.validation import InvalidMessage
from trainwire.workers.drain import job_rows, rows, source_rows, store
from trainwire.workers.drain.attempts import AttemptSpans, EarlierAttempts, has_changed
from trainwire.workers.drain.changes import Change, log_lines
from trainwire.workers.drain.decoding import Lost, RawEntry, Rejected, visible
from trainwire.workers.drain.jobs import FINAL_PATHS, began_at
from trainwire.workers.drain.lifetimes import Lifetime
from trainwire.workers.drain.positions import MAX_RANGES, Position
from trainwire.workers.drain.source_rows import SourceKey, SourceRow
from trainwire.workers.drain.stream import Ack
from trainwire.workers.errors import MostlyInvalid, Refused

MAX_JUMP = 10**9
"""A gap beyond this is no gap but a mistake; believed, it would make the job's sum useless for good."""
MOSTLY_INVALID_FROM = 100
"""A batch with fewer new entries says nothing about a deploy."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One entry and what it was decoded to."""

    raw: RawEntry
    content: Message | Lost | Rejected


class Batch:
    """Stores arrivals of one kind through an open transaction; the caller commits."""

    def __init__(self, connection: Connection, kind: Kind, arrivals: Sequence[Arrival]) -> None:
        self._connection = connection
        self._kind = kind
        # A completion becomes a log row: the traceback of a failure.
        self._storage = ROW_KINDS["logs" if kind == "completions" else kind]
        contents = [arrival.content for arrival in arrivals]
        sources = {(said.job_id, said.source) for said in contents if said.job_id and said.source}
        self._jobs = job_rows.lock_jobs(connection, {job_id for job_id, _ in sources})
        deleted = {job_id for job_id, _ in sources} - self._jobs.keys()
        self._discarded = [said for said in contents if said.job_id in deleted]
        self._arrivals = in_order([arrival for arrival in arrivals if arrival.content.job_id not in deleted])
        sources = {source for source in sources if source[0] not in deleted}
        self._jobs_before = {job_id: copy(job) for job_id, job in self._jobs.items()}
        self._sources = source_rows.load_positions(connection, sources | _ended_by_others(contents))
        self._attempts = {(job_id, source): row.attempt for (job_id, source, _), row in self._sources.items()}
        unplaced = _jobs_of_unplaced(contents, self._attempts) & self._jobs.keys()
        self._spans = AttemptSpans(unplaced, job_rows.load_spans(connection, unplaced))
        self._unusable = job_rows.missing_checkpoints(connection, _named_checkpoints(contents))
        """(job, URI) of checkpoints that completions name and that verification has not found as recorded."""
        self._changed: set[SourceKey] = {(job_id, source, kind) for job_id, source in sources}
        self._ended = {
            (job_id, source)
            for (job_id, source, of), row in self._sources.items()
            if of == "completions" and row.position.received > row.dead_lettered
        }
        """Sources of which a completion of their own is stored."""
        self.duplicates = 0
        self.stored = 0
        self.letters: list[Rejected] = []
        self._messages: list[Message] = []

    def store(self, stream: str, max_invalid_ratio: float) -> None:
        """Write rows, job states, positions and dead letters.

        Raises `MostlyInvalid` when more than `max_invalid_ratio` of the new entries cannot be stored.
        """
        self._store(self._new_messages())
        if self._kind == "completions":
            job_rows.load_results(self._connection, (job for job in self._jobs.values() if job.is_finished))
        new = self.stored + len(self.letters)
        if new >= MOSTLY_INVALID_FROM and len(self.letters) > max_invalid_ratio * new:
            first = self.letters[0]
            raise MostlyInvalid(
                f"{len(self.letters)} of {new} new entries of {stream} cannot be stored, the first "
                f"({first.raw.entry_id}) because: {first.detail}. Nothing was taken from the stream. Mend what "
                "writes or reads it, or set DRAIN_MAX_INVALID_RATIO=1 to send them to the dead letters"
            )
        store.save_dead_letters(self._connection, stream, self._kind, self.letters)
        source_rows.save_positions(self._connection, self._settled_positions())
        discarded = Counter(said.job_id for said in self._discarded if said.job_id is not None)
        job_rows.note_discarded(self._connection, stream, discarded)

    def acks(self) -> list[Ack]:
        """Return how far each source of this batch is committed, once the caller has committed.

        A completion states how much there is of each kind. Their acks are published too: Postgres may have been
        restored to an older state since the last message of a kind, and then its trainer has to know. Messages of
        deleted jobs are acknowledged too, so that their senders stop to send them.
        """
        return [(*key, self._sources[key].position) for key in self._changed] + self._acks_of_deleted()

    def _acks_of_deleted(self) -> list[Ack]:
        last_seqs: dict[tuple[int, str], int] = defaultdict(int)
        for said in self._discarded:
            if said.job_id is not None and said.source is not None:
                source = said.job_id, said.source
                last_seq = said.last if isinstance(said, Lost) else said.seq or 0
                last_seqs[source] = max(last_seqs[source], last_seq)
        return [
            (job_id, source, self._kind, Position(last_seq, is_discarded=True))
            for (job_id, source), last_seq in last_seqs.items()
        ]

    @property
    def rows_written(self) -> int:
        """Number of rows that were written."""
        return sum(
            getattr(self._jobs[job_id], self._storage.last_seq) - getattr(before, self._storage.last_seq)
            for job_id, before in self._jobs_before.items()
        )

    def changes(self) -> list[Change]:
        """Return what this batch did to each job that it stored messages of, once the caller has committed."""
        by_job: dict[int, list[Message]] = defaultdict(list)
        for message in self._messages:
            by_job[message.job_id].append(message)
        return [
            Change(self._kind, self._jobs_before[job_id], self._jobs[job_id], messages, self._attempts)
            for job_id, messages in by_job.items()
        ]

    def _new_messages(self) -> list[Arrival]:
        """Tick off every arrival in its source's position; return those that are new and readable."""
        new = []
        for arrival in self._arrivals:
            said = arrival.content
            if said.job_id is None or said.source is None:
                assert isinstance(said, Rejected)  # noqa: S101 - a message always states both
                self.letters.append(said)
                continue
            row = self._source_row(said.job_id, said.source, self._kind)
            if said.seq is None:
                assert isinstance(said, Rejected)  # noqa: S101 - a message always states its number
                self.letters.append(said)
            elif isinstance(said, Lost):
                self._lose(arrival, said, row)
            elif said.seq > row.position.last_seq + MAX_JUMP:
                self.letters.append(_jumped(arrival, row.position.last_seq))
            elif row.position.would_scatter(said.seq, said.seq):
                self.letters.append(_scattered(arrival))
            elif not row.position.accept(said.seq):
                self.duplicates += 1
            elif isinstance(said, Rejected):
                self._dead_letter(said)
            else:
                new.append(arrival)
        return new

    def _lose(self, arrival: Arrival, lost: Lost, row: SourceRow) -> None:
        """Count what will never come; a number that has arrived stays stored."""
        if lost.last > row.position.last_seq + MAX_JUMP:
            self.letters.append(_jumped(arrival, row.position.last_seq))
        elif row.position.would_scatter(lost.seq, lost.last, lost=True):
            self.letters.append(_scattered(arrival))
        elif not row.position.lose(lost.seq, lost.last, lost.reason):
            self.duplicates += 1
        source = (lost.job_id, lost.source)
        lifetime = None if lost.began_ns is None else Lifetime(to_datetime(lost.began_ns))
        self._attempts[source] = self._attempt_of_source(source, lost.attempt, lifetime, lost.began_ns)

    def _source_row(self, job_id: int, source: str, kind: Kind) -> SourceRow:
        key = (job_id, source, kind)
        if key not in self._sources:
            self._sources[key] = SourceRow(self._attempts.get((job_id, source), 0), Position())
        return self._sources[key]

    def _store(self, arrivals: Sequence[Arrival]) -> None:
        """Store these in order; where Postgres refuses, halve until the refused ones stand alone."""
        if not arrivals:
            return
        ids = {arrival.content.job_id for arrival in arrivals}
        messages = [arrival.content for arrival in arrivals if isinstance(arrival.content, Message)]
        before = {job_id: copy(job) for job_id, job in self._jobs.items() if job_id in ids}
        attempts = dict(self._attempts)
        try:
            with store.postgres_errors(), self._connection.begin_nested():
                self._write(messages)
        except (Refused, InvalidMessage) as exc:
            self._jobs.update(before)
            self._attempts = attempts
            if len(arrivals) == 1:
                self._refuse(arrivals[0], str(exc))
                return
            middle = len(arrivals) // 2
            self._store(arrivals[:middle])
            self._store(arrivals[middle:])
        else:
            self.stored += len(arrivals)
            self._messages.extend(messages)
            for message in messages:
                self._note_counts(message)

    def _write(self, messages: Sequence[Message]) -> None:
        """Encode and COPY the rows of these messages, and fold them into their jobs."""
        earlier = EarlierAttempts()
        with store.copying(self._connection, self._storage) as write_row:
            for message in messages:
                for row in self._fold(message, earlier):
                    write_row(row)
        jobs = [self._jobs[job_id] for job_id in {said.job_id for said in messages}]
        job_rows.save_jobs(self._connection, jobs, self._jobs_before)
        changed = [job for job in jobs if has_changed(job, self._jobs_before[job.id])]
        job_rows.save_attempts(
            self._connection, changed + earlier.fold(partial(job_rows.load_attempts, self._connection))
        )

    def _fold(self, message: Message, earlier: EarlierAttempts) -> Iterable[rows.Row]:
        """Fold one message into its job; return its rows."""
        body, job = message.body, self._jobs[message.job_id]
        attempt = self._attempt_of(message)
        self._source_row(message.job_id, message.source, self._kind).note_place(body)
        if isinstance(body, Completion):
            body = self._without_unusable_paths(job.id, body)
        earlier.note(job, body, attempt)
        job.fold(body, attempt)
        self._spans.note(job, body, attempt)
        stored = log_lines(body) if isinstance(body, Completion) else body
        if stored is None:
            return []
        origin = rows.Origin(message.job_id, attempt, message.source, getattr(body, "rank", None))
        last_seq = getattr(job, self._storage.last_seq)
        count, new = rows.rows_of(origin, last_seq + 1, stored)
        setattr(job, self._storage.last_seq, last_seq + count)
        return new

    def _without_unusable_paths(self, job_id: int, body: Completion) -> Completion:
        """Return the completion without the paths of checkpoints that cannot be used: the job's paths stay."""
        named = {name: getattr(body, name) for name in FINAL_PATHS}
        left = {name: None for name, uri in named.items() if uri and (job_id, visible(uri)) in self._unusable}
        return replace(body, **left) if left else body

    def _attempt_of(self, message: Message) -> int:
        """Return the attempt that a message belongs to, and note it for the source; an inferred end moves none."""
        body, sender, of = message.body, (message.job_id, message.source), (message.job_id, _ending(message))
        if of == sender or of not in self._attempts:
            lifetime, began_ns = Lifetime.of(body), began_at(body)
            self._attempts[of] = self._attempt_of_source(of, message.attempt, lifetime, began_ns)
        self._attempts.setdefault(sender, self._attempts[of])
        return self._attempts[of]

    def _attempt_of_source(
        self, source: tuple[int, str], stated: int, lifetime: Lifetime | None, began_ns: int | None
    ) -> int:
        """Return the attempt of a source; `stated` is 0 where its trainer leaves that to the workers."""
        job, known = self._jobs[source[0]], self._attempts.get(source)
        if stated == ATTEMPT_UNKNOWN and known is None:
            known = self._spans.earlier_attempt(job, lifetime)
        return job.attempt_of_source(stated, known, began_ns)

    def _note_counts(self, message: Message) -> None:
        """Note how many messages a source made: the highest counts of its own completions, once these are stored.

        Those of inferred ends hold only until the first of them, which replaces them in every kind.
        """
        body = message.body
        if not isinstance(body, Completion):
            return
        job_id, source = message.job_id, _ending(message)
        if source != message.source:
            sender = self._source_row(job_id, message.source, self._kind)
            sender.produced = _highest(sender.produced, message.seq)  # of it there is no more than this
            if (job_id, source) in self._ended:
                return
        elif (job_id, source) not in self._ended:
            self._ended.add((job_id, source))
            self._forget_counts(job_id, source)
        for kind in KINDS:
            produced, dropped = (body.produced or {}).get(kind), (body.dropped or {}).get(kind)
            if kind == "completions" and not set(KINDS).issuperset(body.produced or ()):
                produced = (
                    None  # a kind that does not exist: the sum names the source, for something is not counted
                )
            if produced is None and dropped is None:
                continue
            row = self._source_row(job_id, source, kind)
            row.produced, row.dropped = _highest(row.produced, produced), _highest(row.dropped, dropped)
            self._changed.add((job_id, source, kind))

    def _forget_counts(self, job_id: int, source: str) -> None:
        """Clear the counts of an inferred end before those of the source's own completion are noted.

        An inferred end may state counts of kinds that the completion leaves out.
        """
        for kind in KINDS:
            row = self._sources.get((job_id, source, kind))
            if row is not None and (row.produced, row.dropped) != (None, None):
                row.produced = row.dropped = None
                self._changed.add((job_id, source, kind))

    def _refuse(self, arrival: Arrival, why: str) -> None:
        said = arrival.content
        detail = f"Postgres refused this message: {why}"
        self._dead_letter(
            Rejected(arrival.raw, "refused", detail, said.job_id, said.attempt, said.source, said.seq)
        )

    def _dead_letter(self, letter: Rejected) -> None:
        assert letter.job_id is not None and letter.source is not None  # noqa: S101, PT018 - had a position
        self._source_row(letter.job_id, letter.source, self._kind).dead_lettered += 1
        self.letters.append(letter)

    def _settled_positions(self) -> dict[SourceKey, SourceRow]:
        """Return the positions to save, each with the attempt that its source got."""
        changed = {key: self._sources[key] for key in self._changed}
        for (job_id, source, _), row in changed.items():
            row.attempt = self._attempts.get((job_id, source), self._jobs[job_id].attempt)
        return changed


def _jumped(arrival: Arrival, last_seq: int) -> Rejected:
    said = arrival.content
    detail = f"seq {said.seq} after {last_seq}: no trainer leaves out {MAX_JUMP:,} messages"
    return Rejected(arrival.raw, "seq-jump", detail, said.job_id, said.attempt, said.source)


def _scattered(arrival: Arrival) -> Rejected:
    said = arrival.content
    detail = f"seq {said.seq}: {MAX_RANGES:,} separate ranges of this source are missing or lost already"
    return Rejected(arrival.raw, "scattered", detail, said.job_id, said.attempt, said.source)


def _ended_by_others(contents: Iterable[Message | Lost | Rejected]) -> set[tuple[int, str]]:
    """Return the sources of which these messages infer that they have ended."""
    return {
        (said.job_id, visible(said.body.of))
        for said in contents
        if isinstance(said, Message) and isinstance(said.body, Completion) and said.body.of is not None
    }


def _jobs_of_unplaced(
    contents: Iterable[Message | Lost | Rejected], attempts: Mapping[tuple[int, str], int]
) -> set[int]:
    """Return the jobs with sources whose attempt neither is known nor stated."""
    return {
        said.job_id
        for said in contents
        if not isinstance(said, Rejected)
        and said.attempt == ATTEMPT_UNKNOWN
        and (said.job_id, _ending(said) if isinstance(said, Message) else said.source) not in attempts
    }


def _named_checkpoints(contents: Iterable[Message | Lost | Rejected]) -> set[tuple[int, str]]:
    """Return (job, URI) of the checkpoints that completions name."""
    return {
        (said.job_id, visible(uri))
        for said in contents
        if isinstance(said, Message) and isinstance(said.body, Completion)
        for uri in (getattr(said.body, name) for name in FINAL_PATHS)
        if uri
    }


def _ending(message: Message) -> str:
    """Return the source that a message is about: its own, or the one of which it infers the end."""
    body = message.body
    return message.source if not isinstance(body, Completion) or body.of is None else visible(body.of)


def _highest(*counts: int | None) -> int | None:
    return max((count for count in counts if count is not None), default=None)


def in_order(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Sort each source's arrivals by their numbers, among the places that the source has."""
    by_source: dict[tuple[int | None, str | None], list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_source[arrival.content.job_id, arrival.content.source].append(arrival)
    queues = {source: iter(sorted(queue, key=_seq)) for source, queue in by_source.items()}
    return [next(queues[arrival.content.job_id, arrival.content.source]) for arrival in arrivals]


def _seq(arrival: Arrival) -> int:
    return arrival.content.seq or 0
