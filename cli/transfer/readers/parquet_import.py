"""Reads runs from parquet files in the schema of neptune-exporter (docs/import-export.md)."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from trainwire.cli.transfer.parquet_schema import MAX_STEP, SERIES, TEXTS, VALUE_COLUMNS, arrow, schema
from trainwire.cli.transfer.readers.merging import MergedSeries
from trainwire.cli.transfer.runs import (
    LONG_NAME,
    MAX_NS,
    MIN_NS,
    OUT_OF_RANGE,
    End,
    Header,
    Item,
    Line,
    SourceRun,
    Tally,
    content_hash,
    files_below,
)
from trainwire.schemas.times import to_ns
from trainwire.schemas.wire.limits import MAX_METRIC_NAME_CHARS
from trainwire.schemas.wire.messages import Outcome
from trainwire.stack.errors import Problem

_FILES: Final = frozenset({"file", "file_set", "file_series", "artifact"})
_MS: Final = 1_000_000
_READ: Final = ("project_id", "run_id", "attribute_path", "attribute_type", "step", "timestamp")
_SERIES_COLUMNS: Final = (*_READ, "float_value", "string_value")
_SINGLE_COLUMNS: Final = (*_READ[:4], *VALUE_COLUMNS.values())
_IDS: Final = frozenset(_READ[:4])
_STREAMS: Final = ("stdout", "stderr")


@dataclass
class _Run:
    """A run in parquet files; `groups` has the (file, number) of each row group that contains its rows."""

    project: str
    run_id: str
    groups: list[tuple[Path, int]] = field(default_factory=list)
    rows: int = 0
    """Number of rows in `groups`, including rows of other runs in the same row groups."""


def parquet_runs(path: Path, copy: str) -> Iterator[SourceRun]:
    """Yield the runs in a parquet file, or in all parquet files below a folder.

    `copy` becomes part of each run's identity. Raises `Problem` if there is no file, if one cannot be read or is
    not a parquet file with this schema, or if pyarrow is not installed.
    """
    pa, pq = arrow()
    files = sorted(files_below(path, lambda name: name.endswith(".parquet"))) if path.is_dir() else [path]
    if not files:
        raise Problem(f"no file *.parquet below {path}: give the folder of `neptune-exporter export --data-path`")
    runs: dict[tuple[str, str], _Run] = {}
    hashes = {}
    for file in files:
        try:
            _find_runs(file, pq.ParquetFile(file), schema(pa).names, runs)
            hashes[file] = content_hash(file)
        except OSError as exc:
            raise Problem(f"cannot read {file}: {exc.strerror or exc}") from exc
        except (pa.ArrowException, UnicodeDecodeError) as exc:
            raise Problem(f"{file} is not a parquet file, or it is damaged: {exc}") from exc
    for run in runs.values():
        used = " ".join(dict.fromkeys(hashes[file] for file, _ in run.groups))
        yield _source_run(run, f"{run.project} {run.run_id} {used} {copy}", pq)


def _find_runs(file: Path, opened: Any, wanted: list[str], runs: dict[tuple[str, str], _Run]) -> None:
    names = opened.schema_arrow.names
    wrong = next((name for name in sorted(wanted) if names.count(name) != 1), None)
    if wrong is not None:
        number = f"{names.count(wrong)} columns" if wrong in names else "no column"
        raise Problem(f"{file} has {number} {wrong!r}: expected the schema of neptune-exporter")
    for group in range(opened.num_row_groups):
        table = opened.read_row_group(group, columns=["project_id", "run_id"])
        keys = table.group_by(["project_id", "run_id"], use_threads=False).aggregate([]).to_pylist()
        for key in keys:
            project, run_id = (str(_text(key[name])) for name in ("project_id", "run_id"))
            run = runs.setdefault((project, run_id), _Run(project, run_id))
            if (file, group) not in run.groups[-1:]:  # a number and a text may be the same id
                run.groups.append((file, group))
                run.rows += table.num_rows


def _source_run(run: _Run, identity: str, pq: Any) -> SourceRun:
    def items(tally: Tally) -> Iterator[Item]:
        yield from _RunReader(run, pq, tally).items()

    return SourceRun(tool="parquet", identity=identity, name=run.run_id, items=items)


class _RunReader:
    def __init__(self, run: _Run, pq: Any, tally: Tally) -> None:
        self._run = run
        self._pq = pq
        self._tally = tally
        self._damaged: set[Path] = set()

    def items(self) -> Iterator[Item]:
        """Yield the header, all points in the order of time, all log lines, and the end."""
        single = self._single_values()
        started, ended = single.pop("sys/creation_time", None), single.pop("sys/end_time", None)
        started_ns = to_ns(started) if isinstance(started, datetime) else None
        yield self._header(single, started_ns)
        last_ts = started_ns or 0
        fallback_ts = started_ns if started_ns is not None else self._run.groups[0][0].stat().st_mtime_ns
        series, lines = self._series(fallback_ts)
        for point in series.points():
            last_ts = point.ts
            yield point
        yield from lines
        last_ts = max([last_ts, *(line.ts for line in lines)])
        self._tally.taken["files"] += len({file for file, _ in self._run.groups} - self._damaged)
        error = single.get("sys/error_message")
        yield End(
            ts=to_ns(ended) if isinstance(ended, datetime) else last_ts,
            status=_status(single),
            error_message=None if error is None else str(error),
        )

    def _header(self, single: dict[str, Any], started_ns: int | None) -> Header:
        params, tags = {}, {"imported_from": f"parquet {self._run.project}/{self._run.run_id}"}
        for path, value in single.items():
            prefix, _, rest = path.partition("/")
            shown = value.isoformat() if isinstance(value, datetime) else value
            if prefix == "parameters" and rest:
                params[rest] = shown
            elif prefix in {"sys", "tags"} and rest:
                tags[rest if prefix == "tags" else path] = shown
            else:
                params[path] = shown
        name = str(single.get("sys/name") or single.get("sys/custom_run_id") or self._run.run_id)
        return Header(name=name, started_ns=started_ns, tags=tags, params=params or None)

    def _single_values(self) -> dict[str, Any]:
        pa, _ = arrow()
        pc = _compute()
        kinds = pa.array(list(VALUE_COLUMNS))
        values = {}
        for rows in self._rows(_SINGLE_COLUMNS):
            for row in rows.filter(pc.is_in(rows.column("attribute_type"), value_set=kinds)).to_pylist():
                value = row[VALUE_COLUMNS[row["attribute_type"]]]
                if value is not None:
                    values[row["attribute_path"]] = value
        return values

    def _series(self, fallback_ts: int) -> tuple[MergedSeries, list[Line]]:
        series = MergedSeries()
        lines: list[Line] = []
        total, read = max(self._run.rows, 1), 0
        self._tally.share = lambda: read / total
        for rows in self._rows(_SERIES_COLUMNS):
            read += rows.num_rows
            for kind, own in _by_value(_with_numbers(rows), "attribute_type"):
                if kind == SERIES:
                    self._add_numbers(series, own, fallback_ts)
                elif kind == TEXTS:
                    lines += self._lines(own, fallback_ts)
                elif kind in _FILES:
                    self._tally.skip("files", "files are not copied", own.num_rows)
                elif kind not in VALUE_COLUMNS:
                    self._tally.skip("points", f"{kind}: not a number", own.num_rows)
        return series, lines

    def _add_numbers(self, series: MergedSeries, rows: Any, fallback_ts: int) -> None:
        pc = _compute()
        rows = self._kept(rows, pc.is_valid(rows.column("float_value")), "no value")
        steps = rows.column("step")
        is_whole = pc.and_(pc.equal(pc.floor(steps), steps), pc.less_equal(pc.abs(steps), float(MAX_STEP)))
        rows = self._kept(rows, is_whole, "step is not a whole number")
        rows = self._kept(rows, _in_range(rows), OUT_OF_RANGE)
        for path, own in _by_value(rows, "attribute_path"):
            if len(path) > MAX_METRIC_NAME_CHARS:
                self._tally.skip("points", LONG_NAME, own.num_rows)
                continue
            times_us = pc.fill_null(pc.multiply(own.column("timestamp"), 1000), fallback_ts // 1000)
            steps = own.column("step").cast("int64")
            series.extend(path, _array("q", times_us), _array("q", steps), _array("d", own.column("float_value")))

    def _kept(self, rows: Any, is_kept: Any, reason: str) -> Any:
        """Return the rows for which the mask `is_kept` is true; count the others as skipped for `reason`."""
        kept = rows.filter(is_kept)
        self._tally.skip("points", reason, rows.num_rows - kept.num_rows)
        return kept

    def _lines(self, rows: Any, fallback_ts: int) -> Iterator[Line]:
        kept = rows.filter(_in_range(rows))
        self._tally.skip("lines", OUT_OF_RANGE, rows.num_rows - kept.num_rows)
        for row in kept.to_pylist():
            path, text, at_ms = row["attribute_path"], row["string_value"] or "", row["timestamp"]
            stream = path.rpartition("/")[2]
            shown = text if stream in _STREAMS else f"{path} (step {row['step']:g}): {text}"
            if self._tally.fits(shown):
                ts = fallback_ts if at_ms is None else at_ms * _MS
                yield Line(ts, shown, "stderr" if stream == "stderr" else "stdout")

    def _rows(self, columns: tuple[str, ...]) -> Iterator[Any]:
        """Yield the rows of this run in batches."""
        pc = _compute()
        by_file: dict[Path, list[int]] = defaultdict(list)
        for file, group in self._run.groups:
            by_file[file].append(group)
        for file, groups in by_file.items():
            for batch in self._batches(file, groups, columns):
                is_project = pc.equal(batch.column("project_id"), self._run.project)
                is_run = pc.equal(batch.column("run_id"), self._run.run_id)
                yield batch.filter(pc.and_(is_project, is_run))

    def _batches(self, file: Path, groups: list[int], columns: tuple[str, ...]) -> Iterator[Any]:
        """Yield batches of rows from a file until a read error, which is recorded once per file."""
        pa, _ = arrow()
        try:
            for batch in self._pq.ParquetFile(file).iter_batches(row_groups=groups, columns=list(columns)):
                yield self._converted(batch, columns)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as exc:
            if file not in self._damaged:
                self._damaged.add(file)
                self._tally.fail_within(file, exc)

    def _converted(self, batch: Any, columns: tuple[str, ...]) -> Any:
        """Return columns of a batch with the types of the schema, steps as floats, and null ids as empty texts.

        Times of attributes that cannot be stored become null, with a note. Raises pyarrow's error, with the name
        of the column, for values that cannot be converted.
        """
        pa, _ = arrow()
        pc = _compute()
        types = schema(pa)
        arrays = []
        for name in columns:
            column, wanted = batch.column(name), pa.float64() if name == "step" else types.field(name).type
            try:
                column = column if column.type == wanted else column.cast(wanted, safe=not _is_number(wanted, pa))
                column.validate(full=True)
            except pa.ArrowException as exc:
                raise pa.ArrowInvalid(f"column {name!r}: {exc}") from exc
            if name in _IDS:
                column = pc.fill_null(column, "")
            if name == "datetime_value":
                is_in = _is_storable(column.cast(pa.int64()))
                if out := pc.sum(pc.invert(is_in)).as_py():
                    self._tally.notes.append(f"{out:,} attributes are left out: their {OUT_OF_RANGE}")
                column = pc.if_else(is_in, column, pa.scalar(None, wanted))
            arrays.append(column)
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _text(value: object) -> object:
    """Return the id of a project or run as `_converted` does: empty for null, bytes as text."""
    if isinstance(value, bytes):
        return value.decode()
    return "" if value is None else value


def _is_number(wanted: Any, pa: Any) -> bool:
    """Return whether values of other types may be rounded to this type: a number or a time."""
    return bool(pa.types.is_floating(wanted) or pa.types.is_timestamp(wanted))


def _compute() -> Any:
    """Return the module `pyarrow.compute`, imported dynamically because its functions have no type annotations."""
    return import_module("pyarrow.compute")


def _with_numbers(rows: Any) -> Any:
    """Replace absent steps by 0, and convert times to milliseconds since 1970."""
    pa, _ = arrow()
    steps = _compute().fill_null(rows.column("step"), 0.0)
    values = {"step": steps, "timestamp": rows.column("timestamp").cast(pa.int64())}
    for name, column in values.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def _in_range(rows: Any) -> Any:
    """Return a mask of the rows whose time can be stored, or is absent."""
    return _is_storable(rows.column("timestamp"))


def _is_storable(times_ms: Any) -> Any:
    pc = _compute()
    is_in = pc.and_(pc.greater(times_ms, MIN_NS // _MS), pc.less(times_ms, MAX_NS // _MS))
    return pc.fill_null(is_in, True)


def _by_value(rows: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (value, rows with this value) for each distinct value of a column; rows keep their order."""
    pc = _compute()
    column = rows.column(name).dictionary_encode()
    values = column.dictionary.to_pylist()
    if len(values) == 1 and not column.null_count:
        yield values[0], rows
        return
    order = pc.array_sort_indices(column.indices)  # stable
    rows, at = rows.take(order), 0
    for group in pc.value_counts(column.indices.take(order)).to_pylist():
        code, count = group["values"], group["counts"]
        yield "" if code is None else values[code], rows.slice(at, count)
        at += count


def _array(typecode: str, column: Any) -> array[Any]:
    """Return the 64-bit numbers of a column as an array; the column must have no nulls."""
    numbers: array[Any] = array(typecode)
    size = numbers.itemsize
    numbers.frombytes(memoryview(column.buffers()[1])[column.offset * size : (column.offset + len(column)) * size])
    return numbers


def _status(single: dict[str, Any]) -> Outcome:
    """Return the final status of the run, from `sys/status` (in our own exports) or Neptune's `sys/failed`."""
    stated = single.get("sys/status")
    if stated == "completed":
        return "completed"
    return "failed" if stated == "failed" or single.get("sys/failed") is True else "ended"
