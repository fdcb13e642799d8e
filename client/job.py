"""One job of a client: its state, metrics, log lines, checkpoints and events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from trainwire.client.arguments import check_path, check_text, checked_names, checked_whole
from trainwire.client.download import fetch
from trainwire.client.errors import ClientError
from trainwire.client.metrics import Metrics
from trainwire.client.records import CheckpointInfo, CompletenessInfo, JobInfo, StopInfo
from trainwire.client.source import PAGE_LINES, LogPage, LogQuery, MetricNames, Source
from trainwire.ingest.sanitize import shown
from trainwire.schemas.events import LogLine
from trainwire.schemas.lifted_metrics import COLUMN_OF
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID


class Job:
    """A job that a `Client` has read; `info` is its state at that time.

    `also_named` is the number of another job, if the reference by which this job was found (a number or `last`) is
    also that job's name.
    """

    def __init__(self, source: Source, info: JobInfo, also_named: int | None = None) -> None:
        self._source = source
        self.info = info
        self.also_named = also_named

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name or ''}: {self.status}>"

    @property
    def id(self) -> int:
        """The number of the job."""
        return self.info.id

    @property
    def name(self) -> str | None:
        """The name of the job; None if it has none."""
        return self.info.name

    @property
    def status(self) -> str:
        """The job's status at the time when it was read; `refresh` returns the current one."""
        return self.info.status

    def refresh(self) -> Job:
        """Read the job again; return a new `Job` with its current state."""
        return Job(self._source, self._source.job(self.id))

    def stop(self, reason: str = "", *, by: str | None = None) -> StopInfo:
        """Ask the trainers of a running job to stop, and return the recorded request (docs/stop.md).

        The trainers end by themselves after they have received the request; nothing is killed. A second request
        changes nothing. `by` names the person who asks, by default the user of this process; a gateway that
        requires tokens records the token's name instead. `reason` is recorded and sent to the trainers. Raises
        `ClientError` if the job has ended.
        """
        return self._source.stop(self.id, by, reason)

    def metrics(self, names: str | Iterable[str] = (), *, every_point: Literal[True] = True) -> Metrics:
        """Return all points of the metrics `names`, by default of all metrics; points are never sampled.

        `every_point` can only be True; write it to make this visible in the calling code.
        """
        if every_point is not True:
            raise ClientError(f"every_point={every_point!r}: all points are returned; write True or leave it out")
        wanted = checked_names(names)
        stored = [COLUMN_OF[name] for name in wanted if name in COLUMN_OF]
        return Metrics(self.id, self._source.metrics(self.id, [*wanted, *stored]))

    def logs(
        self,
        *,
        log_type: Literal["stdout", "stderr"] | None = None,
        level: str | None = None,
        rank: int | None = None,
        attempt: int | None = None,
        search: str | None = None,
        after: int = 0,
    ) -> Iterator[LogLine]:
        """Return an iterator over the matching stored log lines, in order and untruncated.

        Lines are fetched page by page, so lines that are stored meanwhile may be included. A condition of None
        matches every line; `search` is a part of the line, and ignores case. Only lines whose `seq` is above
        `after` are returned.
        """
        query = _log_query(log_type, level, rank, attempt, search)
        return self._lines(query, checked_whole("after", after) or 0)

    def _lines(self, query: LogQuery, after: int) -> Iterator[LogLine]:
        following: int | None = after
        while following is not None:
            page = self._source.logs(self.id, query, following)
            yield from page.lines
            following = page.next

    def log_page(
        self,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 500,
        log_type: Literal["stdout", "stderr"] | None = None,
        level: str | None = None,
        rank: int | None = None,
        attempt: int | None = None,
        search: str | None = None,
    ) -> LogPage:
        """Return one page of matching log lines: the first after `after`, or the last before `before`.

        If neither is given, the page has the newest lines. `limit` is at most 5,000; the conditions are those of
        `logs`. The page's `next` is the `after` or `before` of the next page, or None if there is none. A page may
        have no lines, and yet a `next`: a search pauses after 100,000 lines.
        """
        query = _log_query(log_type, level, rank, attempt, search)
        first, end = checked_whole("after", after), checked_whole("before", before)
        most = checked_whole("limit", limit, 1, PAGE_LINES) or PAGE_LINES
        if first is not None:
            if end is not None:
                raise ClientError(f"after={first} and before={end}: give one of them")
            return self._source.logs(self.id, query, first, most)
        return self._source.logs_before(self.id, query, MAX_ID if end is None else end, most)

    def seq_at(self, at: datetime) -> int | None:
        """Return the `seq` of the first log line that was logged at `at` or later; None if there is none.

        A datetime without a time zone is read as UTC.
        """
        if not isinstance(at, datetime):
            raise ClientError(f"at={shown(at)} is not a datetime")
        return self._source.seq_at(self.id, at if at.tzinfo else at.replace(tzinfo=UTC))

    def metric_names(self) -> MetricNames:
        """Return the names of the job's metrics, and whether the list is complete."""
        return self._source.metric_names(self.id)

    def provenance(self, attempt: int | None = None) -> dict[str, Any]:
        """Return the command, code version and machine of an attempt (docs/provenance.md), by default the newest.

        The result is empty if they are unknown.
        """
        return self._source.provenance(self.id, checked_whole("attempt", attempt, 0, MAX_ATTEMPT))

    def completeness(self) -> CompletenessInfo:
        """Return the counts of the job's messages, and the state of their sum, such as `complete`."""
        return self._source.completeness(self.id)

    def checkpoints(self) -> list[CheckpointInfo]:
        """Return all checkpoints, in the order in which they were stored."""
        return self._source.checkpoints(self.id)

    def download(self, which: str | int = "best", *, to: str | Path | None = None, force: bool = False) -> Path:
        """Download the file of a checkpoint to `to`; return its path. `which` is `best`, `last` or a `seq`.

        `to` is a file or a folder, by default the current folder. An existing file is replaced only if `force` is
        True. Size and SHA-256 are verified if they are recorded. Raises `ClientError` on failure; no partial file
        is left.
        """
        check_path("to", to)
        chosen = self.checkpoint(which)
        return fetch(self._source.checkpoint_url(self.id, chosen.seq), chosen, to, force=force)

    def follow(self) -> Iterator[dict[str, Any]]:
        """Yield the events of the job until it has ended: a `snapshot`, then new rows (docs/feed.md).

        If the connection ends, the client reconnects and continues after the last event. A client that reads from
        Postgres raises `ClientError`, because only a gateway sends events.
        """
        return self._source.follow(self.id)

    def checkpoint(self, which: str | int = "best") -> CheckpointInfo:
        """Return one checkpoint: `best`, `last`, or the one with this `seq`.

        Raises `ClientError` if there is none.
        """
        found = self.checkpoints()
        if which in ("best", "last"):
            named = [each for each in found if (each.is_best if which == "best" else each.is_last)]
        elif str(which).isdecimal() and int(which) <= MAX_ID:
            named = [each for each in found if each.seq == int(which)]
        else:
            raise ClientError(f"{which!r} is no checkpoint: write 'best', 'last' or the seq of one")
        if not named:
            seqs = ", ".join(str(each.seq) for each in found[-10:])
            newest = f"its newest are {seqs}" if seqs else "it has none"
            raise ClientError(f"job {self.id} has no checkpoint {which!r}: {newest}")
        return named[-1]


def _log_query(
    log_type: str | None, level: str | None, rank: int | None, attempt: int | None, search: str | None
) -> LogQuery:
    """Return a `LogQuery` with these conditions; raise `ClientError` if one has a wrong type or range."""
    check_text("log_type", log_type, ("stdout", "stderr"))
    check_text("level", level)
    check_text("search", search)
    number = checked_whole("attempt", attempt, -MAX_ATTEMPT, MAX_ATTEMPT)
    numbers = (checked_whole("rank", rank, 0, MAX_ATTEMPT), number)
    return LogQuery(log_type, level, *numbers, search)
