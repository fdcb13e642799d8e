"""`trainwire logs`: prints and follows the log lines of a job."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, Protocol

import typer
from sqlalchemy import Connection

from trainwire.cli.commands.options import DataDir, JobReference, servers
from trainwire.cli.formats import local
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.gateway_reads import GatewayReads
from trainwire.cli.job_references import job_id_of, known_job
from trainwire.cli.numbers import MOST_SHOWN, whole_option
from trainwire.cli.terminal import safe, warn
from trainwire.client.job import Job as ClientJob
from trainwire.schemas.completeness_states import may_grow
from trainwire.schemas.events import LogLine
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import LOG_TYPES
from trainwire.schemas.wire.validation import MAX_ATTEMPT
from trainwire.stack.database import reading, settings_for
from trainwire.stack.errors import Problem, as_problem
from trainwire.stack.locate import Address
from trainwire.stores.loki.http import LokiUnavailable, loki_http
from trainwire.stores.loki.lines import find_lines
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.jobs.job_lookup import Job, find_job, removed_rows
from trainwire.stores.rows.command_rows import logs_after, newest_logs
from trainwire.stores.rows.log_pages import LineFilter
from trainwire.workers.sinks.loki.sink import LokiSink

POLL_EVERY_S = 0.3
POLL_GATEWAY_EVERY_S = 1.0
QUIET_S = 10.0
"""Seconds without a new row after which `logs -f` ends for a finished job; missing messages may never arrive."""
FOLLOW_BATCH = 5000


def logs(
    job: JobReference,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Continue with new lines.")] = False,
    log_type: Annotated[str | None, typer.Option(help="Only stdout, or only stderr.")] = None,
    grep: Annotated[str | None, typer.Option(metavar="TEXT", help="Only lines that contain TEXT.")] = None,
    limit: Annotated[int, whole_option(0, MOST_SHOWN, "Number of newest lines.")] = 500,
    attempt: Annotated[int | None, whole_option(-MAX_ATTEMPT, MAX_ATTEMPT, "Only this attempt.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="SINK", help="Read from this store (loki) instead of Postgres.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Print a job's newest lines, oldest first.

    With -f, new lines are printed until ctrl-C, or until the job has finished and either all its messages have
    arrived or no row has arrived for 10 s.
    """
    if log_type not in (None, *LOG_TYPES):
        raise Problem(f"no such log type {log_type!r}: choose stdout or stderr")
    if source not in (None, LokiSink.name):
        raise Problem(f"--from {source}: logs are read from Postgres, or with --from loki from Loki")
    if source is not None and follow:
        raise Problem("-f follows a job in Postgres, which has each line first: omit --from loki")
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            if source is not None:
                raise Problem("--from loki is not possible over HTTP: set DATABASE_URL and LOKI_URL")
            found = remote.job(job)
            wanted = _filter(found.id, log_type, grep, attempt)
            _print_lines(_GatewayLog(GatewayReads(remote), found, wanted), limit, follow=follow)
            return
    address = servers(data_dir)
    with reading(address) as connection:
        wanted = _filter(job_id_of(connection, job), log_type, grep, attempt)
        if source is not None:
            _print_from_loki(address, connection, wanted, limit)
            return
        known_job(connection, wanted.job_id)
        _print_lines(_StoredLog(connection, wanted), limit, follow=follow)


def _filter(job_id: int, log_type: str | None, text: str | None, attempt: int | None) -> LineFilter:
    return LineFilter(job_id=job_id, log_type=log_type, text=text, attempt=attempt, ignores_case=False)


class _Log(Protocol):
    """The log of one job, read from Postgres or through a gateway; `pause_s` is the time between two polls."""

    wanted: LineFilter
    pause_s: float

    def newest(self, limit: int) -> list[LogLine]: ...

    def after(self, seq: int, limit: int) -> list[LogLine]: ...

    def job(self) -> Job | None: ...

    def has_ended(self, job: Job | None) -> bool:
        """Return whether `job` has finished, and no further rows of it are expected."""

    def removed(self) -> int:
        """Return the `seq` of the last line that retention has removed; 0 if none."""


class _StoredLog:
    pause_s = POLL_EVERY_S

    def __init__(self, connection: Connection, wanted: LineFilter) -> None:
        self._connection = connection
        self.wanted = wanted

    def newest(self, limit: int) -> list[LogLine]:
        return newest_logs(self._connection, self.wanted, limit)

    def after(self, seq: int, limit: int) -> list[LogLine]:
        return logs_after(self._connection, self.wanted, seq, limit)

    def job(self) -> Job | None:
        return find_job(self._connection, self.wanted.job_id)

    def has_ended(self, job: Job | None) -> bool:
        return job is not None and has_ended(self._connection, job.id)

    def removed(self) -> int:
        return removed_rows(self._connection, self.wanted.job_id)["logs"]


