"""Writes a job to a parquet file in the schema of neptune-exporter (docs/import-export.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from trainwire.cli.transfer.exports.exported_jobs import ExportedJob
from trainwire.cli.transfer.parquet_schema import MAX_STEP, SERIES, TEXTS, VALUE_COLUMNS, arrow, schema
from trainwire.schemas.events import LogLine
from trainwire.schemas.non_finite import NON_FINITE_NAMES
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.rows.command_rows import StoredPoint

BATCH_ROWS: Final = 20_000
Attribute = dict[str, Any]
Columns = dict[str, Any]
"""Column name -> values. A text is the value of all rows; columns that are absent are null."""


def write_parquet(exported: ExportedJob, path: Path, project: str) -> None:
    """Write a job's attributes, metric points and log lines to one parquet file; checkpoints are left out.

    `project` is the value of the column `project_id`. Raises `Problem` if pyarrow is not installed.
    """
    pa, pq = arrow()
    wanted = schema(pa)
    common = {"project_id": project, "run_id": str(exported.job.id)}
    with pq.ParquetWriter(path, wanted, compression="snappy") as writer:
        single = [{**common, **row} for row in _single_values(exported.job)]
        writer.write_batch(pa.RecordBatch.from_pylist(single, schema=wanted))
        points, lines = exported.read_points(), exported.read_lines()
        for batch in iter(lambda: list(islice(points, BATCH_ROWS)), []):
            writer.write_batch(_batch(pa, wanted, common | _series(batch)))
        for texts in iter(lambda: list(islice(lines, BATCH_ROWS)), []):
            writer.write_batch(_batch(pa, wanted, common | _texts(texts)))


def _batch(pa: Any, wanted: Any, columns: Columns) -> Any:
    size = len(columns["step"])
    arrays = []
    for field in wanted:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(size, field.type))
        elif isinstance(values, str):
            arrays.append(pa.repeat(values, size))
        elif field.name == "step":  # Arrow converts integers only to decimals that can have all of them
            arrays.append(pa.array(values, pa.int64()).cast(pa.decimal128(25, 6)).cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=wanted)


def _series(rows: Sequence[StoredPoint]) -> Columns:
    """Return the parquet columns for metric points; each metric value becomes a row."""
    names: list[str] = []
    numbers: list[float | str] = []
    steps: list[int | None] = []
    times: list[datetime] = []
    for row in rows:
        place = row.step if row.step is not None else row.epoch
        count = len(row.values)
        names += row.values
        numbers += row.values.values()
        steps += [_step(row.seq if place is None else place)] * count
        times += [row.logged_at] * count
    values = [NON_FINITE_NAMES[each] if isinstance(each, str) else each for each in numbers]
    return {
        "attribute_path": names,
        "attribute_type": SERIES,
        "step": steps,
        "timestamp": times,
        "float_value": values,
    }


def _texts(lines: Sequence[LogLine]) -> Columns:
    """Return the parquet columns for log lines; each line becomes a row."""
    return {
        "attribute_path": [f"logs/{line.log_type}" for line in lines],
        "attribute_type": TEXTS,
        "step": [_step(line.seq) for line in lines],
        "timestamp": [to_datetime(line.ts) for line in lines],
        "string_value": [line.text for line in lines],
    }


def _single_values(job: Job) -> Iterator[Attribute]:
    about = {
        "sys/name": job.name,
        "sys/status": job.status,
        "sys/creation_time": job.started_at or job.created_at,
        "sys/end_time": job.completed_at,
        "sys/error_message": job.error_message,
        **{f"parameters/{name}": value for name, value in (job.params or {}).items()},
        **{f"tags/{name}": value for name, value in (job.tags or {}).items()},
    }
    return (_single(path, value) for path, value in about.items() if value is not None)


def _single(path: str, value: Any) -> Attribute:
    kind = "string"
    if isinstance(value, bool):
        kind = "bool"
    elif isinstance(value, int) and abs(value) <= MAX_ID:
        kind = "int"
    elif isinstance(value, float):
        kind = "float"
    elif isinstance(value, datetime):
        kind = "datetime"
    elif isinstance(value, list) and all(isinstance(each, str) for each in value):
        kind = "string_set"
    value = str(value) if kind == "string" else value
    return {"attribute_path": path, "attribute_type": kind, VALUE_COLUMNS[kind]: value}


def _step(step: int) -> int | None:
    return step if abs(step) <= MAX_STEP else None
