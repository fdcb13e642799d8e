"""`trainwire token`: who may use the gateway."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from trainwire.cli.commands.jobs import shown_time
from trainwire.cli.commands.options import AsJson, DataDir, job_number, plain, servers, write_json
from trainwire.cli.numbers import whole, whole_option
from trainwire.cli.terminal import cell, console, say, table
from trainwire.gateway.auth.tokens import ROLES, Token, create_token, list_tokens, revoke_token
from trainwire.schemas.validation import MAX_ID
from trainwire.stack.database import reading, writing
from trainwire.stack.errors import Problem

MAX_DAYS = 36_500

token_number = whole(1, MAX_ID, "the number of a token")
app = typer.Typer(help="Tokens for the gateway: who may look, and which trainers may speak.")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose it is, for the list.")],
    role: Annotated[str, typer.Option(help="viewer looks, trainer reports, admin does both.")] = "viewer",
    job: Annotated[
        int | None, typer.Option(parser=job_number, metavar="NUMBER", help="A trainer's only job.")
    ] = None,
    days: Annotated[int | None, whole_option(1, MAX_DAYS, "How long it is valid; default: until revoked.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a token and print it: it is shown once, and kept only as a hash."""
    if role not in ROLES:
        raise Problem(f"no such role {role!r}: choose {', '.join(ROLES)}")
    if job is not None and role != "trainer":
        raise Problem("--job is for the role trainer: the others see all jobs")
    lasts = None if days is None else timedelta(days=days)
    with writing(servers(data_dir)) as connection:
        _, token = create_token(connection, name, role, job, lasts)
    say(token)


@app.command("list")
def list_all(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the tokens: whose, for what, and when they were last used."""
    with reading(servers(data_dir)) as connection:
        tokens = list_tokens(connection)
    if as_json:
        write_json([plain(token) for token in tokens])
    elif tokens:
        _show(tokens)
    else:
        say("no tokens yet")


@app.command()
def revoke(
    token_id: Annotated[int, typer.Argument(parser=token_number, metavar="ID", help="Its number in the list.")],
    data_dir: DataDir = None,
) -> None:
    """Make a token useless, within a few seconds."""
    with writing(servers(data_dir)) as connection:
        if not revoke_token(connection, token_id):
            raise Problem(f"no token {token_id}: see `trainwire token list`")
    say(f"token {token_id} is revoked")


def _show(tokens: list[Token]) -> None:
    shown = table("id", "name", "role", "job", "created", "last used", "state", right=frozenset({"id", "job"}))
    for token in tokens:
        times = (shown_time(token.created_at), shown_time(token.last_used_at))
        values = (token.id, token.name, token.role, token.job_id, *times, _state(token))
        shown.add_row(*(cell(value) for value in values))
    console().print(shown)


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return f"revoked {shown_time(token.revoked_at)}"
    if token.expires_at is None:
        return "valid"
    word = "valid until" if token.expires_at > datetime.now(UTC) else "expired"
    return f"{word} {shown_time(token.expires_at)}"
