"""One job: its state, metrics, log, checkpoints and events."""

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
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID


class Job:
    """A job of a `Client`; `info` is its state when it was read.

    `also_named` is the number of another job whose name is the reference that this one was found by.
    """

    def __init__(self, source: Source, info: JobInfo, also_named: int | None = None) -> None:
        self._source = source
        self.info = info
        self.also_named = also_named

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name or ''}: {self.status}>"

    @property
    def id(self) -> int:
        """The job's number."""
        return self.info.id

    @property
    def name(self) -> str | None:
        """The job's name."""
        return self.info.name

    @property
    def status(self) -> str:
        """The status when the job was read; `refresh` reads it again."""
        return self.info.status

    def refresh(self) -> Job:
        """Return the job as it is now."""
        return Job(self._source, self._source.job(self.id))

    def stop(self, reason: str = "", *, by: str | None = None) -> StopInfo:
        """Ask the trainers of a running job to stop, and return the request (docs/stop.md).

        They end by themselves, once they have received it; a second request changes nothing. `by` is the name of
        who asks, by default the user of this process; a gateway with tokens takes the token's name. Raises
        `ClientError` if the job has ended.
        """
        return self._source.stop(self.id, by, reason)

    def metrics(self, names: str | Iterable[str] = (), *, every_point: Literal[True] = True) -> Metrics:
        """Return all points of these metrics, by default of all; they are never sampled.

        `every_point` documents that in code that reads it; no other value exists.
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
        """Return all matching lines that are there now, in order and whole, read as they are needed.

        `search` ignores case; `after` is the `seq` of the line before the first.
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
        """Return one page: the first matching lines after `after`, else the last ones before `before`.

        With neither, the newest lines. At most 5,000. The page's `next` is the `after` or `before` of the next
        page; None if there is none. A page may have no lines and a `next`: 500,000 lines were searched.
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
        """Return the `seq` of the first line of this time (UTC without a zone) or later; None: there is none."""
        if not isinstance(at, datetime):
            raise ClientError(f"at={shown(at)} is not a datetime")
        return self._source.seq_at(self.id, at if at.tzinfo else at.replace(tzinfo=UTC))

    def metric_names(self) -> MetricNames:
        """Return the names of all metrics, as `names` and `is_complete`."""
        return self._source.metric_names(self.id)

    def provenance(self, attempt: int | None = None) -> dict[str, Any]:
        """Return command, code and machine of an attempt, by default of the newest (docs/provenance.md)."""
        return self._source.provenance(self.id, checked_whole("attempt", attempt, 0, MAX_ATTEMPT))

    def completeness(self) -> CompletenessInfo:
        """Return whether all messages of the job are stored."""
        return self._source.completeness(self.id)

    def checkpoints(self) -> list[CheckpointInfo]:
        """Return all checkpoints, in the order in which they were stored."""
        return self._source.checkpoints(self.id)

    def download(self, which: str | int = "best", *, to: str | Path | None = None, force: bool = False) -> Path:
        """Download the file of a checkpoint, `best`, `last` or its `seq`; return its path.

        Size and SHA-256 are checked where they are recorded. `to` is a file or a folder, by default this folder;
        an existing file is replaced with `force` only. Raises `ClientError`, and then leaves no file.
        """
        check_path("to", to)
        chosen = self._chosen(which)
        return fetch(self._source.checkpoint_url(self.id, chosen.seq), chosen, to, force=force)

    def follow(self) -> Iterator[dict[str, Any]]:
        """Return the events of the job until it has ended: a `snapshot`, then new rows (docs/feed.md).

        A connection that ends is made again, and goes on where it was. Needs a gateway.
        """
        return self._source.follow(self.id)

    def _chosen(self, which: str | int) -> CheckpointInfo:
        found = self.checkpoints()
        if which in ("best", "last"):
            named = [each for each in found if (each.is_best if which == "best" else each.is_last)]
        elif str(which).isdecimal() and int(which) <= MAX_ID:
            named = [each for each in found if each.seq == int(which)]
        else:
            raise ClientError(f"{which!r} is no checkpoint: write 'best', 'last' or the seq of one")
        if not named:
            seqs = ", ".join(str(each.seq) for each in found[-10:]) or "none"
            raise ClientError(f"job {self.id} has no checkpoint {which!r}: its newest are {seqs}")
        return named[-1]


def _log_query(
    log_type: str | None, level: str | None, rank: int | None, attempt: int | None, search: str | None
) -> LogQuery:
    """Return the query with these filters. Raises `ClientError` for an argument of another type or range."""
    check_text("log_type", log_type, ("stdout", "stderr"))
    check_text("level", level)
    check_text("search", search)
    numbers = (checked_whole("rank", rank, 0, MAX_ATTEMPT), checked_whole("attempt", attempt, 0, MAX_ATTEMPT))
    return LogQuery(log_type, level, *numbers, search)
