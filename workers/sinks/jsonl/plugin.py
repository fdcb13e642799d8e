"""Log rows as lines of JSON in plain files, one folder per job: for backups, grep and jq."""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import structlog
from msgspec.structs import replace
from pydantic import Field, field_validator
from sqlalchemy import Connection, Row, text

from trainwire.stores.postgres.completeness import shown_ranges
from trainwire.stores.postgres.deletion import Deletion, DeletionPart
from trainwire.stores.settings import read_settings
from trainwire.workers.findings import Finding, Part
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.backlog import SinkBacklog
from trainwire.workers.sinks.base import Delivered, Sink, SinkUnavailable
from trainwire.workers.sinks.cursors import DeliveryCursor, read_cursors
from trainwire.workers.sinks.jsonl.files import (
    Differences,
    Line,
    Tail,
    append,
    compare,
    first_lost,
    remove,
    remove_before,
)
from trainwire.workers.sinks.plugin import NotSetUp, SinkPlugin, SinkSettings, Verdict
from trainwire.workers.sinks.row_sums import RowSums, count, ranges_of, sum_up

log = structlog.get_logger("trainwire.workers.sinks.jsonl")

NAME: Final = "jsonl"
SWEEP_S: Final = 3600.0
VERIFIED_ROWS: Final = 1000
VERIFIED_BYTES: Final = 16 * 1024 * 1024
LITTLE_BYTES: Final = 1024**3
_OF_ONE_JOB: Final = {
    *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EFBIG, errno.EAGAIN, errno.ENOENT)
}
"""Errors that may concern the folder of one job only; all others concern the disk."""


class JsonlSettings(SinkSettings):
    """Where the files are, how large they become and how long they stay."""

    jsonl_dir: Path | None = None
    """The folder of the files, an absolute path; unset: none are written."""
    jsonl_max_file_bytes: Annotated[int, Field(ge=1024)] = 256 * 1024 * 1024
    """A file that would become larger is continued in a new one."""
    jsonl_keep_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Files of earlier days are removed; unset: none is."""

    @field_validator("jsonl_dir", mode="before")
    @classmethod
    def _is_absolute(cls, value: str | Path | None) -> Path | None:
        if value is None or str(value) == "":
            return None
        if not Path(value).is_absolute():
            raise ValueError("is not an absolute path like /var/lib/trainwire/logs")
        return Path(value)


@dataclass(frozen=True, slots=True)
class JsonlBatch:
    """The next lines of a job; where there are none, all rows up to `last_seq` were deleted."""

    confirmed_seq: int
    folder: str
    lines: Sequence[Line]
    last_seq: int
    note: str | None = None
    is_followed: bool = False


@dataclass(slots=True)
class DeliveredLines(Delivered):
    """The outcome with the newest file as it is now, and when lines of it were last written again."""

    tail: Tail | None = None
    note: str | None = None

    @property
    def state(self) -> Mapping[str, Any]:
        """See `Delivered`; `note` is shown with the job's delivery."""
        tail = {} if self.tail is None else {"tail": self.tail}
        return tail if self.note is None else tail | {"note": self.note}


class JsonlBacklog(SinkBacklog[JsonlBatch, Delivered]):
    """The log rows that the files do not have, those in `root` that somebody has truncated or removed included."""

    kind = "logs"

    def __init__(self, sink: str, root: Path) -> None:
        super().__init__(sink)
        self._root = root

    def read(
        self, connection: Connection, job_ids: Sequence[int], most_rows: int, most_bytes: int
    ) -> dict[int, JsonlBatch]:
        """Return the next lines of each job."""
        last_seqs = self.last_seqs(connection, job_ids)
        folders = {row.id: folder_name(*row) for row in connection.execute(_JOBS, {"jobs": list(job_ids)})}
        known = read_cursors(connection, NAME, job_ids)
        after = {job_id: cursor.confirmed_seq for job_id, cursor in known.items()}
        lines = read_rows(connection, after, most_rows, most_bytes)
        notes = {job_id: cursor.state.get("note") for job_id, cursor in known.items()}
        lost = {
            job_id: first
            for job_id, folder in folders.items()
            if lines[job_id] and (first := self._first_lost(folder, known[job_id], lines[job_id][0].day))
        }
        for job_id, first in lost.items():
            file, last = known[job_id].state["tail"][0], after[job_id]
            log.warning("jsonl.rows_lost", job_id=job_id, file=file, first_seq=first, last_seq=last)
            at = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
            notes[job_id] = f"{file} had lost rows {first} to {last}, which were written again at {at}"
            after[job_id] = first - 1
        if lost:
            lines |= read_rows(connection, {job_id: after[job_id] for job_id in lost}, most_rows, most_bytes)
        return {
            job_id: JsonlBatch(after[job_id], folder, lines[job_id], last_seqs[job_id], notes[job_id])
            for job_id, folder in folders.items()
            if last_seqs.get(job_id, 0) > after[job_id]
        }

    def _first_lost(self, folder: str, cursor: DeliveryCursor, next_day: str) -> int | None:
        """Return the first row that was taken out of the job's newest file; None for none."""
        if "tail" not in cursor.state:  # of an older version, or a replay has moved the cursor
            return None
        try:
            first = first_lost(self._root / folder, Tail(*cursor.state["tail"]), next_day)
        except OSError:
            return None  # the delivery will fail by it, and report it
        return first if first is not None and first <= cursor.confirmed_seq else None


