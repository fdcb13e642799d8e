"""Reads straight from Postgres, where the packages of trainwire[worker] or trainwire[gateway] are installed."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from trainwire.client.errors import ClientError, JobNotFound
from trainwire.client.records import CheckpointInfo, JobInfo, StopInfo, record
from trainwire.client.source import Candidates, LogPage, LogQuery
from trainwire.schemas.filters.job_filter import parse_filter, parse_sort
from trainwire.schemas.filters.tokens import WrongFilter
from trainwire.schemas.metric_download import MetricBlock
from trainwire.schemas.migrations import WrongSchemaRevision, check_revision
from trainwire.schemas.times import to_ns
from trainwire.stores.postgres.checkpoints import (
    CheckpointFile,
    NotFetchable,
    find_checkpoints,
    find_object,
    newest_at,
)
from trainwire.stores.postgres.connections import open_engine, postgres_trouble
from trainwire.stores.postgres.job_pages import JobQuery, find_places, read_jobs
from trainwire.stores.postgres.job_references import find_referenced
from trainwire.stores.postgres.jobs import Job, find_job, removed_rows
from trainwire.stores.postgres.stop_requests import AlreadyEnded, UnknownJob, WrongText, request_stop
from trainwire.stores.rows.log_pages import LineFilter, next_piece
from trainwire.stores.rows.packed_metrics import read_packed_metrics
from trainwire.stores.settings import StoreSettings, WrongSettings, read_settings, shown_servers

PAGE_JOBS: Final = 200
URL_VALID_S: Final = 3600
UNUSED_REDIS_URL: Final = "redis://localhost:6379/0"
"""The settings require a Redis; the client uses none."""


class PostgresSource:
    """The Postgres at `database_url`; it only reads, except to ask a training to stop."""

    def __init__(self, database_url: str) -> None:
        try:
            self._settings = read_settings(StoreSettings, database_url=database_url, redis_url=UNUSED_REDIS_URL)
        except WrongSettings as exc:
            raise ClientError(str(exc)) from exc
        self._engine = open_engine(self._settings, name="trainwire-client")
        self._is_checked = False

    def __repr__(self) -> str:
        return f"PostgresSource({shown_servers(self._settings.sqlalchemy_url())!r})"

    def jobs(self, filter: str | None, sort: str | None, most: int | None) -> Iterator[JobInfo]:  # noqa: A002
        """Yield matching jobs, page by page."""
        now = datetime.now(UTC)
        try:
            where = parse_filter(filter, now) if filter else None
            order = parse_sort(sort) if sort else None
        except WrongFilter as exc:
            raise ClientError(f"filter={filter!r}, sort={sort!r}: {exc}") from exc
        query = JobQuery(where=where, sort=order, now=now)
        left = most
        while left is None or left > 0:
            limit = PAGE_JOBS if left is None else min(PAGE_JOBS, left)
            with self._reading() as connection:
                places = find_places(connection, query, limit)
                found = read_jobs(connection, [place.job_id for place in places])
            yield from map(_job_info, found)
            if len(places) < limit:
                return
            left = None if left is None else left - len(places)
            query = msgspec.structs.replace(query, after=places[-1])

    def find(self, reference: str) -> Candidates:
        """Return the jobs that a reference names."""
        with self._reading() as connection:
            found = find_referenced(connection, reference)
        jobs = [(job.id, job.name, job.status) for job in found.jobs]
        return Candidates(jobs, found.total, found.also_named)

    def job(self, job_id: int) -> JobInfo:
        """Return a job; raise `JobNotFound`."""
        with self._reading() as connection:
            return _job_info(_known(connection, job_id))

    def stop(self, job_id: int, by: str | None, reason: str) -> StopInfo:
        """Ask the trainers of a job to stop; `by` is by default the user of this process."""
        try:
            with self._reading(), self._engine.begin() as connection:
                found = request_stop(connection, job_id, getpass.getuser() if by is None else by, reason)
        except UnknownJob as exc:
            raise JobNotFound(f"no job {job_id} in the database: client.jobs() yields what there is") from exc
        except (AlreadyEnded, WrongText) as exc:
            raise ClientError(str(exc)) from exc
        return record(StopInfo, {name: getattr(found, name) for name in StopInfo.__struct_fields__})

    def metrics(self, job_id: int, names: Sequence[str]) -> Iterator[MetricBlock]:
        """Yield all points of these metrics, of all without names."""
        with self._reading() as connection:
            last = _known(connection, job_id).last_metric_seq
            removed = removed_rows(connection, job_id)["metrics"]
        with self._errors():
            yield from read_packed_metrics(self._engine, job_id, names, removed, last)

    def logs(self, job_id: int, query: LogQuery, after: int) -> LogPage:
        """Return the first matching lines after `after`."""
        wanted = LineFilter(
            job_id=job_id,
            log_type=query.log_type,
            level=query.level,
            rank=query.rank,
            attempt=query.attempt,
            text=query.search,
        )
        with self._reading() as connection:
            last = _known(connection, job_id).last_log_seq
            lines, following = next_piece(connection, wanted, after, last)
        return LogPage(lines, following if following < last else None)

    def checkpoints(self, job_id: int) -> list[CheckpointInfo]:
        """Return all checkpoints in the order of `seq`."""
        with self._reading() as connection:
            job = _known(connection, job_id)
            files = find_checkpoints(connection, job_id)
        best, last = newest_at(files, job.best_checkpoint_path), newest_at(files, job.last_checkpoint_path)
        return [_checkpoint(file, is_best=file.seq == best, is_last=file.seq == last) for file in files]

    def checkpoint_url(self, job_id: int, seq: int) -> str:
        """Return a signed URL of a checkpoint's file."""
        from trainwire.stores.files.s3 import S3Unavailable, open_s3  # noqa: PLC0415 - boto3 is slow to import

        with self._reading() as connection:
            try:
                uri = find_object(connection, job_id, seq)
            except NotFetchable as exc:
                raise ClientError(str(exc)) from exc
        try:
            return open_s3().presign(uri, URL_VALID_S)
        except S3Unavailable as exc:
            raise ClientError(str(exc)) from exc

    def follow(self, job_id: int) -> Iterator[dict[str, Any]]:
        """Raise `ClientError`: the gateway has the live feed."""
        raise ClientError(
            f"job {job_id} cannot be followed in Postgres: give the gateway's url, or set TRAINWIRE_URL"
        )

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._errors():
            if not self._is_checked:
                with self._engine.connect() as connection:
                    check_revision(connection)
                self._is_checked = True
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as exc:
            raise ClientError(f"Postgres at {self!r}: {postgres_trouble(exc)}: check DATABASE_URL") from exc
        except UnicodeEncodeError as exc:
            raise ClientError(f"{exc.object[:100]!r} has an invalid character: remove it") from exc
        except (SQLAlchemyError, WrongSchemaRevision) as exc:
            raise ClientError(f"Postgres at {self!r}: {exc}") from exc


def _known(connection: Connection, job_id: int) -> Job:
    job = find_job(connection, job_id)
    if job is None:
        raise JobNotFound(f"no job {job_id} in the database: client.jobs() yields what there is")
    return job


def _job_info(job: Job) -> JobInfo:
    fields = {name: getattr(job, name) for name in JobInfo.__struct_fields__ if name != "rows"}
    return record(JobInfo, fields | {"rows": job.rows})


def _checkpoint(file: CheckpointFile, *, is_best: bool, is_last: bool) -> CheckpointInfo:
    same = ("seq", "attempt", "uri", "state", "epoch", "step", "size_bytes", "sha256", "metrics")
    fields = {name: getattr(file, name) for name in same}
    about = {"ts": to_ns(file.logged_at), "checkpoint_kind": file.kind, "is_best": is_best, "is_last": is_last}
    return record(CheckpointInfo, fields | about)
