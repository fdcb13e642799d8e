"""Writes a job as CSV or JSON lines (docs/import-export.md)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any, Final, TextIO

import msgspec

from trainwire.cli.transfer.exports.exported_jobs import ExportedJob
from trainwire.schemas.non_finite import shown_value
from trainwire.schemas.times import to_datetime

_encode = msgspec.json.Encoder().encode
CSV_HEADER: Final = ("seq", "attempt", "rank", "epoch", "step", "time", "name", "value")


def write_csv(exported: ExportedJob, file: TextIO) -> None:
    """Write one CSV line per metric value (name and value), which `trainwire import csv` can read."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in exported.read_points():
        place = (row.seq, row.attempt, row.rank, row.epoch, row.step, row.logged_at.isoformat())
        for name, value in row.values.items():
            writer.writerow((*place, name, value))


def write_jsonl(exported: ExportedJob, file: TextIO) -> None:
    """Write one JSON object per line: the job, then its metric points, log lines and checkpoints."""
    job = msgspec.to_builtins(exported.job)
    # Inside maps of numbers Postgres has the names of non-finite ones already.
    shown = {name: shown_value(value) for name, value in job.items()}
    _write(file, "job", shown)
    for point in exported.read_points():
        _write(file, "metrics", point)
    for line in exported.read_lines():
        place = {"seq": line.seq, "logged_at": to_datetime(line.ts), "log_type": line.log_type}
        _write(file, "log", {**place, "level": line.level, "rank": line.rank, "content": line.text})
    for checkpoint in exported.read_checkpoints():
        _write(file, "checkpoint", checkpoint)


def _write(file: TextIO, kind: str, row: msgspec.Struct | Mapping[str, Any]) -> None:
    """Write a row of the job as a JSON object on one line; the additional field `type` names its kind."""
    file.write(f'{{"type":"{kind}",{_encode(row)[1:].decode()}\n')
