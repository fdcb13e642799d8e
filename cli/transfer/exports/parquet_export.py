"""Writes a job as parquet in the schema of neptune-exporter (docs/import-export.md)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, Final

from trainwire.cli.transfer.exports.exported_jobs import ExportedJob
from trainwire.cli.transfer.parquet_schema import MAX_STEP, SERIES, TEXTS, VALUE_COLUMNS, arrow, schema
from trainwire.schemas.non_finite import NON_FINITE_NAMES
from trainwire.schemas.validation import MAX_ID

BATCH_ROWS: Final = 20_000
Attribute = dict[str, Any]


def write_parquet(exported: ExportedJob, path: Path, project: str) -> None:
    """Write all of a job into one file; raises `Problem` without pyarrow."""
    pa, pq = arrow()
    columns = schema(pa)
    common = {"project_id": project, "run_id": str(exported.job.id)}
    rows = ({**common, **row} for row in _rows(exported))
    with pq.ParquetWriter(path, columns, compression="snappy") as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=columns))


def _rows(exported: ExportedJob) -> Iterator[Attribute]:
    job = exported.job
    about = {
        "sys/name": job.name,
        "sys/status": job.status,
        "sys/creation_time": job.started_at or job.created_at,
        "sys/end_time": job.completed_at,
        "sys/error_message": job.error_message,
        **{f"parameters/{name}": value for name, value in (job.params or {}).items()},
        **{f"tags/{name}": value for name, value in (job.tags or {}).items()},
    }
    yield from (_single(path, value) for path, value in about.items() if value is not None)
    for row in exported.read_points():
        place = row.step if row.step is not None else row.epoch
        step = _step(row.seq if place is None else place)
        for name, value in row.values.items():
            number = NON_FINITE_NAMES[value] if isinstance(value, str) else value
            yield {
                "attribute_path": name,
                "attribute_type": SERIES,
                "step": step,
                "timestamp": row.logged_at,
                "float_value": float(number),
            }
    for line in exported.read_lines():
        yield {
            "attribute_path": f"logs/{line.log_type}",
            "attribute_type": TEXTS,
            "step": _step(line.seq),
            "timestamp": line.logged_at,
            "string_value": line.content,
        }


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


def _step(step: int) -> Decimal | None:
    return Decimal(step) if abs(step) <= MAX_STEP else None
