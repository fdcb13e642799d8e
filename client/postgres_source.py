"""Reads jobs directly from Postgres; needs the packages of trainwire[worker] or trainwire[gateway]."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError

from trainwire.client.errors import ClientError, JobNotFound
from trainwire.client.records import CheckpointInfo, CompletenessInfo, JobInfo, StopInfo, record
from trainwire.client.source import (
    MOST_READS_OF_NAMES,
    PAGE_LINES,
    Candidates,
    JobPage,
    JobQuery,
    LogPage,
    LogQuery,
    MetricNames,
)
from trainwire.schemas.filters.job_filter import parse_fields, parse_filter, parse_sort
from trainwire.schemas.filters.tokens import WrongFilter
from trainwire.schemas.metric_download import MetricBlock
from trainwire.schemas.migrations import WrongSchemaRevision, check_revision
from trainwire.schemas.times import to_ns
from trainwire.stores.local_user import local_user
from trainwire.stores.postgres.checkpoints import (
    CheckpointFile,
    NotFetchable,
    find_checkpoints,
    find_object,
    newest_at,
)
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.connections import open_engine, postgres_trouble
from trainwire.stores.postgres.jobs.attempts import find_provenance
from trainwire.stores.postgres.jobs.job_lookup import Job, find_job, removed_rows
from trainwire.stores.postgres.jobs.job_pages import (
    JobPlace,
    count_jobs,
    find_places,
    place_fields,
    place_from,
    read_columns,
    read_jobs,
)
from trainwire.stores.postgres.jobs.job_pages import JobQuery as PlaceQuery
from trainwire.stores.postgres.jobs.job_references import find_referenced
from trainwire.stores.postgres.jobs.stop_requests import AlreadyEnded, UnknownJob, request_stop
from trainwire.stores.postgres.jobs.user_texts import WrongText
from trainwire.stores.rows import metric_names
from trainwire.stores.rows.field_names import field_names
from trainwire.stores.rows.log_pages import LineFilter, newest_page, next_page, seq_at
from trainwire.stores.rows.packed_metrics import read_packed_metrics
from trainwire.stores.rows.sparklines import LAST_ROWS, LAST_ROWS_IN_LISTS, last_values
from trainwire.stores.rows.tracebacks import find_traceback
from trainwire.stores.settings import StoreSettings, WrongSettings, read_settings, shown_servers

URL_VALID_S: Final = 3600
UNUSED_REDIS_URL: Final = "redis://localhost:6379/0"
"""The settings require a Redis; the client uses none."""


class PostgresSource:
    """Answers the client's requests (`Source`) from the Postgres at `database_url`; only `stop` writes to it."""

    def __init__(self, database_url: str) -> None:
        try:
            self._settings = read_settings(StoreSettings, database_url=database_url, redis_url=UNUSED_REDIS_URL)
        except WrongSettings as exc:
            raise ClientError(str(exc)) from exc
        self._engine = open_engine(self._settings, name="trainwire-client")
        self._is_checked = False
        self._names = metric_names.MetricNames()

    def __repr__(self) -> str:
        return f"PostgresSource({shown_servers(self._settings.sqlalchemy_url())!r})"

    def jobs(self, query: JobQuery, limit: int, cursor: str | None) -> JobPage:
        after, now = _place(cursor, query.sort)
        try:
            fields = parse_fields(",".join(query.columns))
            where = parse_filter(query.filter, now) if query.filter else None
            order = parse_sort(query.sort) if query.sort else None
        except WrongFilter as exc:
            given = f"filter={query.filter!r}, sort={query.sort!r}, columns={','.join(query.columns)!r}"
            raise ClientError(f"{given}: {exc}") from exc
        wanted = PlaceQuery(where=where, sort=order, after=after, now=now)
        with self._reading() as connection:
            places = find_places(connection, wanted, limit + 1)
            ids = [place.job_id for place in places[:limit]]
            found = read_jobs(connection, ids)
            columns = read_columns(connection, ids, fields, now)
            last = last_values(connection, ids, LAST_ROWS_IN_LISTS)
            total = None if cursor else count_jobs(connection, wanted)
        following = None
        if len(places) > limit:
            following = json.dumps([query.sort, now.isoformat(), place_fields(places[limit - 1])])
        infos = [
            _job_info(job, last_metrics=last.get(job.id, {}), columns=columns.get(job.id, {})) for job in found
        ]
        return JobPage(infos, following, total)

    def fields(self) -> dict[str, list[str]]:
        with self._reading() as connection:
            return field_names(connection)

    def find(self, reference: str) -> Candidates:
        with self._reading() as connection:
            found = find_referenced(connection, reference)
        jobs = [(job.id, job.name, job.status) for job in found.jobs]
        return Candidates(jobs, found.total, found.also_named)

    def job(self, job_id: int) -> JobInfo:
        with self._reading() as connection:
            job = _known(connection, job_id)
            last = last_values(connection, [job_id], LAST_ROWS).get(job_id, {})
            traceback = find_traceback(connection, job) if job.status == "failed" else None
        return _job_info(job, last_metrics=last, traceback=traceback)

    def stop(self, job_id: int, by: str | None, reason: str) -> StopInfo:
        """Ask the trainers of a job to stop, in the name of `by`, by default the user of this process."""
        try:
            with self._reading(), self._engine.begin() as connection:
                found = request_stop(connection, job_id, local_user() if by is None else by, reason)
        except UnknownJob as exc:
            raise JobNotFound(f"no job {job_id} in the database: client.jobs() yields all jobs") from exc
        except (AlreadyEnded, WrongText) as exc:
            raise ClientError(str(exc)) from exc
        return record(StopInfo, {name: getattr(found, name) for name in StopInfo.__struct_fields__})

    def metrics(self, job_id: int, names: Sequence[str]) -> Iterator[MetricBlock]:
        with self._reading() as connection:
            last = _known(connection, job_id).last_metric_seq
            removed = removed_rows(connection, job_id)["metrics"]
        with self._errors():
            yield from read_packed_metrics(self._engine, job_id, names, removed, last)

    def metric_names(self, job_id: int) -> MetricNames:
        for _ in range(MOST_READS_OF_NAMES):
            with self._reading() as connection:
                last = _known(connection, job_id).last_metric_seq
                known = self._names.of(connection, job_id, last)
            if known.is_complete(last):
                break
        return MetricNames(list(known.ordered), known.is_complete(last))

    def provenance(self, job_id: int, attempt: int | None) -> dict[str, Any]:
        with self._reading() as connection:
            job = _known(connection, job_id)
            return find_provenance(connection, job_id, job.attempt if attempt is None else attempt)

    def completeness(self, job_id: int) -> CompletenessInfo:
        with self._reading() as connection:
            found = find_completeness(connection, _known(connection, job_id))
        return CompletenessInfo(**{name: getattr(found, name) for name in CompletenessInfo.__struct_fields__})

    def logs(self, job_id: int, query: LogQuery, after: int, limit: int = PAGE_LINES) -> LogPage:
        with self._reading() as connection:
            last = _known(connection, job_id).last_log_seq
            page = next_page(connection, _line_filter(job_id, query), after, last, limit, is_cut=False)
        following = page.scanned[1] if page.scanned else page.lines[-1].seq if len(page.lines) == limit else None
        return LogPage(page.lines, following)

    def logs_before(self, job_id: int, query: LogQuery, before: int, limit: int) -> LogPage:
        with self._reading() as connection:
            last = _known(connection, job_id).last_log_seq
            wanted = _line_filter(job_id, query)
            page = newest_page(connection, wanted, min(before, last + 1), limit, is_cut=False)
        following = page.scanned[0] if page.scanned else page.lines[0].seq if len(page.lines) == limit else None
        return LogPage(page.lines, following)

    def seq_at(self, job_id: int, at: datetime) -> int | None:
        with self._reading() as connection:
            last = _known(connection, job_id).last_log_seq
            # Retention may have removed the line that the search returns.
            first = seq_at(connection, job_id, at, last)
            found = next_page(connection, _line_filter(job_id, LogQuery()), first - 1, last, 1)
        return found.lines[0].seq if found.lines else None

    def checkpoints(self, job_id: int) -> list[CheckpointInfo]:
        with self._reading() as connection:
            job = _known(connection, job_id)
            files = find_checkpoints(connection, job_id)
        best, last = newest_at(files, job.best_checkpoint_path), newest_at(files, job.last_checkpoint_path)
        return [_checkpoint(file, is_best=file.seq == best, is_last=file.seq == last) for file in files]

    def checkpoint_url(self, job_id: int, seq: int) -> str:
        """Return a signed URL from which a checkpoint's file can be downloaded for an hour.

        Raises `ClientError` if the checkpoint is not a single file in an object store.
        """
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
        """Raise `ClientError`, because only a gateway can send live events."""
        raise ClientError(
            f"job {job_id} cannot be followed in Postgres: give the gateway's url, or set TRAINWIRE_URL"
        )

    def close(self) -> None:
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
        except DataError as exc:
            raise ClientError(f"a value is not valid ({exc.orig}): correct or remove it") from exc
        except DBAPIError as exc:
            raise ClientError(f"Postgres at {self!r}: {postgres_trouble(exc)}: check DATABASE_URL") from exc
        except UnicodeEncodeError as exc:
            raise ClientError(f"{exc.object[:100]!r} has an invalid character: remove it") from exc
        except (SQLAlchemyError, WrongSchemaRevision) as exc:
            raise ClientError(f"Postgres at {self!r}: {exc}") from exc


