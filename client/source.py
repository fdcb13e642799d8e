"""The requests of the client, which a gateway or a Postgres answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from trainwire.client.records import CheckpointInfo, CompletenessInfo, JobInfo, StopInfo
from trainwire.schemas.events import LogLine
from trainwire.schemas.metric_download import MetricBlock

PAGE_LINES: Final = 5000
MOST_READS_OF_NAMES: Final = 20
"""Each reads older rows of a large job for half a second, until the names of all are known."""


class JobQuery(NamedTuple):
    """A filter, a sort order and the fields to return with each job (docs/filters.md)."""

    filter: str | None = None
    sort: str | None = None
    columns: Sequence[str] = ()


class JobPage(NamedTuple):
    """Jobs in order, the cursor of the next page (None on the last), and how many match, on the first page."""

    jobs: Sequence[JobInfo]
    next: str | None
    total: int | None


class MetricNames(NamedTuple):
    """Sorted names of metrics; not complete where a large job has more."""

    names: Sequence[str]
    is_complete: bool


class Candidates(NamedTuple):
    """The newest jobs that a reference names, as (number, name, status), and how many there are.

    `also_named` is the number of another job, which has this number or `last` as its name.
    """

    jobs: Sequence[tuple[int, str | None, str]]
    total: int
    also_named: int | None


class LogQuery(NamedTuple):
    """Conditions on lines; None is no condition. `search` ignores case."""

    log_type: str | None = None
    level: str | None = None
    rank: int | None = None
    attempt: int | None = None
    search: str | None = None


class LogPage(NamedTuple):
    """Lines in order, and the `after` or `before` of the next page in the same direction; None on the last."""

    lines: Sequence[LogLine]
    next: int | None


class Source(Protocol):
    """Answers the requests of the client; raises `ClientError`."""

    def jobs(self, query: JobQuery, limit: int, cursor: str | None) -> JobPage:
        """Return one page of jobs."""

    def fields(self) -> dict[str, list[str]]:
        """Return the fields of all jobs, and the names that the newest jobs have."""

    def find(self, reference: str) -> Candidates:
        """Return the jobs that a reference names."""

    def job(self, job_id: int) -> JobInfo:
        """Return a job; raise `JobNotFound`."""

    def stop(self, job_id: int, by: str | None, reason: str) -> StopInfo:
        """Ask the trainers of a job to stop; raise `JobNotFound`."""

    def metrics(self, job_id: int, names: Sequence[str]) -> Iterator[MetricBlock]:
        """Yield all points of these metrics, of all without names."""

    def metric_names(self, job_id: int) -> MetricNames:
        """Return the names of all metrics."""

    def provenance(self, job_id: int, attempt: int | None) -> dict[str, Any]:
        """Return command, code and machine of an attempt, by default of the newest."""

    def completeness(self, job_id: int) -> CompletenessInfo:
        """Return whether all messages are stored."""

    def logs(self, job_id: int, query: LogQuery, after: int, limit: int = PAGE_LINES) -> LogPage:
        """Return the first matching lines after `after`, uncut."""

    def logs_before(self, job_id: int, query: LogQuery, before: int, limit: int) -> LogPage:
        """Return the last matching lines before `before`, oldest first, uncut."""

    def seq_at(self, job_id: int, at: datetime) -> int | None:
        """Return the first line of that time or later; None if there is none."""

    def checkpoints(self, job_id: int) -> list[CheckpointInfo]:
        """Return all checkpoints in the order of `seq`."""

    def checkpoint_url(self, job_id: int, seq: int) -> str:
        """Return a signed URL of a checkpoint's file."""

    def follow(self, job_id: int) -> Iterator[dict[str, Any]]:
        """Yield the events of a job as they come, until it has ended."""

    def close(self) -> None:
        """Close all connections."""
