"""Routes of a job's log: pages of lines, a download, and the copies in Loki."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from trainwire.gateway.documents.row_types import LogPage, Scanned
from trainwire.gateway.http.problems import wrong_value
from trainwire.gateway.http.responses import described, described_problems, json_response, streamed
from trainwire.gateway.resources import Resources, job_or_404
from trainwire.gateway.routes.parameters import VIEWER, Attempt, JobId, Rank, ResourcesDep, Seq, Text
from trainwire.schemas.events import LogLine
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import LogType
from trainwire.stores.loki.lines import newest_lines
from trainwire.stores.rows.log_pages import LineFilter, LinePage, newest_page, next_page, next_piece, seq_at

router = APIRouter(tags=["logs"], dependencies=VIEWER)


def _filter(
    *,
    job_id: JobId,
    log_type: Annotated[LogType | None, Query(description="Only lines of this output stream.")] = None,
    level: Annotated[Text | None, Query(description="Only lines of this level, such as ERROR.")] = None,
    rank: Annotated[Rank | None, Query(description="Only lines of this rank.")] = None,
    attempt: Annotated[Attempt | None, Query(description="Only lines of this attempt.")] = None,
    search: Annotated[Text | None, Query(description="Only lines that contain this, ignoring case.")] = None,
) -> LineFilter:
    return LineFilter(
        job_id=job_id, log_type=log_type, level=level, rank=rank, attempt=attempt, text=search or None
    )


Wanted = Annotated[LineFilter, Depends(_filter)]


@router.get("/jobs/{job_id}/logs", responses=described(LogPage, 404))
def logs(
    *,
    resources: ResourcesDep,
    wanted: Wanted,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    after: Annotated[Seq | None, Query(description="The first lines after this `seq`.")] = None,
    before: Annotated[Seq | None, Query(description="The last lines before this `seq`.")] = None,
    at: Annotated[
        datetime | None,
        Query(description="The first lines of this time or later: RFC 3339, or seconds since 1970."),
    ] = None,
) -> Response:
    """Return lines of a job's log, oldest to newest; without `after`, `before` and `at` the newest ones.

    A page has at most 8 MiB of text, and lines of more than 65,536 characters are cut unless `limit` is 1. With a
    filter, at most 100,000 lines are searched; if there are more, `scanned` is the range of the lines that were
    searched.
    """
    if sum(position is not None for position in (after, before, at)) > 1:
        raise wrong_value("after, before, at", "several", "send at most one of them")
    with resources.reading() as connection:
        last = job_or_404(connection, wanted.job_id).last_log_seq
        if at is not None:
            after = seq_at(connection, wanted.job_id, _with_zone(at), last) - 1
        if after is not None:
            page = next_page(connection, wanted, after, last, limit)
        else:
            page = newest_page(connection, wanted, last + 1 if before is None else min(before, last + 1), limit)
    return json_response(_document(page, last))


@router.get("/jobs/{job_id}/logs/loki", responses=described(LogPage, 404, 502))
def logs_of_loki(
    resources: ResourcesDep, job_id: JobId, limit: Annotated[int, Query(ge=1, le=5000)] = 1000
) -> Response:
    """Return the newest lines of a job from Loki, oldest to newest, from at most the last 30 days of its log."""
    http = resources.loki
    with resources.reading() as connection:
        last = job_or_404(connection, job_id).last_log_seq
        lines = newest_lines(connection, http, job_id, limit)
    return json_response(_document(LinePage(lines=lines), last))


@router.get(
    "/jobs/{job_id}/logs/download",
    response_class=Response,
    responses={
        200: {
            "description": "One line of text for each line of the log: time, output stream, rank, level and text.",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": "2026-09-21T14:13:20.123456Z stdout epoch 3\n",
                }
            },
        },
        **described_problems(404),
    },
)
def download(resources: ResourcesDep, wanted: Wanted) -> Response:
    """Return all lines that match the filters as a text file, streamed."""
    with resources.reading() as connection:
        last = job_or_404(connection, wanted.job_id).last_log_seq
    headers = {"Content-Disposition": f'attachment; filename="job-{wanted.job_id}.log"'}
    return streamed(_text(resources, wanted, last), "text/plain", headers)


def _text(resources: Resources, wanted: LineFilter, last: int) -> Iterator[bytes]:
    """Yield matching lines as text, in pieces; no Postgres connection is in use while a client reads one."""
    after = 0
    while after < last:
        with resources.reading() as connection:
            lines, after = next_piece(connection, wanted, after, last)
        yield "".join(map(_line_of_text, lines)).encode()


def _line_of_text(line: LogLine) -> str:
    at = to_datetime(line.ts)
    rank = "" if line.rank is None else f" {line.rank}"
    level = "" if line.level is None else f" {line.level}"
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}Z {line.log_type}{rank}{level} {line.text}\n"


def _document(page: LinePage, total: int) -> LogPage:
    seqs = [line.seq for line in page.lines]
    scanned = page.scanned and Scanned(first_seq=page.scanned[0], last_seq=page.scanned[1])
    return LogPage(
        items=page.lines,
        first_seq=seqs[0] if seqs else None,
        last_seq=seqs[-1] if seqs else None,
        total=total,
        scanned=scanned,
    )


def _with_zone(at: datetime) -> datetime:
    """Return `at` with a time zone; a time without one is taken as UTC."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
