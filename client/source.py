"""The interface `Source`: the requests of the client that a gateway or a Postgres answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from trainwire.client.records import CheckpointInfo, CompletenessInfo, JobInfo, StopInfo
from trainwire.schemas.events import LogLine
from trainwire.schemas.metric_download import MetricBlock

PAGE_LINES: Final = 5000
MOST_READS_OF_NAMES: Final = 20
"""Largest number of requests for the names of a large job; each reads older rows for half a second."""


class JobQuery(NamedTuple):
    """The jobs to list: a filter, a sort order, and the fields to return with each job (docs/filters.md)."""

    filter: str | None = None
    sort: str | None = None
    columns: Sequence[str] = ()


class JobPage(NamedTuple):
    """One page of jobs, in the requested order.

    `next` is the cursor of the next page, None on the last page. `total` is the number of all matching jobs; only
    the first page has it.
    """

    jobs: Sequence[JobInfo]
    next: str | None
    total: int | None


class MetricNames(NamedTuple):
    """The sorted names of a job's metrics; `is_complete` is False if a large job may have further names."""

    names: Sequence[str]
    is_complete: bool


class Candidates(NamedTuple):
    """The jobs that match a reference (a number, a name, the beginning of either, or `last`).

    `jobs` has (number, name, status) of the newest matches, `total` is the number of all matches. `also_named` is
    the number of another job whose name equals the number or `last` in the reference.
    """

    jobs: Sequence[tuple[int, str | None, str]]
    total: int
    also_named: int | None


class LogQuery(NamedTuple):
    """Conditions that log lines must meet; None means no condition. `search` ignores case."""

    log_type: str | None = None
    level: str | None = None
    rank: int | None = None
    attempt: int | None = None
    search: str | None = None


class LogPage(NamedTuple):
    """One page of log lines, in order.

    `next` is the `after` or `before` with which the next page in the same direction is read; None on the last
    page.
    """

    lines: Sequence[LogLine]
    next: int | None


class Source(Protocol):
    """A server that answers the requests of the client: a gateway or a Postgres.

    The methods raise `ClientError` if the server does not respond or rejects the request, and `JobNotFound` if
    there is no such job.
    """

    def jobs(self, query: JobQuery, limit: int, cursor: str | None) -> JobPage:
        """Return at most `limit` of the jobs that match `query`, from `cursor` on."""

    def fields(self) -> dict[str, list[str]]:
        """Return the names that filters can use, by kind (`jobs`, `params`, `tags`, `metrics`)."""

    def find(self, reference: str) -> Candidates:
        """Return the jobs that match `reference`: a number, a name, the beginning of either, or `last`."""

    def job(self, job_id: int) -> JobInfo:
        """Return the state of a job; raise `JobNotFound` if it does not exist."""

    def stop(self, job_id: int, by: str | None, reason: str) -> StopInfo:
        """Ask the trainers of a job to stop, in the name of `by`; raise `ClientError` if the job has ended."""

    def metrics(self, job_id: int, names: Sequence[str]) -> Iterator[MetricBlock]:
        """Yield blocks with all points of the metrics `names`, or of all metrics if `names` is empty."""

    def metric_names(self, job_id: int) -> MetricNames:
        """Return the names of a job's metrics, and whether the list is complete.

        Older rows are read until all names are known, at most MOST_READS_OF_NAMES times.
        """

    def provenance(self, job_id: int, attempt: int | None) -> dict[str, Any]:
        """Return the command, code version and machine of an attempt, by default the newest; empty if unknown."""

    def completeness(self, job_id: int) -> CompletenessInfo:
        """Return the counts of a job's messages, and the state of their sum, such as `complete`."""

    def logs(self, job_id: int, query: LogQuery, after: int, limit: int = PAGE_LINES) -> LogPage:
        """Return the first matching lines with `seq` > `after`, at most `limit`, untruncated."""

    def logs_before(self, job_id: int, query: LogQuery, before: int, limit: int) -> LogPage:
        """Return the last matching lines with `seq` < `before`, at most `limit`, oldest first, untruncated."""

    def seq_at(self, job_id: int, at: datetime) -> int | None:
        """Return the sequence number of the first log line logged at `at` or later; None if there is none."""

    def checkpoints(self, job_id: int) -> list[CheckpointInfo]:
        """Return all checkpoints of a job in the order of their sequence numbers."""

    def checkpoint_url(self, job_id: int, seq: int) -> str:
        """Return a signed URL from which a checkpoint's file can be downloaded."""

    def follow(self, job_id: int) -> Iterator[dict[str, Any]]:
        """Yield the events of a job as they arrive, until the job has ended."""

    def close(self) -> None:
        """Close all connections."""