class JsonlSink:
    """Appends lines to files; safe to use from several threads, and from several processes on one disk."""

    name: Final = NAME

    def __init__(self, settings: JsonlSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._lock = threading.Lock()
        self._sweep_at = 0.0

    def deliver(self, _job_id: int, batch: JsonlBatch) -> Iterator[Delivered]:
        """Append the lines; they are on the disk when they are confirmed. See `Sink`."""
        if not batch.lines:
            yield Delivered(batch.last_seq, is_answer=False)
            return
        try:
            tail = append(self._folder / batch.folder, batch.lines, self._settings.jsonl_max_file_bytes)
        except OSError as exc:
            path = exc.filename or self._folder / batch.folder
            raise SinkUnavailable(f"{path}: {exc.strerror}", may_be_the_jobs=exc.errno in _OF_ONE_JOB) from exc
        self._sweep()
        yield DeliveredLines(batch.lines[-1].seq, tail=tail, note=batch.note)

    def _sweep(self) -> None:
        """Remove old files, once an hour: where nothing is appended, nothing grows."""
        with self._lock:
            if self._settings.jsonl_keep_days is None or time.monotonic() < self._sweep_at:
                return
            self._sweep_at = time.monotonic() + SWEEP_S
        first_day = (datetime.now(UTC) - timedelta(days=self._settings.jsonl_keep_days)).date()
        for folder in self._folder.iterdir():
            try:
                remove_before(folder, first_day)
            except OSError as exc:
                log.warning("jsonl.not_removed", folder=str(folder), reason=str(exc))


class JsonlPlugin(SinkPlugin):
    """Files in JSONL_DIR, on a disk of the worker's machine."""

    settings_type = JsonlSettings

    @cached_property
    def settings(self) -> JsonlSettings:
        """The settings of this process. Raises `WrongSettings`."""
        return read_settings(JsonlSettings)

    @cached_property
    def sink(self) -> JsonlSink:
        """The sink of this process, which knows when it has last removed old files."""
        return JsonlSink(self.settings, self._folder())

    def is_on(self, _settings: Settings) -> bool:
        """Tell whether JSONL_DIR is set."""
        return self.settings.jsonl_dir is not None

    def connect(self, _resources: Resources) -> tuple[SinkBacklog[Any, Any], Sink[Any, Any]]:
        """Return the rows that wait, and the files."""
        return JsonlBacklog(NAME, self._folder()), self.sink

    def delete(self, resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
        """Remove the folder of the job, files that somebody compressed in it included."""
        if not self.is_on(resources.settings):
            if part.planned:
                raise NotSetUp("JSONL_DIR is not set here")
            return replace(part, state="done")
        try:
            remove(self._folder() / folder_name(deletion.job_id, deletion.job_created_at))
        except OSError as exc:
            raise SinkUnavailable(f"{exc.filename or self._folder()}: {exc.strerror}") from exc
        return replace(part, state="done", deleted=part.planned)

    def examine(self, _settings: Settings) -> Iterator[Finding]:
        """Yield whether files can be written here, and whether the disk is nearly full."""
        part, folder = Part(NAME), self._folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"trainwire doctor\n")
            free_bytes = shutil.disk_usage(folder).free
        except OSError as exc:
            says = f"{folder} cannot be written: {exc.strerror}"
            yield part.error("writable", says, "correct JSONL_DIR or its owner; log rows wait in Postgres")
            return
        if free_bytes < LITTLE_BYTES:
            says = f"only {free_bytes:,} bytes are free at {folder}"
            yield part.warning("space", says, "make room, or set JSONL_KEEP_DAYS; log rows wait in Postgres")
        yield part.ok("writable", f"{folder} can be written")

    def verify(self, settings: Settings, connection: Connection, job_id: int) -> Verdict:
        """Compare each line in the files with its row."""
        if not self.is_on(settings):
            raise SinkUnavailable("JSONL_DIR is not set here")
        # Read before the files: whatever the cursor has passed is in them.
        confirmed_seq = read_cursors(connection, NAME, [job_id])[job_id].confirmed_seq
        job = connection.execute(_JOBS, {"jobs": [job_id]}).one()
        odd = Differences()
        try:
            copies = compare(_all_rows(connection, job_id), self._folder() / folder_name(*job), odd)
            found = sum_up(copies, (), confirmed_seq)
        except OSError as exc:
            raise SinkUnavailable(f"{exc.filename or self._folder()}: {exc.strerror}") from exc
        last_seq, removed_seq = connection.execute(_LAST, {"job": job_id}).one()
        return _verdict(found, odd, removed_seq, last_seq)

    def _folder(self) -> Path:
        return self.settings.jsonl_dir or Path()


def folder_name(job_id: int, created_at: datetime) -> str:
    """Return the name of a job's folder; its time keeps it apart from a job of that number in another database."""
    return f"{job_id}-{created_at.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def read_rows(
    connection: Connection, after: dict[int, int], most_rows: int, most_bytes: int
) -> dict[int, list[Line]]:
    """Return the lines of each job after a `seq`: at most so many rows and bytes of each, at least one row."""
    limits = {"most_rows": most_rows, "most_bytes": most_bytes}
    lines: dict[int, list[Line]] = defaultdict(list)
    for row in connection.execute(_READ, {"jobs": list(after), "after": list(after.values()), **limits}):
        lines[row.job_id].append(Line(row.seq, row.day, _json_line(row)))
    return lines


