"""Reads W&B runs, offline and synced ones, from `.wandb` files (docs/import-export.md)."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Set
from itertools import islice
from pathlib import Path
from typing import Final

from trainwire.cli.transfer.readers.wandb_about import (
    ALERT,
    ARTIFACT,
    CONFIG,
    EXIT,
    FILES,
    HISTORY,
    OUTPUT,
    OUTPUT_RAW,
    RUN,
    STATS,
    SUMMARY,
    About,
    about_of,
    checked_time,
    config_of,
    needed_field,
    records_of_kind,
    timestamp_ns,
)
from trainwire.cli.transfer.readers.wandb_file import CutShortError, wandb_records
from trainwire.cli.transfer.readers.wandb_history import NOT_VALUES, RowDecoder
from trainwire.cli.transfer.readers.wandb_output import OutputLines
from trainwire.cli.transfer.readers.wandb_values import Row, item_of, json_number, row_of, text_of
from trainwire.cli.transfer.runs import (
    MAX_NS,
    OUT_OF_RANGE,
    End,
    Header,
    Item,
    LeftOut,
    Line,
    Params,
    SourceRun,
    Tally,
    files_below,
    unreadable,
)
from trainwire.ingest.hooks.protobuf import fields, signed, varint
from trainwire.ingest.provenance.masking import masked_fields
from trainwire.schemas.non_finite import BEYOND_FLOAT
from trainwire.schemas.times import seconds_to_ns
from trainwire.schemas.wire.limits import MAX_RESULTS
from trainwire.schemas.wire.messages import Outcome, Point
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stack.errors import Problem

SUFFIX: Final = ".wandb"
QUIET_S: Final = 600.0
"""Seconds after which a file without an EXIT record that no longer grows is that of a killed run.

W&B writes to the file of a running process every 15 s.
"""
MOST_VALUES: Final = 5000
"""Largest number of values in one point; a step with more values is split into several points."""
MOST_SUMMARIES: Final = 100
"""Largest number of summary records that are kept for later."""
DAMAGES: Final = (ValueError, struct.error, AttributeError, TypeError, LookupError, OverflowError)
"""Exceptions raised while decoding bytes that are not a valid record; a field may have an unexpected type."""
RUNNING: Final = "may still run (no end, and changed within 10 minutes): import it again later"
_KILLED: Final = "the .wandb file has no end: the process was killed"


def wandb_runs(path: Path, name: str | None, copy: str) -> Iterator[SourceRun | LeftOut]:
    """Yield the W&B runs in a file or below a folder.

    A run that may still be running, a copy of another file, and a file without a run become a `LeftOut`. `name`
    replaces the name of a single run, and `copy` becomes part of each run's identity. Raises `Problem` if there is
    no file, or if `name` is given and there are several.
    """
    path = Path(os.path.realpath(path))  # `wandb/latest-run` is a link
    if not path.exists():
        raise Problem(f"{path} does not exist: give the folder `wandb` of the training, or a file *{SUFFIX}")
    if not path.is_file() and not path.is_dir():
        raise Problem(f"{path} is neither a file nor a folder: give the folder `wandb`, or a file *{SUFFIX}")
    found = [path] if path.is_file() else sorted(files_below(path, lambda name: name.endswith(SUFFIX)))
    if not found:
        raise Problem(f"no file *{SUFFIX} below {path}: give the folder `wandb` of the training")
    if name is not None and len(found) > 1:
        raise Problem(f"--name is for one run, and {path} has {len(found):,}: give the file of one of them")
    seen: set[str] = set()
    for each in found:
        run = _run(each, name, copy)
        if isinstance(run, SourceRun) and run.identity in seen:
            run = LeftOut(run.name, "a copy of another file of this import")
        elif isinstance(run, SourceRun):
            seen.add(run.identity)
        yield run


def _run(path: Path, name: str | None, copy: str) -> SourceRun | LeftOut:
    """Return the W&B run in a file, or the reason why it is not imported.

    The hash of its first record identifies the run. The record does not change when the file grows, is synced or
    is moved, so the run always becomes the same job.
    """
    about: About | None = None
    damage = None
    try:
        status = path.stat()
        for run in records_of_kind(path, status.st_size, RUN):
            about = about_of(run, about)
    except OSError as exc:
        return unreadable(path, exc)
    except DAMAGES as exc:
        damage = exc
    if about is None:
        if not status.st_size:
            return LeftOut(str(path), "the file is empty")
        reason = "the file has no run" if damage is None else f"the file is damaged: {damage}"
        return LeftOut(str(path), reason, is_failure=damage is not None)
    if time.time() - status.st_mtime < QUIET_S and _may_run(path, status.st_size):
        return LeftOut(name or about.name, RUNNING)

    def items(tally: Tally) -> Iterator[Item]:
        reader = _Reader(path, status.st_size, about, tally)
        yield Header(name=name or about.name, started_ns=about.started_ns, tags=about.tags, params=about.params)
        yield from reader.items()
        yield reader.end()

    return SourceRun(tool="wandb", identity=f"{about.identity} {copy}", name=name or about.name, items=items)


def _may_run(path: Path, size: int) -> bool:
    """Return whether a run's file has no EXIT record, and no damage except a last record that is cut short."""
    try:
        return next(records_of_kind(path, size, EXIT), None) is None
    except CutShortError:
        return True
    except (*DAMAGES, OSError):
        return False