def _known(connection: Connection, job_id: int) -> Job:
    job = find_job(connection, job_id)
    if job is None:
        raise JobNotFound(f"no job {job_id} in the database: list the jobs for their numbers and names")
    return job


def _job_info(job: Job, **others: Any) -> JobInfo:
    fields = {name: getattr(job, name) for name in JobInfo.__struct_fields__ if hasattr(job, name)}
    return record(JobInfo, fields | others)


def _place(cursor: str | None, sort: str | None) -> tuple[JobPlace | None, datetime]:
    """Parse the cursor of a page of jobs.

    Return the position after which the page begins (None for the first page), and the time at which the first page
    was read.
    """
    if not cursor:
        return None, datetime.now(UTC)
    try:
        of_sort, now, place = json.loads(cursor)
        if of_sort != sort:
            raise ClientError(f"cursor={cursor!r}: it belongs to the sort order {of_sort!r}, not {sort!r}")
        return place_from(place, parse_sort(sort) if sort else None), datetime.fromisoformat(now)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as exc:
        raise ClientError(f"cursor={cursor!r}: send the `next` of the page before") from exc


def _line_filter(job_id: int, query: LogQuery) -> LineFilter:
    return LineFilter(
        job_id=job_id,
        log_type=query.log_type,
        level=query.level,
        rank=query.rank,
        attempt=query.attempt,
        text=query.search or None,
    )


def _checkpoint(file: CheckpointFile, *, is_best: bool, is_last: bool) -> CheckpointInfo:
    same = ("seq", "attempt", "uri", "state", "epoch", "step", "size_bytes", "sha256", "metrics")
    fields = {name: getattr(file, name) for name in same}
    about = {"ts": to_ns(file.logged_at), "checkpoint_kind": file.kind, "is_best": is_best, "is_last": is_last}
    return record(CheckpointInfo, fields | about)