class _GatewayLog:
    pause_s = POLL_GATEWAY_EVERY_S

    def __init__(self, reads: GatewayReads, job: ClientJob, wanted: LineFilter) -> None:
        self._reads = reads
        self._job = job
        self.wanted = wanted

    def newest(self, limit: int) -> list[LogLine]:
        return self._reads.newest_logs(self._job, self.wanted, limit)

    def after(self, seq: int, limit: int) -> list[LogLine]:
        return self._reads.logs_after(self._job, self.wanted, seq, limit)

    def job(self) -> Job | None:
        return self._reads.report(self._job.id).job

    def has_ended(self, job: Job | None) -> bool:
        if job is None or not job.is_finished:
            return False
        return not may_grow(self._reads.completeness(job.id))

    def removed(self) -> int:
        return self._reads.report(self._job.id).removed_rows["logs"]


def _print_from_loki(address: Address, connection: Connection, wanted: LineFilter, limit: int) -> None:
    settings = settings_for(address)
    with as_problem(LokiUnavailable, hint=f"; LOKI_URL is {settings.loki_url}"):
        lines = deque(find_lines(connection, loki_http(settings), wanted), maxlen=limit)
        if not lines and find_job(connection, wanted.job_id) is None:
            raise Problem(f"no job {wanted.job_id} in the database, and no such line of the last 7 days in Loki")
    write_lines(list(lines))


def _print_lines(log: _Log, limit: int, *, follow: bool) -> None:
    job_id = log.wanted.job_id
    try:
        # The job's last row now: with a filter or limit 0 it is not among the lines shown.
        job = log.job() if follow else None
        lines = log.newest(limit)
        write_lines(lines)
        if follow:
            last_seq = 0 if job is None else job.last_log_seq
            _follow(log, max([last_seq, *(line.seq for line in lines[-1:])]))
        elif len(lines) < limit and (removed := log.removed()):
            warn(
                f"lines 1 to {removed:,} of job {job_id} were removed by retention: "
                f"`trainwire logs {job_id} --from loki` reads their copies in Loki"
            )
    except KeyboardInterrupt:
        return


def _follow(log: _Log, last_seq: int) -> None:
    quiet = Quiet()
    while True:
        job = log.job()
        quiet_s = quiet.lasts_s(job)
        ended = log.has_ended(job)
        lines = log.after(last_seq, FOLLOW_BATCH)
        write_lines(lines)
        if lines:
            last_seq = lines[-1].seq
        elif ended:
            return
        elif quiet_s > QUIET_S:
            warn(_quiet_warning(log.wanted.job_id))
            return
        if len(lines) < FOLLOW_BATCH:
            time.sleep(log.pause_s)


class Quiet:
    """Measures, between calls, for how long a finished job has had no new row and no other change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._seen: object = None

    def lasts_s(self, job: Job | None) -> float:
        """Return the seconds since the last call that found the job running or changed (rows, status or attempt).

        Such a call returns 0, as do the first call and a call without a job.
        """
        seen = None if job is None else (job.status, job.attempt, job.rows)
        if job is None or not job.is_finished or seen != self._seen:
            self._seen, self._since = seen, self._clock()
            return 0.0
        return self._clock() - self._since


def has_ended(connection: Connection, job_id: int) -> bool:
    """Return whether the job has finished, and no further rows of it are expected."""
    job = find_job(connection, job_id)
    if job is None or not job.is_finished:
        return False
    return not may_grow(find_completeness(connection, job).document)


def _quiet_warning(job_id: int) -> str:
    return (
        f"job {job_id} has finished and there was no new row for {QUIET_S:.0f} s; messages of it may still "
        f"arrive: see `trainwire status {job_id}`"
    )


def write_lines(lines: list[LogLine]) -> None:
    """Write log lines to stdout; colour codes in their texts are removed unless stdout is a terminal."""
    colours = sys.stdout.isatty()
    sys.stdout.writelines(f"{shown_line(line, colours=colours)}\n" for line in lines)
    sys.stdout.flush()


def shown_line(line: LogLine, *, colours: bool) -> str:
    """Format a log line with its time and log type; continuation lines of a multi-line text are indented."""
    rank = "" if line.rank is None else f" {line.rank}"
    level = "" if line.level is None else f" {safe(line.level)}"
    first, *more = line.text.split("\n")
    head = f"{local(to_datetime(line.ts)):%H:%M:%S.%f}"[:-3]
    shown = f"{head} {line.log_type}{rank}{level} {safe(first, colours=colours)}"
    return "".join([shown, *(f"\n    {safe(text, colours=colours)}" for text in more)])
