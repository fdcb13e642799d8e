"""`trainwire dead-letters`: list, show, replay and discard the entries that could not be stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer
from sqlalchemy import Connection, Engine, select

from trainwire.cli.commands.options import AsJson, DataDir, plain, servers, write_json
from trainwire.cli.numbers import whole
from trainwire.cli.redis_clients import stream_client
from trainwire.cli.terminal import one_line, print_table, safe, say, warn
from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.tables import dead_letters
from trainwire.schemas.wire.body_decoding import plain_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.validation import MAX_ID, InvalidMessage
from trainwire.stack.database import open_database, reading, settings_for
from trainwire.stack.errors import Problem, as_problem
from trainwire.stores.postgres.columns import columns_of
from trainwire.workers.errors import Unavailable
from trainwire.workers.operations.dead_letters import SINK_PREFIX
from trainwire.workers.operations.dead_letters import discard as discard_letter
from trainwire.workers.operations.dead_letters import replay as replay_letter
from trainwire.workers.settings import Settings

SHOWN_CHARS = 4000
_COLUMNS = ("id", "kind", "job_id", "source", "seq", "reason")

letter_number = whole(1, MAX_ID, "the number of a dead letter")
LetterIds = Annotated[
    list[int] | None, typer.Argument(parser=letter_number, metavar="ID...", help="Numbers of dead letters.")
]
LetterId = Annotated[int, typer.Argument(parser=letter_number, metavar="ID")]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]

app = typer.Typer(no_args_is_help=True, help="Entries that could not be stored: list, show, replay, discard.")


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table `dead_letters`, without the bytes of the entry."""

    id: int
    stream: str
    entry_id: str
    kind: str
    job_id: int | None
    source: str | None
    seq: int | None
    reason: str
    detail: str
    created_at: datetime


@app.command("list")
def list_letters(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the dead letters, oldest first."""
    with reading(servers(data_dir)) as connection:
        letters = _find_letters(connection)
    if as_json:
        write_json(letters)
    elif letters:
        print_table(
            ("id", "kind", "job", "source", "seq", "reason", "detail"),
            ((*(getattr(letter, name) for name in _COLUMNS), _cut(letter.detail)) for letter in letters),
        )
    else:
        say("no dead letters")


@app.command()
def show(letter_id: LetterId, data_dir: DataDir = None) -> None:
    """Show one dead letter: its fields and, if it can be decoded, its body."""
    with reading(servers(data_dir)) as connection:
        wanted = select(*columns_of(DeadLetter, dead_letters), dead_letters.c.raw)
        row = connection.execute(wanted.where(dead_letters.c.id == letter_id)).mappings().one_or_none()
    if row is None:
        raise Problem(f"no dead letter {letter_id}")
    fields = dict(row)
    raw = bytes(fields.pop("raw"))
    letter = DeadLetter(**fields)
    for name in DeadLetter.__struct_fields__:
        say(f"{name:<12}{one_line(str(getattr(letter, name)))}")
    for line in shown_entry(letter, raw):
        say(safe(line))


@app.command()
def replay(letter_ids: LetterIds = None, every: All = False, data_dir: DataDir = None) -> None:
    """Append dead letters to their Redis streams again, unchanged. A refused entry becomes a new dead letter.

    With --all, rows that a sink refused are left out.
    """
    settings = settings_for(servers(data_dir), with_redis=True)
    with stream_client(settings) as client:
        _for_each(
            settings,
            letter_ids,
            lambda engine, each: replay_letter(engine, client, each),
            every=every,
            done="sent again",
            concerns=_has_entry,
        )


@app.command()
def discard(letter_ids: LetterIds = None, every: All = False, data_dir: DataDir = None) -> None:
    """Delete dead letters permanently."""
    _for_each(settings_for(servers(data_dir)), letter_ids, discard_letter, every=every, done="discarded")


def _for_each(
    settings: Settings,
    letter_ids: list[int] | None,
    action: Callable[[Engine, int], object],
    *,
    every: bool,
    done: str,
    concerns: Callable[[DeadLetter], bool] = lambda _letter: True,
) -> None:
    if bool(letter_ids) == every:
        raise Problem("give the numbers of the dead letters, or --all")
    with open_database(settings) as engine:
        for letter_id in _all_ids(engine, concerns) if every else letter_ids or []:
            try:
                with as_problem(LookupError):
                    action(engine, letter_id)
            except Unavailable as exc:
                raise Problem(f"letter {letter_id} stays, because a server does not answer: {exc}") from exc
            say(f"{done} {letter_id}")


def _all_ids(engine: Engine, concerns: Callable[[DeadLetter], bool]) -> list[int]:
    with engine.connect() as connection:
        letters = _find_letters(connection)
    wanted = [letter.id for letter in letters if concerns(letter)]
    if others := len(letters) - len(wanted):
        warn(f"not sent again, because a sink refused them: {others:,}; see `trainwire replay JOB --sink SINK`")
    return wanted


def _find_letters(connection: Connection) -> list[DeadLetter]:
    wanted = select(*columns_of(DeadLetter, dead_letters)).order_by(dead_letters.c.id)
    return [DeadLetter(**row) for row in connection.execute(wanted).mappings()]


def _has_entry(letter: DeadLetter) -> bool:
    """Return whether a dead letter is an entry of a stream; the others are rows that a sink refused."""
    return not letter.stream.startswith(SINK_PREFIX)


def shown_entry(letter: DeadLetter, raw: bytes) -> list[str]:
    """Format the entry of a dead letter as lines: its fields and, if it can be decoded, its body.

    Bytes are shown as their `repr`. A field or body is cut after SHOWN_CHARS characters.
    """
    try:
        fields = msgspec.msgpack.decode(raw, type=dict[bytes, bytes])
    except DECODE_ERRORS:
        return [_cut(f"raw {raw!r}")]
    lines = [_cut(f"{name!r} = {value!r}") for name, value in fields.items() if name != b"body"]
    return [*lines, *_shown_body(fields)] if letter.kind else lines


def _shown_body(fields: Mapping[bytes, bytes]) -> list[str]:
    try:
        envelope = open_envelope(fields)
        body = plain_body(envelope)
        decode = msgspec.json.decode if envelope.encoding.startswith("json") else msgspec.msgpack.decode
        shown = json.dumps(plain(_readable(decode(body))), indent=1)
    except (InvalidMessage, *DECODE_ERRORS):
        return [_cut(f"body {fields.get(b'body', b'')!r}")]
    return _cut(f"body {shown}").splitlines()


def _readable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _readable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_readable(inner) for inner in value]
    if isinstance(value, msgspec.msgpack.Ext):
        return f"Ext({value.code}, {value.data!r})"
    return value if value is None or isinstance(value, str | int | float | datetime) else repr(value)


def _cut(text: str) -> str:
    more = len(text) - SHOWN_CHARS
    return text if more <= 0 else f"{text[:SHOWN_CHARS]} ... and {more:,} more characters"
