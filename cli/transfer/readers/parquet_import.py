"""Reads the runs of parquet files in the schema of neptune-exporter (docs/import-export.md)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from trainwire.cli.transfer.parquet_schema import SERIES, TEXTS, VALUE_COLUMNS, arrow, schema
from trainwire.cli.transfer.readers.merging import MergedSeries
from trainwire.cli.transfer.runs import (
    LONG_NAME,
    End,
    Header,
    Item,
    Line,
    SourceRun,
    Tally,
    content_hash,
    files_below,
)
from trainwire.schemas.limits import MAX_METRIC_NAME_CHARS
from trainwire.schemas.messages import Outcome
from trainwire.schemas.times import to_ns
from trainwire.stack.errors import Problem

_FILES: Final = frozenset({"file", "file_set", "file_series", "artifact"})
_MS: Final = 1_000_000
_READ: Final = ("project_id", "run_id", "attribute_path", "attribute_type", "step", "timestamp")
_SERIES_COLUMNS: Final = (*_READ, "float_value", "string_value")
_SINGLE_COLUMNS: Final = (*_READ[:4], *VALUE_COLUMNS.values())
_STREAMS: Final = ("stdout", "stderr")


@dataclass
class _Run:
    """A run, and the parquet row groups with its rows, by file."""

    project: str
    run_id: str
    groups: list[tuple[Path, int]] = field(default_factory=list)
    rows: int = 0
    """Of it and, where runs share row groups, of others."""


def parquet_runs(path: Path, copy: str) -> Iterator[SourceRun]:
    """Yield the runs of a file, or of all files below a folder.

    Raises `Problem` if there is none, or one is not parquet of this schema.
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
        except pa.ArrowException as exc:
            raise Problem(f"{file} is not a parquet file, or it is damaged: {exc}") from exc
    for run in runs.values():
        used = " ".join(dict.fromkeys(hashes[file] for file, _ in run.groups))
        yield _source_run(run, f"{run.project} {run.run_id} {used} {copy}", pq)


def _find_runs(file: Path, opened: Any, wanted: list[str], runs: dict[tuple[str, str], _Run]) -> None:
    missing = sorted(set(wanted) - set(opened.schema_arrow.names))
    if missing:
        raise Problem(f"{file} has no column {missing[0]!r}: expected the schema of neptune-exporter")
    for group in range(opened.num_row_groups):
        table = opened.read_row_group(group, columns=["project_id", "run_id"])
        keys = table.group_by(["project_id", "run_id"], use_threads=False).aggregate([]).to_pylist()
        for key in keys:
            project, run_id = str(key["project_id"]), str(key["run_id"])
            run = runs.setdefault((project, run_id), _Run(project, run_id))
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
        """Yield the header, all points in the order of time, all texts, and the end."""
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
        yield End(
            ts=to_ns(ended) if isinstance(ended, datetime) else last_ts,
            status=_status(single),
            error_message=single.get("sys/error_message"),
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
        columns = dict(zip(_SINGLE_COLUMNS, range(len(_SINGLE_COLUMNS)), strict=True))
        values = {}
        for row in self._rows(_SINGLE_COLUMNS, list(VALUE_COLUMNS)):
            value = row[columns[VALUE_COLUMNS[row[columns["attribute_type"]]]]]
            if value is not None:
                values[row[columns["attribute_path"]]] = value
        return values

    def _series(self, fallback_ts: int) -> tuple[MergedSeries, list[Line]]:
        series, lines = MergedSeries(), []
        total, read = max(self._run.rows, 1), 0
        self._tally.share = lambda: read / total
        for read, row in enumerate(self._rows(_SERIES_COLUMNS)):  # noqa: B007 - the share that is read
            _, _, path, kind, step, timestamp, number, text = row
            ts = fallback_ts if timestamp is None else timestamp * _MS
            if kind == SERIES:
                self._add_value(series, ts, step or 0.0, path, number)
            elif kind == TEXTS:
                shown, stream = text or "", path.rpartition("/")[2]
                shown = shown if stream in _STREAMS else f"{path} (step {step or 0:g}): {shown}"
                if self._tally.fits(shown):
                    lines.append(Line(ts, shown, "stderr" if stream == "stderr" else "stdout"))
            elif kind in _FILES:
                self._tally.skip("files", "files are not copied")
            elif kind not in VALUE_COLUMNS:
                self._tally.skip("points", f"{kind}: not a number")
        return series, lines

    def _add_value(self, series: MergedSeries, ts: int, step: float, path: str, value: float | None) -> None:
        if value is None:
            self._tally.skip("points", "no value")
        elif not step.is_integer():
            self._tally.skip("points", "step is not a whole number")
        elif len(path) > MAX_METRIC_NAME_CHARS:
            self._tally.skip("points", LONG_NAME)
        else:
            series.add(ts, int(step), path, value)

    def _rows(self, columns: tuple[str, ...], kinds: list[str] | None = None) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of the run, or of these kinds: steps as floats, times in milliseconds since 1970."""
        pa, _ = arrow()
        pc: Any = import_module("pyarrow.compute")
        by_file: dict[Path, list[int]] = defaultdict(list)
        for file, group in self._run.groups:
            by_file[file].append(group)
        for file, groups in by_file.items():
            for batch in self._batches(file, groups, columns):
                conditions = [
                    pc.equal(batch.column(0).cast(pa.string()), self._run.project),
                    pc.equal(batch.column(1).cast(pa.string()), self._run.run_id),
                ]
                if kinds is not None:
                    kind = batch.column(columns.index("attribute_type")).cast(pa.string())
                    conditions.append(pc.is_in(kind, value_set=pa.array(kinds)))
                own = batch.filter(reduce(pc.and_, conditions))
                data = [
                    own.column(at).cast(pa.float64() if name == "step" else pa.int64()).to_pylist()
                    if name in {"step", "timestamp"}
                    else own.column(at).to_pylist()
                    for at, name in enumerate(columns)
                ]
                yield from zip(*data, strict=True)

    def _batches(self, file: Path, groups: list[int], columns: tuple[str, ...]) -> Iterator[Any]:
        """Yield the batches of rows up to an error, which is counted once for the file."""
        pa, _ = arrow()
        try:
            for batch in self._pq.ParquetFile(file).iter_batches(row_groups=groups, columns=list(columns)):
                yield batch.select(list(columns))
        except (pa.ArrowException, OSError) as exc:
            if file not in self._damaged:
                self._damaged.add(file)
                self._tally.fail(f"{file}: {exc}; what comes before it is imported")


def _status(single: dict[str, Any]) -> Outcome:
    """Return the outcome of the run, from the attribute of our own export or Neptune's `sys/failed`."""
    stated = single.get("sys/status")
    if stated == "completed":
        return "completed"
    return "failed" if stated == "failed" or single.get("sys/failed") is True else "ended"
