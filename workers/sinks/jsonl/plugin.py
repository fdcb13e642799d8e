"""Writes log rows as JSON lines to plain files, in one folder per job: for backups, grep and jq."""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
from msgspec.structs import replace
from pydantic import Field, field_validator
from sqlalchemy import Connection, text

from trainwire.stores.postgres.completeness import shown_ranges
from trainwire.stores.postgres.deletion import Deletion, DeletionPart
from trainwire.stores.settings import read_settings
from trainwire.workers.findings import Finding, Part
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.base import Delivered, Sink, SinkUnavailable
from trainwire.workers.sinks.cursors import read_cursors
from trainwire.workers.sinks.jsonl.backlog import (
    JOBS,
    NAME,
    JsonlBacklog,
    JsonlBatch,
    JsonlDelivered,
    folder_name,
    read_rows,
)
from trainwire.workers.sinks.jsonl.files import FileComparison, JsonLine, append, compare, remove, remove_before
from trainwire.workers.sinks.plugin import NotSetUp, SinkBacklog, SinkPlugin, SinkSettings, SinkVerification
from trainwire.workers.sinks.ranges import ranges_of

log = structlog.get_logger("trainwire.workers.sinks.jsonl")

SWEEP_S: Final = 3600.0
VERIFIED_ROWS: Final = 1000
VERIFIED_BYTES: Final = 16 * 1024 * 1024
MIN_FREE_BYTES: Final = 1024**3
_OF_ONE_JOB: Final = {
    *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EFBIG, errno.EAGAIN, errno.ENOENT)
}
"""Error numbers that may concern the folder of one job only; all others concern the whole disk."""


