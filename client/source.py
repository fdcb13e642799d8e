"""The requests of the client, which a gateway or a Postgres answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from trainwire.client.records import CheckpointInfo, JobInfo, StopInfo
from trainwire.schemas.events import LogLine
from trainwire.schemas.metric_download import MetricBlock


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
    """Lines in order, and the `seq` after which the next page begins; None on the last page."""

    lines: Sequence[LogLine]
    after: int | None


class Source(Protocol):
    """Answers the requests of the client; raises `ClientError`."""

    def jobs(self, filter: str | None, sort: str | None, most: int | None) -> Iterator[JobInfo]:  # noqa: A002
        """Yield matching jobs."""

    def find(self, reference: str) -> Candidates:
        """Return the jobs that a reference names."""

    def job(self, job_id: int) -> JobInfo:
        """Return a job; raise `JobNotFound`."""

    def stop(self, job_id: int, by: str | None, reason: str) -> StopInfo:
        """Ask the trainers of a job to stop; raise `JobNotFound`."""

    def metrics(self, job_id: int, names: Sequence[str]) -> Iterator[MetricBlock]:
        """Yield all points of these metrics, of all without names."""

    def logs(self, job_id: int, query: LogQuery, after: int) -> LogPage:
        """Return the first matching lines after `after`, uncut."""

    def checkpoints(self, job_id: int) -> list[CheckpointInfo]:
        """Return all checkpoints in the order of `seq`."""

    def checkpoint_url(self, job_id: int, seq: int) -> str:
        """Return a signed URL of a checkpoint's file."""

    def follow(self, job_id: int) -> Iterator[dict[str, Any]]:
        """Yield the events of a job as they come, until it has ended."""

    def close(self) -> None:
        """Close all connections."""
