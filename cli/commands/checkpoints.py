"""`trainwire checkpoints`: the checkpoints of a job, where they are, and how to get them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from trainwire.cli.commands.jobs import known_job
from trainwire.cli.commands.options import AsJson, DataDir, JobReference, plain, servers, write_json
from trainwire.cli.download import Advance, download, target_of
from trainwire.cli.job_references import job_id_of
from trainwire.cli.numbers import whole_option
from trainwire.cli.terminal import cell, console, one_line, say, table, warn
from trainwire.schemas.validation import MAX_ATTEMPT
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem
from trainwire.stores.files.s3 import MAX_PRESIGN_S, NoSuchObject, NotAllowed, S3Unavailable, open_s3
from trainwire.stores.postgres.checkpoints import (
    CheckpointFile,
    CheckpointSource,
    NotFetchable,
    find_checkpoints,
    find_source,
)

Which = Annotated[
    str | None, typer.Option("--download", metavar="best|last|SEQ", help="Download this one, verified.")
]
Lent = Annotated[
    str | None, typer.Option("--url", metavar="best|last|SEQ", help="Print an address to download it.")
]


def checkpoints(
    job: JobReference,
    *,
    as_json: AsJson = False,
    attempt: Annotated[int | None, whole_option(-MAX_ATTEMPT, MAX_ATTEMPT, "Only of this attempt.")] = None,
    url: Lent = None,
    expires: Annotated[
        int, whole_option(1, MAX_PRESIGN_S, "How many seconds the address is good for.", metavar="SECONDS")
    ] = 3600,
    which: Which = None,
    to: Annotated[
        Path | None, typer.Option(help="Where the download goes; by default its own name, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    data_dir: DataDir = None,
) -> None:
    """List a job's checkpoints and what became of their files; download one, or print its address."""
    if url is not None and which is not None:
        raise Problem("say either --url or --download")
    wanted = url or which
    with reading(servers(data_dir)) as connection:
        job_id = known_job(connection, job_id_of(connection, job)).id
        try:
            source = None if wanted is None else find_source(connection, job_id, wanted)
        except NotFetchable as exc:
            raise Problem(str(exc)) from exc
        found = find_checkpoints(connection, job_id, attempt) if source is None else []
    if source is not None and url is not None:
        _lend(source, expires)
    elif source is not None:
        _download(source, to, force=force)
    elif as_json:
        write_json([{**plain(file), "state": file.state, "reason": file.reason} for file in found])
    elif found:
        _show_table(found)
    else:
        say(f"no checkpoints of job {job_id} yet")


def _lend(source: CheckpointSource, expires_s: int) -> None:
    if source.uri.is_folder:
        raise Problem(f"{source.uri} is a folder, which has no address of its own: get it with --download")
    try:
        say(open_s3().presign(source.uri, expires_s))
    except (S3Unavailable, NotAllowed, NoSuchObject) as exc:
        raise Problem(str(exc)) from exc


def _download(source: CheckpointSource, to: Path | None, *, force: bool) -> None:
    target = target_of(source, to)
    try:
        store = open_s3()
    except S3Unavailable as exc:
        raise Problem(str(exc)) from exc
    with _progress(target.name, None if source.uri.is_folder else source.size_bytes) as advance:
        download(store, source, target, force=force, advance=advance)
    if source.sha256 is None:
        warn("the trainer recorded no SHA-256, so nobody can tell whether this is what it saved")
        say(one_line(f"{target}: downloaded"))
    else:
        say(one_line(f"{target}: downloaded, SHA-256 as recorded"))


@contextmanager
def _progress(name: str, size_bytes: int | None) -> Iterator[Advance]:
    """Draw a bar on stderr while that is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(one_line(name), total=size_bytes)
        yield lambda count: bar.update(task, advance=count)


def _show_table(files: list[CheckpointFile]) -> None:
    columns = ("seq", "attempt", "kind", "epoch", "step", "size", "best", "file", "uri")
    shown = table(*columns, right=frozenset({"seq", "attempt", "epoch", "step", "size"}))
    for file in files:
        state = file.state if file.reason is None else f"{file.state}: {file.reason}"
        size = None if file.size_bytes is None else shown_size(file.size_bytes)
        values = (file.seq, file.attempt, file.kind, file.epoch, file.step, size, "best" if file.is_best else "")
        shown.add_row(*(cell(value) for value in values), cell(state), cell(file.uri))
    console().print(shown)


def shown_size(size_bytes: int) -> str:
    """Return a size as people read it, in powers of 1000."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:,.4g} TB"