class JsonlSettings(SinkSettings):
    """Settings of the sink: the folder of the files, their maximum size, and how long they are kept."""

    jsonl_dir: Path | None = None
    """Absolute path of the folder for the files; if unset, no files are written."""
    jsonl_max_file_bytes: Annotated[int, Field(ge=1024)] = 256 * 1024 * 1024
    """Maximum size of a file in bytes; further lines are written to a new file."""
    jsonl_keep_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Number of days for which files are kept; if unset, they are not deleted."""

    @field_validator("jsonl_dir", mode="before")
    @classmethod
    def _is_absolute(cls, value: str | Path | None) -> Path | None:
        if value is None or str(value) == "":
            return None
        if not Path(value).is_absolute():
            raise ValueError("is not an absolute path like /var/lib/trainwire/logs")
        return Path(value)


class JsonlSink:
    """Appends lines to files. Threads may share it; several processes may write to one disk."""

    name: Final = NAME

    def __init__(self, settings: JsonlSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._lock = threading.Lock()
        self._sweep_at = 0.0

    def deliver(self, _job_id: int, batch: JsonlBatch) -> Iterator[Delivered]:
        """Append the lines of the batch to the job's files, and flush them to the disk; see `Sink`.

        Also deletes old files of all jobs, at most once an hour.
        """
        if not batch.lines:
            yield Delivered(batch.last_seq, is_answer=False)
            return
        try:
            tail = append(self._folder / batch.folder, batch.lines, self._settings.jsonl_max_file_bytes)
        except OSError as exc:
            path = exc.filename or self._folder / batch.folder
            raise SinkUnavailable(f"{path}: {exc.strerror}", may_be_the_jobs=exc.errno in _OF_ONE_JOB) from exc
        self._sweep()
        yield JsonlDelivered(batch.lines[-1].seq, tail=tail, note=batch.note)

    def _sweep(self) -> None:
        """Delete the files that are older than JSONL_KEEP_DAYS, at most once an hour."""
        with self._lock:
            if self._settings.jsonl_keep_days is None or time.monotonic() < self._sweep_at:
                return
            self._sweep_at = time.monotonic() + SWEEP_S
        first_day = (datetime.now(UTC) - timedelta(days=self._settings.jsonl_keep_days)).date()
        with _errors_logged(self._folder):
            for folder in self._folder.iterdir():
                with _errors_logged(folder):
                    remove_before(folder, first_day)


@contextmanager
def _errors_logged(folder: Path) -> Iterator[None]:
    """Log errors of the disk while old files are deleted: the lines are delivered nevertheless."""
    try:
        yield
    except OSError as exc:
        log.warning("jsonl.not_removed", folder=str(folder), reason=str(exc))


class JsonlPlugin(SinkPlugin):
    """The sink that writes files to JSONL_DIR, on a disk of the worker's machine."""

    settings_type = JsonlSettings

    @cached_property
    def settings(self) -> JsonlSettings:
        """The settings of this sink, read from the environment once. Raises `WrongSettings` if one is wrong."""
        return read_settings(JsonlSettings)

    @cached_property
    def sink(self) -> JsonlSink:
        """The sink object of this process; it remembers when old files are deleted next."""
        return JsonlSink(self.settings, self._folder())

    def is_on(self, _settings: Settings) -> bool:
        """Return whether JSONL_DIR is set."""
        return self.settings.jsonl_dir is not None

    def connect(self, _resources: Resources) -> tuple[SinkBacklog[Any, Any], Sink[Any, Any]]:
        """Return the object that reads log rows for the files, and the sink that writes them."""
        return JsonlBacklog(NAME, self._folder()), self.sink

    def delete(self, resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
        """Delete the folder of the job with all its content, including files that others put there."""
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
        """Yield findings about whether files can be written to JSONL_DIR, and about free space on its disk."""
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
        if free_bytes < MIN_FREE_BYTES:
            says = f"only {free_bytes:,} bytes are free at {folder}"
            yield part.warning("space", says, "make room, or set JSONL_KEEP_DAYS; log rows wait in Postgres")
        yield part.ok("writable", f"{folder} can be written")

    def verify(self, settings: Settings, connection: Connection, job_id: int) -> SinkVerification:
        """Compare each line in the files with the row of the job.

        Raises `SinkUnavailable` if the files cannot be read, or if JSONL_DIR is not set.
        """
        if not self.is_on(settings):
            raise SinkUnavailable("JSONL_DIR is not set here")
        # Read before the files, which then have all rows up to it.
        confirmed_seq = read_cursors(connection, NAME, [job_id])[job_id].confirmed_seq
        _, made_at = connection.execute(JOBS, {"jobs": [job_id]}).one()
        try:
            found = compare(
                _all_rows(connection, job_id), self._folder() / folder_name(job_id, made_at), confirmed_seq
            )
        except OSError as exc:
            raise SinkUnavailable(f"{exc.filename or self._folder()}: {exc.strerror}") from exc
        last_seq, removed_seq = connection.execute(_LAST, {"job": job_id}).one()
        return _verdict(found, removed_seq, last_seq)

    def _folder(self) -> Path:
        return self.settings.jsonl_dir or Path()


def _all_rows(connection: Connection, job_id: int) -> Iterator[JsonLine]:
    after = 0
    while batch := read_rows(connection, {job_id: after}, VERIFIED_ROWS, VERIFIED_BYTES)[job_id]:
        yield from batch
        after = batch[-1].seq


def _verdict(found: FileComparison, removed_seq: int, last_seq: int) -> SinkVerification:
    # Without rows that were stored, or removed by retention, after the rows were read.
    unknown = {seq for seq in found.without_row if seq > removed_seq and not found.last_seq < seq <= last_seq}
    faults = {
        "missing in the files": found.missing,
        "twice in the files": found.twice,
        "different in the files": found.different,
        "in the files, not in Postgres": ranges_of(unknown),
    }
    is_verified = not any(faults.values()) and not found.unreadable
    line = (
        f"{'verified' if is_verified else 'differs'}: {found.rows:,} lines in Postgres "
        f"{'≠' if found.missing else '='} {found.in_files:,} in the files + {found.waiting:,} waiting; "
        f"{found.missing.total:,} missing, {found.twice.total:,} twice, {found.different.total:,} different"
    )
    shown = [f"{name}: {shown_ranges(ranges)}" for name, ranges in faults.items() if ranges]
    if found.unreadable:
        shown.append(f"lines that are no JSON with a number: {found.unreadable:,}")
    document = {
        "verified": is_verified,
        "in_postgres": found.rows,
        "in_files": found.in_files,
        "waiting": found.waiting,
        "differences": faults,
        "unreadable": found.unreadable,
    }
    return SinkVerification(is_verified, [line, *shown], document)


_LAST: Final = text("SELECT last_log_seq, removed_log_seq FROM training_jobs WHERE id = :job")
PLUGIN: Final = JsonlPlugin()
