"""`trainwire token`: access tokens of the gateway."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from trainwire.cli.commands.jobs import shown_time
from trainwire.cli.commands.options import AsJson, DataDir, job_number, plain, servers, write_json
from trainwire.cli.numbers import whole, whole_option
from trainwire.cli.terminal import print_table, say
from trainwire.gateway.auth.tokens import ROLES, Token, create_token, list_tokens, revoke_token
from trainwire.schemas.validation import MAX_ID
from trainwire.stack.database import reading, writing
from trainwire.stack.errors import Problem

MAX_DAYS = 36_500

token_number = whole(1, MAX_ID, "the number of a token")
app = typer.Typer(help="Access tokens of the gateway, for viewers, trainers and admins.")


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Name of its user, for the list.")],
    role: Annotated[str, typer.Option(help="viewer reads, trainer sends, admin may do both.")] = "viewer",
    job: Annotated[
        int | None, typer.Option(parser=job_number, metavar="NUMBER", help="Restrict a trainer to this job.")
    ] = None,
    days: Annotated[int | None, whole_option(1, MAX_DAYS, "Days until it expires; default: it does not.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Create a token and print it. It is shown only once: the database stores its hash."""
    if role not in ROLES:
        raise Problem(f"no such role {role!r}: choose {', '.join(ROLES)}")
    if job is not None and role != "trainer":
        raise Problem("--job is for the role trainer: viewer and admin see all jobs")
    valid_for = None if days is None else timedelta(days=days)
    with writing(servers(data_dir)) as connection:
        _, token = create_token(connection, name, role, job, valid_for)
    say(token)


@app.command("list")
def list_all(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the tokens with name, role and last use."""
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
    token_id: Annotated[int, typer.Argument(parser=token_number, metavar="ID", help="Its id in the list.")],
    data_dir: DataDir = None,
) -> None:
    """Revoke a token; gateways refuse it after a few seconds."""
    with writing(servers(data_dir)) as connection:
        if not revoke_token(connection, token_id):
            raise Problem(f"no token {token_id}: see `trainwire token list`")
    say(f"token {token_id} is revoked")


def _show(tokens: list[Token]) -> None:
    rows = (
        (
            *(token.id, token.name, token.role, token.job_id),
            *(shown_time(token.created_at), shown_time(token.last_used_at), _state(token)),
        )
        for token in tokens
    )
    print_table(("id", "name", "role", "job", "created", "last used", "state"), rows, right={"id", "job"})


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return f"revoked {shown_time(token.revoked_at)}"
    if token.expires_at is None:
        return "valid"
    word = "valid until" if token.expires_at > datetime.now(UTC) else "expired"
    return f"{word} {shown_time(token.expires_at)}"
