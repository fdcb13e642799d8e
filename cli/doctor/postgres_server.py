"""Checks of the Postgres server: version, durability, schema and free connections."""

from __future__ import annotations

import time
from typing import Any, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from trainwire.schemas.migrations import (
    WrongSchemaRevision,
    check_revision,
    current_revision,
    head_revision,
    is_newer,
)
from trainwire.stores.postgres.connections import postgres_trouble
from trainwire.workers.findings import Finding, Findings, Part, clock

OLDEST: Final = 14
BUSY: Final = 0.8
PART: Final = Part("postgres")


def look(engine: Engine) -> Findings:
    """Yield what is found."""
    try:
        with engine.connect() as connection:
            before_s = time.time()
            at = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
            yield clock(PART, float(at), before_s, time.time())
            yield from _server(connection)
            yield _revision(connection)
    except SQLAlchemyError as exc:
        says = f"does not answer: {postgres_trouble(exc)}"
        yield PART.error("answers", says, "start it, or correct DATABASE_URL")


def has_our_tables(findings: list[Finding]) -> bool:
    """Return whether the findings so far allow reading our tables."""
    bad = {"answers", "schema"}
    return not any(found.part == PART.name and found.check in bad and found.level == "error" for found in findings)


def _server(connection: Connection) -> Findings:
    asked: dict[str, Any] = dict(connection.execute(_ASKED).mappings().one())
    version = asked["version"]
    if version // 10_000 < OLDEST:
        yield PART.error("version", f"is version {version // 10_000}", f"install {OLDEST} or newer")
    else:
        yield PART.ok("version", f"is version {version // 10_000}.{version % 10_000}")
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        if asked[setting] == "off":
            says = f"{setting} is off: a crash can lose what trainers were told is safe"
            yield PART.error("durability", says, f"{setting} = on in its file, and for the database and the role")
    if asked["encoding"] != "UTF8":
        says = f"the database's encoding is {asked['encoding']}"
        yield PART.error("encoding", says, "create the database anew with ENCODING 'UTF8'")
    if asked["in_recovery"]:
        says = "is read-only: it is a standby, which takes no writes"
        remedy = "point DATABASE_URL to the primary, or name both servers and target_session_attrs=read-write"
        yield PART.error("role", says, remedy)
    elif asked["read_only"] == "on":
        says = "is read-only: default_transaction_read_only is on, for the server, the database or the role"
        yield PART.error("role", says, "set it to off where it is on: workers go on by themselves")
    says = f"{asked['used']} of {asked['most']} connections are in use"
    if asked["used"] > BUSY * asked["most"]:
        yield PART.warning("connections", says, "raise max_connections, or put PgBouncer in front")
    else:
        yield PART.ok("connections", says)


def _revision(connection: Connection) -> Finding:
    try:
        check_revision(connection)
    except WrongSchemaRevision as exc:
        return PART.error("schema", str(exc), "trainwire migrate")
    current = current_revision(connection)
    if is_newer(current):
        says = (
            f"is at schema revision {current!r}, newer than {head_revision()!r} of this trainwire, which works on"
        )
        return PART.warning("schema", says, "install the newer trainwire here")
    return PART.ok("schema", "has the tables of this version")


_ASKED: Final = text(
    "SELECT CAST(current_setting('server_version_num') AS integer) AS version, current_setting('fsync') AS fsync, "
    "(SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous_commit, "
    "current_setting('full_page_writes') AS full_page_writes, current_setting('server_encoding') AS encoding, "
    "pg_is_in_recovery() AS in_recovery, current_setting('transaction_read_only') AS read_only, "
    "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = "
    "'client backend') AS used, CAST(current_setting('max_connections') AS integer) AS most"
)
