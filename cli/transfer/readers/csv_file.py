"""Reads metrics from a CSV file, in wide or in long form (docs/import-export.md)."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Final, TextIO

from trainwire.cli.transfer.readers.csv_columns import (
    NOT_UTF8,
    Columns,
    columns_of_header,
    delimiter_of,
    plain_number,
)
from trainwire.cli.transfer.runs import (
    MAX_NS,
    MIN_NS,
    OUT_OF_RANGE,
    End,
    Header,
    Item,
    SourceRun,
    Tally,
    content_hash,
)
from trainwire.schemas.non_finite import BEYOND_FLOAT, is_beyond_float
from trainwire.schemas.wire.limits import MAX_METRIC_NAME_CHARS
from trainwire.schemas.wire.messages import Point
from trainwire.stack.errors import Problem

MAX_CELL_CHARS: Final = 64 * 1024 * 1024
"""Largest number of characters in a cell; more are the result of a quote that is not closed."""
MAX_HEADER_CHARS: Final = 1024 * 1024
FIRST_ROWS: Final = 100
"""Number of rows that are searched for the first time."""
_NO_NUMBER: Final = "not a number"
_NO_TIME: Final = "time is neither ISO 8601 nor seconds since 1970"


def csv_run(path: Path, name: str | None, copy: str) -> SourceRun:
    """Return the run in a CSV file; raise `Problem` if the file is unreadable, or lacks a required column.

    `copy` is a text that becomes part of the run's identity. With another text, the same file is imported again,
    as another job.
    """
    try:
        path = Path(os.path.realpath(path, strict=True))  # Path.resolve raises RuntimeError for a loop of links
        if not path.is_file():  # a pipe cannot be read twice
            raise Problem(f"{path} is not a file: write the CSV to a file first")
        digest = content_hash(path)
        changed_ns = path.stat().st_mtime_ns
        with path.open("rb") as raw:
            if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise Problem(f"{path} is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`")
        with _opened(path) as file:
            delimiter = delimiter_of(file.readline(MAX_HEADER_CHARS))
            file.seek(0)
            rows = _rows(path, file, delimiter)
            columns = columns_of_header(path, next(rows, []), delimiter).without_elapsed(
                _readable(islice(rows, FIRST_ROWS))
            )
    except OSError as exc:
        raise Problem(f"cannot read {path}: {exc.strerror or exc}") from exc
    shown = name or path.stem

    def items(tally: Tally) -> Iterator[Item]:
        yield from _CsvReader(path, delimiter, columns, changed_ns, tally).items(shown)

    return SourceRun(tool="csv", identity=f"{path} {digest} {copy}", name=shown, items=items)


class _CsvReader:
    def __init__(self, path: Path, delimiter: str, columns: Columns, changed_ns: int, tally: Tally) -> None:
        self._path = path
        self._delimiter = delimiter
        self._columns = columns
        self._changed_ns = changed_ns
        self._tally = tally
        self._has_fractions = False
        """Whether epochs have fractions, such as 0.5 in the middle of the first one."""

    def items(self, name: str) -> Iterator[Item]:
        """Yield the header, the points and the end of the run; skip and count cells that cannot be stored."""
        points = self._points()
        first = next(points, None)
        started_ns = None if first is None or self._columns.time is None else first.ts
        last_ts = self._changed_ns if first is None else first.ts
        yield Header(name=name, started_ns=started_ns, tags={"imported_from": f"csv {self._path}"})
        if first is not None:
            yield first
            for point in points:
                last_ts = point.ts
                yield point
        yield End(ts=last_ts)

    def _points(self) -> Iterator[Point]:
        with _opened(self._path) as file:
            rows = _rows(self._path, file, self._delimiter)
            next(rows)
            long = self._columns.long
            size = max(self._path.stat().st_size, 1)
            self._tally.share = lambda: 1.0 if file.closed else file.buffer.tell() / size
            try:
                yield from _merged(self._long(rows, *long)) if long else self._wide(rows)
            except Problem as exc:
                self._tally.fail(str(exc))
            except OSError as exc:
                self._tally.fail_within(self._path, exc)
            else:
                self._tally.taken["files"] += 1

    def _wide(self, rows: Iterable[Sequence[str]]) -> Iterator[Point]:
        metrics, width = self._columns.metrics, self._columns.width
        last = max(index for index, _ in metrics)
        number = self._columns.number if self._columns.has_decimal_commas else plain_number
        for row in rows:
            values = {}
            if len(row) <= last or len(row) > width:
                row = self._padded(row)  # noqa: PLW2901 - the same row, as wide as the header
            for index, name in metrics:
                cell = row[index]
                if cell:
                    try:
                        values[name] = number(cell)
                    except ValueError:
                        if not cell.isspace():
                            self._tally.skip("points", f"{_NO_NUMBER}, column {name[:100]!r}")
            if not math.isfinite(sum(values.values())):  # one test for all cells of nearly every row
                self._leave_out_beyond(values, row)
            if self._columns.unnamed:
                left_out = sum(bool(row[index]) for index in self._columns.unnamed)
                self._tally.skip("points", "column without a name", left_out)
            if values and (point := self._point(row, values)) is not None:
                yield point

    def _leave_out_beyond(self, values: dict[str, float], row: Sequence[str]) -> None:
        for index, name in self._columns.metrics:
            if name in values and is_beyond_float(values[name], row[index]):
                del values[name]
                self._tally.skip("points", f"{BEYOND_FLOAT}, column {name[:100]!r}")

    def _long(self, rows: Iterable[Sequence[str]], name_at: int, value_at: int) -> Iterator[Point]:
        for row in rows:
            if not row:
                continue
            row = self._padded(row)  # noqa: PLW2901 - the same row, as wide as the header
            name, cell = row[name_at], row[value_at]
            if not name or len(name) > MAX_METRIC_NAME_CHARS:
                self._tally.skip("points", f"name is empty or over {MAX_METRIC_NAME_CHARS:,} characters")
                continue
            if NOT_UTF8 in name:
                self._tally.skip("points", "name is not UTF-8")
                continue
            try:
                values = {name: self._columns.number(cell)}
            except ValueError:
                self._tally.skip("points", "no value" if not cell.strip() else _NO_NUMBER)
                continue
            if is_beyond_float(values[name], cell):
                self._tally.skip("points", BEYOND_FLOAT)
            elif (point := self._point(row, values)) is not None:
                yield point

    def _padded(self, row: Sequence[str]) -> list[str]:
        width = self._columns.width
        self._tally.skip("points", "more cells than the header has", sum(map(bool, row[width:])))
        return [*row[:width], *[""] * (width - len(row))]

    def _point(self, row: Sequence[str], values: dict[str, float]) -> Point | None:
        columns = self._columns
        try:
            step = columns.whole(row, columns.step)
            epoch = self._epoch(row, values)
        except ValueError:
            self._tally.skip("points", "step or epoch is not a whole number", len(values))
            return None
        if columns.time is None:
            return Point(ts=self._changed_ns, values=values, epoch=epoch, step=step)
        ts = columns.time_ns(row)
        if ts is None or not MIN_NS <= ts <= MAX_NS:
            self._tally.skip("points", _NO_TIME if ts is None else OUT_OF_RANGE, len(values))
            return None
        return Point(ts=ts, values=values, epoch=epoch, step=step)

    def _epoch(self, row: Sequence[str], values: dict[str, float]) -> int | None:
        """Return the epoch of a row; raise `ValueError` if it is no number.

        It may have a fraction, as Transformers writes it: then the point is in the current epoch, counted from 1,
        and the number is added to `values` as the metric `epoch`, as for printed lines.
        """
        columns = self._columns
        try:
            epoch = columns.whole(row, columns.epoch)
        except ValueError:
            if columns.epoch is None:
                raise
            fraction = columns.number(row[columns.epoch])
            if not math.isfinite(fraction) or fraction.is_integer():  # an integer beyond 64 bits
                raise
            self._has_fractions = True
            values.setdefault("epoch", fraction)  # a row of the long form may have this name
            return math.ceil(fraction)
        if self._has_fractions and epoch is not None:
            values.setdefault("epoch", float(epoch))
        return epoch


def _merged(points: Iterable[Point]) -> Iterator[Point]:
    """Merge consecutive points with the same time, step and epoch, unless they have a metric in common.

    An equal metric `epoch` may be in common: each row of one epoch has a copy of it.
    """
    known: Point | None = None
    for point in points:
        if known is not None:
            if _place(known) == _place(point) and _may_merge(known.values, point.values):
                known.values.update(point.values)
                continue
            yield known
        known = point
    if known is not None:
        yield known


def _place(point: Point) -> tuple[int, int | None, int | None]:
    return point.ts, point.step, point.epoch


def _may_merge(known: dict[str, float], values: dict[str, float]) -> bool:
    common = known.keys() & values.keys()
    return not common or (common == {"epoch"} and known["epoch"] == values["epoch"])


def _opened(path: Path) -> TextIO:
    # Bytes that are not UTF-8 are replaced; in a number they make it "not a number", which is counted.
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def _readable(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield rows up to the first that cannot be read."""
    with suppress(Problem):
        yield from rows


def _rows(path: Path, file: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_CELL_CHARS)
    row: list[str] = []
    before = last = 0
    # The empty line after the last one is a row of its own, unless a quote that is not closed takes it.
    reader = csv.reader(chain(file, ("\n",)), delimiter=delimiter)
    try:
        for row in reader:
            before, last = last, reader.line_num
            yield row
    except csv.Error as exc:
        raise Problem(f"{path}, line {reader.line_num:,}: {exc}; is a quote before it not closed?") from exc
    if row:
        raise Problem(
            f"{path}, line {before + 1:,}: a quote is not closed, so the lines after it are not read; "
            "close it or remove it"
        )
