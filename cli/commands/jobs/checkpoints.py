"""`trainwire checkpoints`: list the checkpoints of a job, download them, or print presigned URLs."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from trainwire.cli.commands.options import AsJson, DataDir, JobReference, plain, servers, write_json
from trainwire.cli.formats import shown_size
from trainwire.cli.gateway_jobs import gateway_jobs
from trainwire.cli.gateway_reads import GatewayReads
from trainwire.cli.job_references import named_job
from trainwire.cli.numbers import whole_option
from trainwire.cli.terminal import one_line, print_table, say, warn
from trainwire.client.download import target_of, write_verified
from trainwire.client.errors import ClientError
from trainwire.client.job import Job
from trainwire.schemas.checkpoint_keys import S3Uri
from trainwire.schemas.wire.validation import MAX_ATTEMPT
from trainwire.stack.database import reading
from trainwire.stack.errors import Problem, as_problem
from trainwire.stores.files.folders import WrongManifest, address_of, read_manifest
from trainwire.stores.files.s3 import MAX_PRESIGN_S, NoSuchObject, NotAllowed, S3Store, S3Unavailable, open_s3
from trainwire.stores.postgres.checkpoints import (
    CheckpointFile,
    CheckpointSource,
    NotFetchable,
    find_checkpoints,
    find_source,
)

Advance = Callable[[int], None]
Which = Annotated[
    str | None, typer.Option("--download", metavar="best|last|SEQ", help="Download this one, verified.")
]
PresignedUrl = Annotated[
    str | None, typer.Option("--url", metavar="best|last|SEQ", help="Print a URL to download this one.")
]


def checkpoints(
    job: JobReference,
    *,
    as_json: AsJson = False,
    attempt: Annotated[int | None, whole_option(-MAX_ATTEMPT, MAX_ATTEMPT, "Only of this attempt.")] = None,
    url: PresignedUrl = None,
    expires: Annotated[
        int, whole_option(1, MAX_PRESIGN_S, "How long the URL is valid.", metavar="SECONDS")
    ] = 3600,
    which: Which = None,
    to: Annotated[
        Path | None, typer.Option(help="File or folder of the download; default: its own name, in this folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file or folder.")] = False,
    data_dir: DataDir = None,
) -> None:
    """List a job's checkpoints with the state of their files; download one, or print a URL to download it."""
    if url is not None and which is not None:
        raise Problem("--url and --download exclude each other")
    wanted, source = url or which, None
    with gateway_jobs(data_dir) as remote:
        if remote is not None:
            chosen = remote.job(job)
            if url is not None:
                say(remote.checkpoint_url(chosen, url, expires))
                return
            if which is not None:
                _download_over_http(chosen, which, to, force=force)
                return
            job_id = chosen.id
            all_found = GatewayReads(remote).checkpoints(job_id)
            found = [file for file in all_found if attempt in (None, file.attempt)]
    if remote is None:
        with reading(servers(data_dir)) as connection:
            job_id = named_job(connection, job).id
            with as_problem(NotFetchable):
                source = None if wanted is None else find_source(connection, job_id, wanted)
            found = find_checkpoints(connection, job_id, attempt) if source is None else []
    if source is not None and url is not None:
        _print_url(source, expires)
    elif source is not None:
        _download(source, to, force=force)
    elif as_json:
        write_json([{**plain(file), "state": file.state, "reason": file.reason} for file in found])
    elif found:
        _show_table(found)
    else:
        say(f"no checkpoints of job {job_id} yet")


def _print_url(source: CheckpointSource, expires_s: int) -> None:
    if source.uri.is_folder:
        raise Problem(f"{source.uri} is a folder, which has no URL of its own: use --download")
    with as_problem(S3Unavailable, NotAllowed, NoSuchObject):
        say(open_s3().presign(source.uri, expires_s))


