"""`trainwire spool`: what trainers could not send yet, and sending it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from trainwire.cli.commands.options import AsJson, DataDir, JobId, job_number, servers, write_json
from trainwire.cli.numbers import seconds_option
from trainwire.cli.terminal import cell, console, local, one_line, say, table, warn
from trainwire.ingest.destinations import ANY_STACK, name_of
from trainwire.ingest.running_stacks import StackFolders
from trainwire.ingest.sending.recovery import NO_LIMIT, Leftover, send_leftovers
from trainwire.ingest.settings import REDIS_URL_VARIABLE, Timing, default_spool_dir, server_of, shown_host
from trainwire.ingest.spool.folder import About, SourceFolder, source_folders
from trainwire.ingest.spool.listing import Spooled, list_spool
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.messages import Logs
from trainwire.schemas.wire import decode_body, open_envelope
from trainwire.stack.errors import Problem
from trainwire.stack.locate import streams_url

DEFAULT_TIMEOUT_S: Final = 600.0
EXIT_LEFT: Final = 1

SpoolDir = Annotated[
    Path | None, typer.Option("--spool", metavar="DIR", help="The folder; default: TRAINWIRE_SPOOL_DIR, or yours.")
]

app = typer.Typer(no_args_is_help=True, help="What trainers could not send yet: look, send or discard it.")


@app.command("list")
def list_sources(as_json: AsJson = False, spool: SpoolDir = None) -> None:
    """List the sources that have messages on the disk, the oldest first."""
    folder = _folder(spool)
    found, has_more = _looked_into(folder)
    if as_json:
        write_json([_document(source) for source in found])
    elif found:
        _show_table(found)
    elif not has_more:
        say(f"nothing in {folder}")


@app.command()
def show(job_id: JobId, spool: SpoolDir = None) -> None:
    """Print the log lines of a job that are on the disk; some of them may be stored already."""
    sources = [source for source in list_spool(_folder(spool)) if source.about.job_id == job_id]
    if not sources:
        raise Problem(f"nothing of job {job_id} in {_folder(spool)}")
    for source in sources:
        for line in _lines(source):
            say(one_line(line))


@app.command()
def send(
    timeout_s: Annotated[
        float, seconds_option(1, 86_400, "How long one source may take.", "--timeout")
    ] = DEFAULT_TIMEOUT_S,
    any_server: Annotated[
        bool, typer.Option("--any-server", help="Send what was meant for other Redis servers here, too.")
    ] = False,
    spool: SpoolDir = None,
    data_dir: DataDir = None,
) -> None:
    """Send what processes that are gone have left; exit code 1 while anything is left of it."""
    redis_url, names = _server(data_dir)
    folder = _folder(spool)
    for leftover in send_leftovers(folder, redis_url, Timing(), timeout_s, servers=names, any_server=any_server):
        say(_told(leftover, redis_url))
    found, has_more = _looked_into(folder)
    left = [source for source in found if not source.is_live or source.is_being_sent]
    for source in left:
        if source.is_being_sent:
            say(f"{_name(source.about)}: another process sends its {source.count:,} messages now")
    others = sorted({source.about.server for source in left} - names)
    if others and not any_server:
        say(f"left for {', '.join(others)}: name that server in REDIS_URL, or send it here with --any-server")
    if has_more or left:
        raise typer.Exit(EXIT_LEFT)
    if living := [source for source in found if source.is_live]:
        count = sum(source.count for source in living)
        say(f"{folder} has {count:,} messages of {len(living):,} living processes, which send them themselves")
    else:
        say(f"nothing is left in {folder}")


@app.command()
def discard(
    job_id: Annotated[
        int | None, typer.Argument(metavar="[JOB]", parser=job_number, help="The job's number.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="Of this source alone.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Of all jobs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it they are only listed.")] = False,
    spool: SpoolDir = None,
) -> None:
    """Delete what processes that are gone have left and nobody wants; without --yes it is only listed."""
    if (job_id is None and source is None) != every:
        raise Problem("name the job, or its --source, or all of them with --all")
    folder = _folder(spool)
    found, _ = _looked_into(folder)
    wanted = [
        each for each in found if job_id in {None, each.about.job_id} and source in {None, each.about.source}
    ]
    if not wanted:
        raise Problem(f"nothing of that in {folder}: `trainwire spool list` shows what there is")
    for each in wanted:
        _discard(each, is_meant=yes)
    if not yes:
        say("nothing was deleted: add --yes to delete them for good")


def _discard(source: Spooled, *, is_meant: bool) -> None:
    name = f"{_name(source.about)}: {source.count:,} messages, {source.size_bytes / 1e6:,.1f} MB"
    if source.is_live:
        say(f"{name}: in use, stays")
    elif not is_meant:
        say(name)
    elif (claimed := SourceFolder.claim(source.path)) is None:
        say(f"{name}: in use since a moment, stays")
    else:
        claimed.remove()
        say(f"{name}: {'cannot be deleted' if source.path.exists() else 'deleted'}")


def _name(about: About) -> str:
    return f"job {about.job_id}, source {about.source}"


def _server(data_dir: Path | None) -> tuple[str, set[str]]:
    """Return the server to send to, and the names under which the spool has messages for it."""
    redis_url = os.environ.get(REDIS_URL_VARIABLE) if data_dir is None else None
    folders = StackFolders.from_env(os.environ)
    stack = folders.owner_of(redis_url) if redis_url else None
    if redis_url is None or stack is not None:
        address = servers(data_dir or stack)
        redis_url, stack = address.need_redis_url(), address.data_dir
    streams = streams_url(redis_url, os.environ)
    return streams, {server_of(streams), ANY_STACK, *([] if stack is None else [name_of(stack)])}


def _folder(spool: Path | None) -> Path:
    if spool is not None and not spool.is_dir():
        raise Problem(f"--spool {spool} is not a folder: name the one in which the trainers' messages are")
    return spool or default_spool_dir(os.environ)


def _looked_into(folder: Path) -> tuple[list[Spooled], bool]:
    """Return what is there, and whether there is more that cannot be read; that is named."""
    paths = list(source_folders(folder))
    found = list(list_spool(folder))
    hidden = [path for path in set(paths) - {source.path for source in found} if path.exists()]
    for path in sorted(hidden):
        warn(f"{path} cannot be read: it may be another user's")
    return found, bool(hidden)


def _told(leftover: Leftover, redis_url: str) -> str:
    name, receipt = _name(leftover.about), leftover.receipt
    if leftover.is_discarded:
        return f"{name}: the job was deleted: {sum(receipt.produced.values()):,} messages are discarded"
    if leftover.is_done and receipt.lost:
        lost = sum(receipt.lost.values())
        return f"{name}: {sum(receipt.stored.values()):,} messages are stored, {lost:,} are lost for good"
    if leftover.is_done:
        return f"{name}: all {sum(receipt.produced.values()):,} messages are stored"
    unsent, unstored = sum(receipt.unsent.values()), receipt.unsettled
    if unsent:
        return f"{name}: {unsent:,} messages are not sent: Redis at {shown_host(redis_url)} does not take them"
    return f"{name}: all is sent, {unstored:,} messages wait for a worker; send again when one runs"


def _lines(source: Spooled) -> Iterator[str]:
    spool = Spool(SourceFolder(source.path, source.about, -1), NO_LIMIT)
    span = spool.spans().get("logs")
    seq = span.first if span else 1
    while span and seq <= span.last:
        found = spool.read("logs", seq)
        if (following := min(found, default=span.last + 1)) > seq:
            yield f"[messages {seq} to {following - 1} are damaged]"
            seq = following
        for number, entry in found.items():
            fields = {name.encode(): str(value).encode() for name, value in entry.items() if name != "body"}
            body = entry["body"]
            assert isinstance(body, bytes)  # noqa: S101 - as the spool has it
            yield from _text("logs", fields | {b"body": body})
            seq = number + 1


def _text(kind: Kind, fields: dict[bytes, bytes]) -> Iterator[str]:
    body = decode_body(kind, open_envelope(fields))
    if isinstance(body, Logs):
        yield from body.lines


def _show_table(found: list[Spooled]) -> None:
    shown = table("job", "attempt", "source", "server", "host", "pid", "state", "messages", "size", "written")
    for source in found:
        about = source.about
        counts = " · ".join(f"{source.messages[kind]:,} {kind}" for kind in KINDS if kind in source.messages)
        state = "in use" if source.is_live else "left"
        written = local(source.written_at).strftime("%Y-%m-%d %H:%M:%S")
        values = (
            about.job_id,
            about.attempt or None,
            about.source,
            about.server,
            about.host,
            about.pid,
            state,
            counts,
        )
        shown.add_row(
            *(cell(value) for value in values), cell(f"{source.size_bytes / 1e6:,.1f} MB"), cell(written)
        )
    console().print(shown)


def _document(source: Spooled) -> dict[str, object]:
    about = source.about
    return {
        "job_id": about.job_id,
        "attempt": about.attempt or None,
        "source": about.source,
        "rank": about.rank,
        "server": about.server,
        "host": about.host,
        "pid": about.pid,
        "in_use": source.is_live,
        "messages": source.messages,
        "size_bytes": source.size_bytes,
        "written_at": source.written_at,
        "path": str(source.path),
    }