class _Reader:
    """Reads one W&B run: everything that follows its header."""

    def __init__(self, path: Path, size: int, about: About, tally: Tally) -> None:
        self._path = path
        self._size = size
        self._about = about
        self._tally = tally
        self._decoder = RowDecoder()
        self._params = dict(about.params)
        self._summary: dict[tuple[str, ...], bytes] = {}
        self._newest_summaries: dict[frozenset[str], bytes] = {}
        """Names of metrics -> the last summary record that has exactly these; not yet part of `_summary`."""
        self._newest_names: frozenset[str] = frozenset()
        """Names of metrics in the newest of these records."""
        self._files: set[str] = set()
        self._output = OutputLines()
        self._has_output = False
        self._last_ns = about.started_ns or 0
        self._exit_code: int | None = None
        self._was_killed = True
        """Whether the file, if it has no EXIT record, ends as one whose process was killed: without damage."""

    def items(self) -> Iterator[Item]:
        """Yield points, lines and parameters, until the end of the file or a damaged record."""
        try:
            for record in wandb_records(self._path, self._size):
                if (row := self._decoder.decode(record)) is not None:
                    step, axes, numbers = row
                    if step is None:
                        if numbers:
                            self._remember_summary(record, numbers.keys())
                        continue
                    ts = self._time_of(axes)
                    if ts is not None and 0 < len(numbers) <= MOST_VALUES and step <= MAX_ID:
                        self._last_ns = max(self._last_ns, ts)
                        yield Point(ts=ts, step=step, values=numbers)
                    else:
                        yield from self._points(Row(numbers, []), ts, step)
                elif (found := needed_field(record)) is not None:
                    kind, data = found
                    yield from self._history(data) if kind == HISTORY else self._record(kind, data)
        except (*DAMAGES, OSError) as exc:
            self._was_killed = isinstance(exc, CutShortError)
            self._tally.fail_within(self._path, exc)
        else:
            self._tally.taken["files"] += 1
        lines = self._output.finish(self._last_ns) if self._has_output else self._lines_of_file()
        yield from self._checked(lines)
        self._tally.skip("files", "files and artifacts stay with W&B", len(self._files))

    def end(self) -> End:
        """Return the last item of the run, with its final status. Call it after `items` is exhausted.

        Without an EXIT record the status is `failed`, or `ended` if damage hides the end of the file.
        """
        self._apply_summaries()
        row = row_of([(names, raw) for names, raw in self._summary.items() if names[0] not in NOT_VALUES])
        numbers = dict(islice(row.numbers.items(), MAX_RESULTS)) or None
        ts = self._last_ns or self._path.stat().st_mtime_ns
        if self._exit_code is None:
            status: Outcome = "failed" if self._was_killed else "ended"
            message = _KILLED if self._was_killed else None
            return End(ts=ts, status=status, error_message=message, final_metrics=numbers)
        status = "failed" if self._exit_code else "completed"
        return End(ts=ts, status=status, exit_code=self._exit_code, final_metrics=numbers)

    def _record(self, kind: int, data: bytes) -> Iterator[Item]:
        if kind == SUMMARY:
            self._apply_summaries()
            self._summarize(data)
        elif kind == STATS:
            yield from self._stats(data)
        elif kind in {OUTPUT, OUTPUT_RAW}:
            yield from self._checked(self._lines(data))
        elif kind == CONFIG:
            self._params |= masked_fields(config_of(data))
            yield Params(dict(self._params))
        elif kind == FILES:
            self._files.update(text_of(dict(fields(value))[1]) for number, value in fields(data) if number == 1)
        elif kind == ARTIFACT:
            self._files.add(f"artifact {text_of(dict(fields(data)).get(5, b''))}")
        elif kind == ALERT:
            title, text = (text_of(dict(fields(data)).get(number, b"")) for number in (1, 2))
            yield from self._checked(iter([Line(self._last_ns, f"W&B alert: {title}: {text}", "stderr")]))
        elif kind == EXIT:
            self._end(dict(fields(data)))

    def _remember_summary(self, record: bytes, names: Set[str]) -> None:
        """Remember a summary record with these metrics, in the place of an earlier one with the same metrics."""
        if names != self._newest_names:
            self._newest_names = frozenset(names)
            self._newest_summaries.pop(self._newest_names, None)
            if len(self._newest_summaries) >= MOST_SUMMARIES:
                self._apply_summaries()
        self._newest_summaries[self._newest_names] = record

    def _apply_summaries(self) -> None:
        for record in self._newest_summaries.values():
            for kind, data in fields(record):
                if kind == SUMMARY:
                    self._summarize(data)
        self._newest_summaries.clear()

    def _summarize(self, summary: bytes) -> None:
        items = []
        for number, value in fields(summary):
            if number == 1:
                items.append(value)
                names, raw = item_of(value)
                self._summary[names] = raw
            elif number == 2:
                self._summary.pop(item_of(value)[0], None)
        self._decoder.learn(items)

    def _end(self, exit_fields: dict[int, int]) -> None:
        self._exit_code = signed(exit_fields.get(1, 0))
        runtime_ns = exit_fields.get(2, 0) * 10**9
        ended_ns = checked_time((self._about.started_ns or 0) + runtime_ns)
        self._last_ns = max(self._last_ns, ended_ns or 0)

    def _history(self, data: bytes) -> list[Point]:
        step: int | None = None
        items = []
        for number, value in fields(data):
            if number == 1:
                items.append(value)
            elif number == 2:
                step = varint(value, 1)[0] if value else 0  # its only field
        self._decoder.learn(items)
        axes: dict[str, bytes] = {}
        values = []
        for item in map(item_of, items):
            if item[0][0] in NOT_VALUES:
                axes[item[0][0]] = item[1]
            else:
                values.append(item)
        if step is None:  # versions before 2023 have it among the items
            step = int(axes.get("_step", b"-1"))
        return self._points(row_of(values), self._time_of(axes), step)

    def _time_of(self, axes: dict[str, bytes]) -> int | None:
        """Return the time of a history row, or None if it is out of range.

        It is the row's timestamp, or the start of the run plus the row's runtime.
        """
        text = axes.get("_timestamp")
        try:
            if text is not None:
                ts = seconds_to_ns(json_number(text))
            else:
                ts = (self._about.started_ns or 0) + seconds_to_ns(json_number(axes.get("_runtime", b"0")))
        except (ValueError, OverflowError):
            return None
        return ts if 0 <= ts <= MAX_NS else None

    def _stats(self, data: bytes) -> list[Point]:
        items = []
        ts = None
        for number, value in fields(data):
            if number == 2:
                ts = checked_time(timestamp_ns(value))
            elif number == 3:
                names, raw = item_of(value)
                items.append((("system/" + names[0], *names[1:]), raw))
        return self._points(row_of(items), ts, None)

    def _points(self, row: Row, ts: int | None, step: int | None) -> list[Point]:
        for kind in row.others:
            self._tally.skip("points", kind if kind == BEYOND_FLOAT else f"{kind}: not a number")
        if ts is None:
            self._tally.skip("points", OUT_OF_RANGE, len(row.numbers))
            return []
        self._last_ns = max(self._last_ns, ts)
        step = step if step is not None and 0 <= step <= MAX_ID else None
        values = self._tally.named(row.numbers)
        if len(values) <= MOST_VALUES:
            return [Point(ts=ts, step=step, values=values)] if values else []
        left = iter(values.items())
        parts = iter(lambda: dict(islice(left, MOST_VALUES)), {})
        return [Point(ts=ts, step=step, values=part) for part in parts]

    def _lines(self, data: bytes) -> Iterator[Line]:
        found = dict(fields(data))
        self._has_output = True
        ts = checked_time(timestamp_ns(found.get(2, b""))) or self._last_ns
        self._last_ns = max(self._last_ns, ts)
        yield from self._output.add("stdout" if found.get(1) else "stderr", text_of(found.get(3, b"")), ts)

    def _lines_of_file(self) -> Iterator[Line]:
        """Yield the lines of the file `output.log`, which is used if no record contains output."""
        try:
            with (self._path.parent / "files" / "output.log").open(errors="replace") as file:
                for line in file:
                    yield from self._output.add("stdout", line, self._last_ns)
        except FileNotFoundError:
            return
        except OSError as exc:
            self._tally.fail(f"{exc.filename}: {exc.strerror}; its output is not imported, or not all")
        yield from self._output.finish(self._last_ns)

    def _checked(self, lines: Iterator[Line]) -> Iterator[Line]:
        return (line for line in lines if self._tally.fits(line.text))
