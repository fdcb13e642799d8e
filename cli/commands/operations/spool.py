"""`trainwire spool`: lists, prints, sends and deletes the messages in a spool."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from trainwire.cli.commands.options import AsJson, DataDir, job_number, servers, write_json
from trainwire.cli.formats import local, shown_size
from trainwire.cli.numbers import seconds_option
from trainwire.cli.terminal import one_line, print_table, say, warn
from trainwire.ingest.sending.recovery import NO_LIMIT, Leftover, send_leftovers
from trainwire.ingest.servers.destinations import ANY_STACK, name_of
from trainwire.ingest.servers.server_names import server_of, shown_server
from trainwire.ingest.settings.running_stacks import StackFolders
from trainwire.ingest.settings.server_addresses import checked_url, token_of
from trainwire.ingest.settings.setting_groups import Timing, default_spool_dir
from trainwire.ingest.settings.variables import REDIS_URL_VARIABLE, URL_VARIABLE
from trainwire.ingest.spool.folder import About, SourceFolder, source_folders
from trainwire.ingest.spool.listing import Spooled, list_spool
from trainwire.ingest.spool.spool import Spool
from trainwire.schemas.keys import KINDS, Kind
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.messages import Logs, Metrics
from trainwire.stack.errors import Problem
from trainwire.stack.locate import streams_url

DEFAULT_TIMEOUT_S: Final = 600.0
EXIT_LEFT: Final = 1

SpoolDir = Annotated[
    Path | None,
    typer.Option("--spool", metavar="DIR", help="The spool; default: TRAINWIRE_SPOOL_DIR, or your user's."),
]

app = typer.Typer(no_args_is_help=True, help="Messages that trainers have not sent: list, show, send, discard.")


@app.command("list")
def list_sources(as_json: AsJson = False, spool: SpoolDir = None) -> None:
    """List the sources that have messages in the spool, oldest first."""
    folder = _folder(spool)
    found, has_unreadable = _read_spool(folder)
    if as_json:
        write_json([_document(source) for source in found])
    elif found:
        _show_table(found)
    elif not has_unreadable:
        say(f"no messages in {folder}")


@app.command()
def show(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its number, its name, or the beginning of its name.")],
    spool: SpoolDir = None,
) -> None:
    """Print the log lines of a job that are in the spool; some of them may already be stored in Postgres."""
    folder = _folder(spool)
    sources = list(list_spool(folder))
    job_id = _job_id(job, sources, folder)
    for source in sources:
        if source.about.job_id == job_id:
            for line in _lines(source):
                say(one_line(line))


def _job_id(text: str, sources: list[Spooled], folder: Path) -> int:
    """Return the number of the job with this number, this name, or a name that begins with `text`.

    Raises `Problem` unless exactly one job of these sources fits.
    """
    names = [(source.about.job_id, _job_name(source) or "") for source in sources]
    fitting = {job_id for job_id, name in names if text == str(job_id)}
    fitting = fitting or {job_id for job_id, name in names if text == name}
    fitting = fitting or {job_id for job_id, name in names if text and name.startswith(text)}
    if not fitting:
        raise Problem(f"no messages of job {text} in {folder}: `trainwire spool list` shows all sources")
    if len(fitting) > 1:
        numbers = ", ".join(map(str, sorted(fitting)))
        raise Problem(f"{len(fitting)} jobs in {folder} fit {text!r}: choose one by its number: {numbers}")
    return fitting.pop()


@app.command()
def send(
    timeout_s: Annotated[
        float, seconds_option(1, 86_400, "Time limit for each source.", "--timeout")
    ] = DEFAULT_TIMEOUT_S,
    any_server: Annotated[
        bool, typer.Option("--any-server", help="Also send messages that were meant for other servers.")
    ] = False,
    spool: SpoolDir = None,
    data_dir: DataDir = None,
) -> None:
    """Send the messages that ended processes have left in the spool; exit code 1 if some remain."""
    url, token, names = _server(data_dir)
    folder = _folder(spool)
    found = send_leftovers(folder, url, _timing(), timeout_s, servers=names, any_server=any_server, token=token)
    for leftover in found:
        say(_outcome(leftover, url))
    remaining, has_unreadable = _read_spool(folder)
    left = [source for source in remaining if not source.is_live or source.is_being_sent]
    for source in left:
        if source.is_being_sent:
            say(f"{_name(source.about)}: another process sends its {source.count:,} messages now")
    others = sorted({source.about.server for source in left} - names)
    if others and not any_server:
        variables = "REDIS_URL or TRAINWIRE_URL"
        say(f"left for {', '.join(others)}: name that server in {variables}, or send it here with --any-server")
    if has_unreadable or left:
        raise typer.Exit(EXIT_LEFT)
    if living := [source for source in remaining if source.is_live]:
        count = sum(source.count for source in living)
        say(f"{folder} has messages ({count:,}) that running processes ({len(living):,}) send themselves")
    else:
        say(f"nothing is left in {folder}")


@app.command()
def discard(
    job_id: Annotated[
        int | None, typer.Argument(metavar="[JOB]", parser=job_number, help="The job's number.")
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="Only this source.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All jobs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list.")] = False,
    spool: SpoolDir = None,
) -> None:
    """Delete the messages that ended processes have left in the spool; without --yes they are only listed."""
    if (job_id is None and source is None) != every:
        raise Problem("give a job, a --source, or --all")
    folder = _folder(spool)
    found, _ = _read_spool(folder)
    wanted = [
        each for each in found if job_id in {None, each.about.job_id} and source in {None, each.about.source}
    ]
    if not wanted:
        raise Problem(f"no such messages in {folder}: `trainwire spool list` lists all")
    for each in wanted:
        _discard(each, confirmed=yes)
    if not yes:
        say("nothing was deleted: add --yes to delete them permanently")


def _discard(source: Spooled, *, confirmed: bool) -> None:
    name = f"{_name(source.about)}: {source.count:,} messages, {shown_size(source.size_bytes)}"
    if source.is_live:
        say(f"{name}: in use, stays")
    elif not confirmed:
        say(name)
    elif (claimed := SourceFolder.claim(source.path)) is None:
        say(f"{name}: in use now, stays")
    else:
        claimed.remove()
        say(f"{name}: {'cannot be deleted' if source.path.exists() else 'deleted'}")


def _name(about: About) -> str:
    return f"job {about.job_id}, source {about.source}"


def _server(data_dir: Path | None) -> tuple[str, str | None, set[str]]:
    """Return the URL of the server to send to, its token, and the names by which spools refer to this server."""
    if data_dir is None and (url := os.environ.get(URL_VARIABLE)):
        try:
            return checked_url(url), token_of(os.environ), {server_of(url)}
        except ValueError as exc:
            raise Problem(str(exc)) from exc
    redis_url = os.environ.get(REDIS_URL_VARIABLE) if data_dir is None else None
    folders = StackFolders.from_env(os.environ)
    stack = folders.owner_of(redis_url) if redis_url else None
    if redis_url is None or stack is not None:
        address = servers(data_dir or stack)
        redis_url, stack = address.need_redis_url(), address.data_dir
    streams = streams_url(redis_url, os.environ)
    return streams, None, {server_of(streams), ANY_STACK, *([] if stack is None else [name_of(stack)])}


def _timing() -> Timing:
    try:
        return Timing.from_env(os.environ)
    except ValueError as exc:
        raise Problem(str(exc)) from exc


def _folder(spool: Path | None) -> Path:
    if spool is not None and not spool.is_dir():
        raise Problem(f"--spool {spool} is not a folder")
    return spool or default_spool_dir(os.environ)


def _read_spool(folder: Path) -> tuple[list[Spooled], bool]:
    """Return the sources in a spool, and whether any of them is unreadable; print a warning for each of those."""
    paths = list(source_folders(folder))
    found = list(list_spool(folder))
    hidden = [path for path in set(paths) - {source.path for source in found} if path.exists()]
    for path in sorted(hidden):
        warn(f"{path} cannot be read: it may be another user's")
    return found, bool(hidden)


def _outcome(leftover: Leftover, url: str) -> str:
    name, receipt = _name(leftover.about), leftover.receipt
    if leftover.is_discarded:
        return f"{name}: the job was deleted: {sum(receipt.produced.values()):,} messages are discarded"
    if leftover.is_done and receipt.lost:
        lost = sum(receipt.lost.values())
        return f"{name}: {sum(receipt.stored.values()):,} messages are stored, {lost:,} are lost"
    if leftover.is_done:
        return f"{name}: all {sum(receipt.produced.values()):,} messages are stored"
    unsent, unstored = sum(receipt.unsent.values()), receipt.unsettled
    if unsent:
        return f"{name}: {unsent:,} messages are not sent: {shown_server(url)} did not accept them"
    return f"{name}: all messages are sent, {unstored:,} wait for a worker; send again when one runs"


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
            body = _body("logs", entry)
            if isinstance(body, Logs):
                yield from body.lines
            seq = number + 1


def _job_name(source: Spooled) -> str | None:
    """Return the name that a source gives its job at its start; None if it gives none, or if that is stored."""
    spool = Spool(SourceFolder(source.path, source.about, -1), NO_LIMIT)
    span = spool.spans().get("metrics")
    for entry in spool.read("metrics", span.first).values() if span else ():
        body = _body("metrics", entry)
        if isinstance(body, Metrics) and body.name is not None:
            return body.name
    return None


def _body(kind: Kind, entry: Mapping[str, object]) -> object:
    fields = {name.encode(): str(value).encode() for name, value in entry.items() if name != "body"}
    body = entry["body"]
    assert isinstance(body, bytes)  # noqa: S101 - the spool stores bodies as bytes
    return decode_body(kind, open_envelope(fields | {b"body": body}))


def _show_table(found: list[Spooled]) -> None:
    rows = []
    for source in found:
        about = source.about
        counts = " · ".join(f"{source.messages[kind]:,} {kind}" for kind in KINDS if kind in source.messages)
        rows.append(
            (
                *(about.job_id, one_line(_job_name(source) or ""), about.attempt or None),
                *(about.source, about.server, about.host, about.pid),
                *("in use" if source.is_live else "left", counts, shown_size(source.size_bytes)),
                f"{local(source.written_at):%Y-%m-%d %H:%M:%S}",
            )
        )
    columns = ("job", "name", "attempt", "source", "server", "host", "pid", "state", "messages", "size", "written")
    print_table(columns, rows)


def _document(source: Spooled) -> dict[str, object]:
    about = source.about
    return {
        "job_id": about.job_id,
        "name": _job_name(source),
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
