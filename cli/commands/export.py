"""`trainwire export`: writes jobs to files that other tools read."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, TextIO

import typer

from trainwire.cli.commands.jobs import known_job
from trainwire.cli.commands.options import DataDir, servers
from trainwire.cli.job_references import job_id_of
from trainwire.cli.terminal import one_line, warn
from trainwire.cli.transfer.exported_jobs import ExportedJob
from trainwire.cli.transfer.parquet_export import write_parquet
from trainwire.cli.transfer.text_formats import write_csv, write_jsonl
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem
from trainwire.stores.postgres.jobs import removed_rows

TEXT_FORMATS: Final = {"csv": write_csv, "jsonl": write_jsonl}
FORMATS: Final = (*TEXT_FORMATS, "parquet")


def export(
    jobs: Annotated[
        list[str], typer.Argument(metavar="JOB...", help="Numbers or names, the beginning of either, or `last`.")
    ],
    *,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="csv, jsonl or parquet.")] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="A folder, with a file for each job.")
    ] = None,
    project: Annotated[str, typer.Option(help="The project_id in parquet.")] = "trainwire",
    data_dir: DataDir = None,
) -> None:
    """Write jobs to files: metrics as CSV, or all of a job as JSON lines or parquet.

    Without --output one job is written to stdout, as CSV or JSON lines. Parquet has the schema of
    neptune-exporter, and needs trainwire[parquet].
    """
    if form not in FORMATS:
        raise Problem(f"no such format {form!r}: choose {', '.join(FORMATS)}")
    if output is None and (form == "parquet" or len(jobs) > 1):
        raise Problem("several jobs, and parquet, are written to a folder: name it with --output DIR")
    with reading(servers(data_dir)) as connection:
        numbers = dict.fromkeys(job_id_of(connection, reference) for reference in jobs)
        for number in numbers:
            exported = ExportedJob(connection, known_job(connection, number))
            removed = removed_rows(connection, number)
            if output is None:
                TEXT_FORMATS[form](exported, sys.stdout)
                where = "stdout"
            else:
                where = str(_write(exported, form, output, project))
            warn(
                f"job {number} {one_line(exported.job.name or '')}: {exported.points:,} points, "
                f"{exported.lines:,} lines, {exported.checkpoints:,} checkpoints to {where}"
            )
            for kind, last in removed.items():
                if last:
                    warn(f"{kind} 1 to {last:,} of job {number} were removed by retention")


def _write(exported: ExportedJob, form: str, folder: Path, project: str) -> Path:
    """Write a job's file, whole or not at all; return its path."""
    try:
        if form == "parquet":
            folder = folder / re.sub(r"[^\w.-]", "_", project)
        path = folder / (f"{exported.job.id}_part_0.parquet" if form == "parquet" else f"{exported.job.id}.{form}")
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if form == "parquet":
                write_parquet(exported, part, project)
            else:
                with _created(part) as file:
                    TEXT_FORMATS[form](exported, file)
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as exc:
        raise Problem(f"cannot write to {folder}: {exc.strerror or exc}") from exc
    return path


def _created(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="")
