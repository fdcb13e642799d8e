"""`trainwire token`: creates, lists and revokes access tokens of the gateway."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer
import urllib3
from urllib3.exceptions import HTTPError

from trainwire.cli.commands.options import AsJson, DataDir, job_number, plain, servers, write_json
from trainwire.cli.formats import shown_time
from trainwire.cli.numbers import whole, whole_option
from trainwire.cli.terminal import print_table, say, warn
from trainwire.gateway.auth.tokens import ROLES, Token, create_token, list_tokens, revoke_token
from trainwire.ingest.settings.variables import URL_VARIABLE
from trainwire.schemas.gateway_urls import base_of
from trainwire.schemas.wire.limits import MAX_TEXT_CHARS
from trainwire.schemas.wire.validation import MAX_ID
from trainwire.stack.database import reading, writing
from trainwire.stack.errors import Problem

MAX_DAYS = 36_500
GATEWAY_TIMEOUT: Final = urllib3.Timeout(connect=1.0, read=5.0)

_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}


def _duration(text: str | timedelta) -> timedelta:
    """Parse a duration such as 12h, 30d or 8w, up to MAX_DAYS; raise typer's `BadParameter` for any other text."""
    if isinstance(text, timedelta):
        return text
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdecimal() and len(number) <= 6 and unit in _UNITS:
        found = timedelta(**{_UNITS[unit]: int(number)})
        if timedelta() < found <= timedelta(days=MAX_DAYS):
            return found
    raise typer.BadParameter(f"{text!r} is not a time up to {MAX_DAYS}d: write 12h, 30d or 8w")


def _checked_names(pattern: str) -> str:
    """Return `pattern` if it is a job name, or the beginning of one followed by `*`; else raise `Problem`."""
    plain = pattern.removesuffix("*")
    if not plain or "*" in plain or not plain.isprintable() or len(plain) > MAX_TEXT_CHARS["name"]:
        raise Problem(
            f"--name {pattern!r} is not a name of runs: write a name, or its beginning and a * behind it, digits*"
        )
    return pattern


token_number = whole(1, MAX_ID, "the number of a token")
app = typer.Typer(help="Access tokens of the gateway, for viewers, trainers and admins.")


@app.command()
def create(
    *,
    name: Annotated[
        str | None,
        typer.Option(help="Name of its user, for the list; with --trainer, of the runs: digits, or digits*."),
    ] = None,
    role: Annotated[
        str | None, typer.Option(help="viewer (the default) reads, trainer sends, admin may do both.")
    ] = None,
    trainer: Annotated[
        bool, typer.Option("--trainer", help="For a trainer, and only for runs with the --name, or for the --job.")
    ] = False,
    job: Annotated[
        int | None, typer.Option(parser=job_number, metavar="NUMBER", help="Restrict a trainer to this job.")
    ] = None,
    days: Annotated[int | None, whole_option(1, MAX_DAYS, "Days until it expires; default: it does not.")] = None,
    expires: Annotated[
        timedelta | None,
        typer.Option(parser=_duration, metavar="DURATION", help="Time until it expires: 12h, 30d or 8w."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Create a token and print it. It is shown only once: the database stores its hash."""
    if trainer and role not in (None, "trainer"):
        raise Problem(f"--trainer and --role {role} contradict each other: leave one out")
    chosen = "trainer" if trainer else role or "viewer"
    if chosen not in ROLES:
        raise Problem(f"no such role {role!r}: choose {', '.join(ROLES)}")
    if job is not None and chosen != "trainer":
        raise Problem("--job is for the role trainer: viewer and admin see all jobs")
    if days is not None and expires is not None:
        raise Problem("--days and --expires are both given: leave one out")
    if name is None and (job is None or not trainer):
        raise Problem("--name is missing: a name for the list, or with --trainer the name of the runs, digits*")
    job_names = _checked_names(name) if trainer and name is not None else None
    lasts = expires if days is None else timedelta(days=days)
    address = servers(data_dir)
    with writing(address) as connection:
        _, token = create_token(connection, name or f"job {job}", chosen, job, lasts, job_names=job_names)
    say(token)
    named = os.environ.get(URL_VARIABLE)
    gateway_url = address.gateway_url or (base_of(named) if named else None)
    if gateway_url is not None and _answers_anybody(gateway_url):
        warn(f"{gateway_url} answers requests without a token, too: start its gateway with GATEWAY_AUTH=on")


def _answers_anybody(gateway_url: str) -> bool:
    """Return whether the gateway lists jobs without a token."""
    try:
        with urllib3.PoolManager(timeout=GATEWAY_TIMEOUT, retries=False) as pool:
            answer = pool.request("GET", f"{gateway_url.rstrip('/')}/jobs?limit=1", redirect=False)
    except HTTPError:
        return False
    return answer.status == 200


@app.command("list")
def list_all(as_json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the tokens with their names, roles and times of last use."""
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
    """Revoke a token. Gateways reject it after a few seconds."""
    with writing(servers(data_dir)) as connection:
        if not revoke_token(connection, token_id):
            raise Problem(f"no token {token_id}: see `trainwire token list`")
    say(f"token {token_id} is revoked")


def _show(tokens: list[Token]) -> None:
    rows = (
        (
            *(token.id, token.name, token.role, token.job_id, token.job_names),
            *(shown_time(token.created_at), shown_time(token.last_used_at), _state(token)),
        )
        for token in tokens
    )
    print_table(("id", "name", "role", "job", "runs", "created", "last used", "state"), rows, right={"id", "job"})


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return f"revoked {shown_time(token.revoked_at)}"
    if token.expires_at is None:
        return "valid"
    word = "valid until" if token.expires_at > datetime.now(UTC) else "expired"
    return f"{word} {shown_time(token.expires_at)}"
