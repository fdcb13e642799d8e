"""The sum of a job's messages: produced = stored + dead-lettered + missing + lost + dropped.

docs/concepts.md explains the states of the sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection

from trainwire.schemas.completeness_states import State
from trainwire.schemas.wire.messages import FINISHED, Status
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.postgres.source_positions import (
    AbsentRanks,
    SharedRank,
    SourcePosition,
    absent_ranks,
    count_numbers,
    find_positions,
    find_unnumbered,
    shared_ranks,
)

SHOWN_RANGES: Final = 10
SHOWN_SOURCES: Final = 5


@dataclass(frozen=True)
class Completeness:
    """The sum of a job's messages, and the sources and ranks that may have produced further messages.

    `gaps` and `losses` are the positions with missing and with lost messages.
    """

    produced: int
    stored: int
    dead_lettered: int
    missing: int
    dropped: int
    gaps: tuple[SourcePosition, ...]
    status: Status
    attempt: int
    open_sources: tuple[str, ...]
    """Sources of the newest attempt that have not ended, so they may send more; empty if the attempt is lost."""
    silent_sources: tuple[str, ...]
    """Other sources that have sent no completion themselves, so they may have produced more messages."""
    lost: int = 0
    """Number of messages that their trainers cannot send again, for example after a restore of Postgres."""
    lost_by_reason: Mapping[str, int] = field(default_factory=dict)
    losses: tuple[SourcePosition, ...] = ()
    absent_ranks: tuple[AbsentRanks, ...] = ()
    """Ranks that have not sent any message, although they may have produced some."""
    uncounted_sources: tuple[str, ...] = ()
    """Sources whose completion has no count for some kind that they sent, so they may have produced more messages.
    """
    unnumbered: Mapping[str, int] = field(default_factory=dict)
    """Source -> number of its dead letters without a valid message number, which are not part of the sum."""
    shared_ranks: tuple[SharedRank, ...] = ()
    """Ranks that several trainers had at the same time, so that their messages are mixed in one attempt."""

    @property
    def state(self) -> State:
        """The state of the sum: the first of these that applies.

        `open`: the attempt or one of its sources has not ended, or no message is known. `incomplete`: numbered
        messages have not arrived. `unproven`: all numbered messages have arrived, but there may be more.
        `accounted`: some messages are dead-lettered, lost or dropped. `complete`: all messages are stored.
        """
        is_over = self.status == "lost" or (self.status in FINISHED and not self.open_sources)
        if not is_over or not self.produced:
            return "open"
        if self.missing:
            return "incomplete"
        doubts = (self.silent_sources, self.uncounted_sources, self.absent_ranks, self.unnumbered)
        if any(doubts) or self.status == "lost":
            return "unproven"
        return "accounted" if self.dead_lettered or self.lost or self.dropped else "complete"

    @property
    def document(self) -> dict[str, Any]:
        """The sum as a JSON document, the same from `trainwire status --json` and from the gateway."""
        return {
            "state": self.state,
            "status": self.status,
            "line": self.line,
            "produced": self.produced,
            "stored": self.stored,
            "dead_lettered": self.dead_lettered,
            "missing": self.missing,
            "lost": dict(self.lost_by_reason),
            "dropped": self.dropped,
            "gaps": [{"source": row.source, "kind": row.kind, "ranges": row.gaps} for row in self.gaps],
            "losses": [{"source": row.source, "kind": row.kind, "ranges": row.lost} for row in self.losses],
            "open_sources": self.open_sources,
            "silent_sources": self.silent_sources,
            "absent_ranks": [asdict(ranks) for ranks in self.absent_ranks],
            "shared_ranks": [asdict(rank) for rank in self.shared_ranks],
        }

    @property
    def line(self) -> str:
        """The sum as one line of text, with the numbers of missing and lost messages.

        At most SHOWN_SOURCES sources, and SHOWN_RANGES ranges of each, are listed.
        """
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.lost_by_reason.items())
        lost = f"{self.lost:,} lost ({reasons}) + " if self.lost else ""
        total = (
            f"{self.produced:,} messages produced = {self.stored:,} stored + "
            f"{self.dead_lettered:,} dead-lettered + {self.missing:,} missing + {lost}{self.dropped:,} dropped"
        )
        details = (
            ("missing", [f"{row.kind} of {row.source}: {shown_ranges(row.gaps)}" for row in self.gaps], "; "),
            (
                "lost",
                [f"{row.kind} of {row.source}: {shown_ranges(row.lost_ranges)}" for row in self.losses],
                "; ",
            ),
            ("ended without a completion", self.silent_sources, ", "),
            ("not reported", [ranks.shown(self.attempt) for ranks in self.absent_ranks], "; "),
            ("completed without `produced` of every kind", self.uncounted_sources, ", "),
            ("trainers at the same time", [rank.shown(self.attempt) for rank in self.shared_ranks], "; "),
            ("dead letters beyond the sum", [f"{n:,} of {source}" for source, n in self.unnumbered.items()], ", "),
        )
        shown = [f"; {title}: {_listed(items, separator)}" for title, items, separator in details if items]
        return f"{self.state}: {total}{''.join(shown)}"


def assess(
    positions: Iterable[SourcePosition],
    attempt: int,
    status: Status,
    unnumbered: Mapping[str, int] | None = None,
    now: datetime | None = None,
) -> Completeness:
    """Compute the sum of a job's messages from the positions of its sources.

    `attempt` and `status` are those of the job's newest attempt. `unnumbered` maps a source to the number of its
    dead letters that have no message number. `now` is the time by the clock of Postgres.
    """
    rows = sorted(positions, key=lambda row: (row.source, row.kind))
    ended = {row.source for row in rows if row.has_completion}
    # Their end was inferred by the process that sent their spooled messages.
    killed = {row.source for row in rows if row.produced is not None} - ended
    quiet = {row.source for row in rows} - ended - killed
    uncounted = {row.source for row in rows if row.last_seq and row.produced is None} & ended
    # No more is expected of a lost attempt, nor of one that was followed by another.
    open_sources = {row.source for row in rows if row.attempt >= attempt} & quiet if status != "lost" else set()
    made = sum(row.made for row in rows)
    missing = sum(count_numbers(row.gaps) for row in rows)
    dead_lettered = sum(row.dead_lettered for row in rows)
    dropped = sum(row.dropped or 0 for row in rows)
    lost_by_reason = Counter[str]()
    for row in rows:
        for first, last, reason in row.lost:
            lost_by_reason[reason] += last - first + 1
    lost = lost_by_reason.total()
    return Completeness(
        # Items are dropped before they are numbered, so they are not among the numbered ones.
        produced=made + dropped,
        stored=made - missing - dead_lettered - lost,
        dead_lettered=dead_lettered,
        missing=missing,
        dropped=dropped,
        lost=lost,
        lost_by_reason=lost_by_reason,
        losses=tuple(row for row in rows if row.lost),
        gaps=tuple(row for row in rows if row.gaps),
        status=status,
        attempt=attempt,
        open_sources=tuple(sorted(open_sources)),
        silent_sources=tuple(sorted(killed | quiet - open_sources)),
        absent_ranks=absent_ranks(rows),
        uncounted_sources=tuple(sorted(uncounted)),
        unnumbered=unnumbered or {},
        shared_ranks=shared_ranks(rows, now or datetime.now(UTC)),
    )


def shown_ranges(ranges: Sequence[tuple[int, int]]) -> str:
    """Format ranges as text, such as `7, 9-12`; of more than SHOWN_RANGES ranges, the others are only counted."""
    named = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:SHOWN_RANGES]]
    more = len(ranges) - SHOWN_RANGES
    return ", ".join(named) + (f" and {more:,} more" if more > 0 else "")


def _listed(named: Sequence[str], separator: str) -> str:
    more = len(named) - SHOWN_SOURCES
    return separator.join(named[:SHOWN_SOURCES]) + (f" and {more:,} more" if more > 0 else "")


def find_completeness(connection: Connection, job: Job) -> Completeness:
    """Read the positions of a job's sources, and return the sum of its messages."""
    positions, unnumbered = find_positions(connection, job.id), find_unnumbered(connection, job.id)
    return assess(positions, job.attempt, job.status, unnumbered)