def _json_line(row: Row[Any]) -> bytes:
    return msgspec.json.encode(dict(zip(_FIELDS, row, strict=False))) + b"\n"


def _all_rows(connection: Connection, job_id: int) -> Iterator[Line]:
    after = 0
    while batch := read_rows(connection, {job_id: after}, VERIFIED_ROWS, VERIFIED_BYTES)[job_id]:
        yield from batch
        after = batch[-1].seq


def _verdict(found: RowSums, odd: Differences, removed_seq: int, last_seq: int) -> Verdict:
    different = ranges_of(sorted(odd.different))
    # Rows that came, or that retention has removed, while files and rows were read are no strangers.
    unknown = {seq for seq in odd.without_row if seq > removed_seq and not odd.last_seq < seq <= last_seq}
    faults = {
        "missing in the files": found.missing,
        "twice in the files": found.twice,
        "different in the files": different,
        "in the files, not in Postgres": ranges_of(sorted(unknown)),
    }
    is_verified = not any(faults.values()) and not odd.unreadable
    line = (
        f"{'verified' if is_verified else 'differs'}: {found.rows:,} lines in Postgres "
        f"{'≠' if found.missing else '='} {found.in_sink:,} in the files + {found.waiting:,} waiting; "
        f"{count(found.missing):,} missing, {count(found.twice):,} twice, {count(different):,} different"
    )
    shown = [f"{name}: {shown_ranges(ranges)}" for name, ranges in faults.items() if ranges]
    if odd.unreadable:
        shown.append(f"lines that are no JSON with a number: {odd.unreadable:,}")
    document = {
        "verified": is_verified,
        "in_postgres": found.rows,
        "in_files": found.in_sink,
        "waiting": found.waiting,
        "differences": faults,
        "unreadable": odd.unreadable,
    }
    return Verdict(is_verified, [line, *shown], document)


_FIELDS: Final = (*("job_id", "seq", "attempt", "rank", "source", "log_type", "level", "logged_at", "content"),)
"""The keys of a line, in the order of the columns below."""
_JOBS: Final = text("SELECT id, created_at FROM training_jobs WHERE id = ANY(:jobs)")
_LAST: Final = text("SELECT last_log_seq, removed_log_seq FROM training_jobs WHERE id = :job")
_READ: Final = text(
    """
    SELECT wanted.job_id, seq, attempt, rank, source, log_type, level,
        to_char(logged_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')
            || lpad(CAST(logged_ns AS text), 3, '0') || 'Z' AS logged_at,
        content, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day
    FROM unnest(CAST(:jobs AS bigint[]), CAST(:after AS bigint[])) AS wanted(job_id, after)
    CROSS JOIN LATERAL (
        SELECT *, sum(octet_length(content)) OVER (ORDER BY seq) - octet_length(content) AS bytes_before
        FROM (
            SELECT * FROM training_logs WHERE job_id = wanted.job_id AND seq > wanted.after
            ORDER BY seq LIMIT :most_rows
        ) AS next_rows
    ) AS measured
    WHERE bytes_before < :most_bytes ORDER BY wanted.job_id, seq
    """
)
PLUGIN: Final = JsonlPlugin()