def _download(source: CheckpointSource, to: Path | None, *, force: bool) -> None:
    target = target_of(source.uri.key, to)
    with as_problem(S3Unavailable):
        store = open_s3()
    with _progress(target.name, None if source.uri.is_folder else source.size_bytes) as advance:
        download(store, source, target, force=force, advance=advance)
    _report_download(target, source.sha256)


def _download_over_http(job: Job, which: str, to: Path | None, *, force: bool) -> None:
    found = job.checkpoint(which)  # once: a newer checkpoint may be stored meanwhile
    _report_download(job.download(found.seq, to=to, force=force), found.sha256)


def _report_download(target: Path, sha256: str | None) -> None:
    if sha256 is None:
        warn("the trainer recorded no SHA-256: the content cannot be verified")
        say(one_line(f"{target}: downloaded"))
    else:
        say(one_line(f"{target}: downloaded, SHA-256 as recorded"))


def download(store: S3Store, source: CheckpointSource, target: Path, *, force: bool, advance: Advance) -> None:
    """Download a checkpoint file or folder, verify it, and rename it to `target`.

    `advance` is called with the size in bytes of each piece that arrived. Raises `Problem` if `target` exists and
    `force` is not set, if the object store refuses, or if the size or the SHA-256 differs from the recorded one;
    `target` then stays unchanged.
    """
    if os.path.lexists(target) and not force:
        raise Problem(f"{target} exists already: choose another name with --to, or replace it with --force")
    # In the same folder: a rename is atomic only within one file system.
    arriving = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with _store_errors(source.uri):
            if source.uri.is_folder:
                _fetch_folder(store, source, arriving, advance)
            else:
                _fetch(store, source, arriving, advance)
            _put_in_place(arriving, target)
    except OSError as exc:
        raise Problem(f"cannot write {target}: {exc.strerror or exc}") from exc
    finally:
        _remove(arriving)


def _fetch_folder(store: S3Store, source: CheckpointSource, folder: Path, advance: Advance) -> None:
    """Download all files that the manifest of a checkpoint folder lists.

    `read_manifest` rejects paths outside of the folder.
    """
    folder.mkdir()
    for shard in read_manifest(store, source.uri, source.sha256):
        path = folder / shard.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(
            store, CheckpointSource(address_of(source.uri, shard), shard.size_bytes, shard.sha256), path, advance
        )


def _fetch(store: S3Store, source: CheckpointSource, path: Path, advance: Advance) -> None:
    def pieces() -> Iterator[bytes]:
        for piece in store.read(source.uri):
            yield piece
            advance(len(piece))

    with as_problem(ClientError):
        write_verified(pieces(), path, source.uri, size_bytes=source.size_bytes, sha256=source.sha256)


def _put_in_place(arriving: Path, target: Path) -> None:
    if not target.is_dir() and not arriving.is_dir():
        arriving.replace(target)
        return
    # A rename does not replace a file or a full folder by a folder, so the old one is moved aside first.
    former = target.with_name(f"{arriving.name}.former")
    if os.path.lexists(target):
        target.rename(former)
    arriving.rename(target)
    _remove(former)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _store_errors(uri: S3Uri) -> Iterator[None]:
    """Translate exceptions of the object store into a `Problem`."""
    try:
        yield
    except NoSuchObject as exc:
        raise Problem(f"{exc}: it was deleted, or never uploaded to this store") from exc
    except (NotAllowed, S3Unavailable, WrongManifest) as exc:
        raise Problem(f"cannot download {uri}: {exc}") from exc


@contextmanager
def _progress(name: str, size_bytes: int | None) -> Iterator[Advance]:
    """Show a progress bar if stderr is a terminal; yield a function that advances it by a number of bytes."""
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
    rows = []
    for file in files:
        state = file.state if file.reason is None else f"{file.state}: {file.reason}"
        size = None if file.size_bytes is None else shown_size(file.size_bytes)
        best = "best" if file.is_best else ""
        rows.append((file.seq, file.attempt, file.kind, file.epoch, file.step, size, best, state, file.uri))
    print_table(columns, rows, right={"seq", "attempt", "epoch", "step", "size"})
