"""Checks of the Postgres server: version, durability, schema and free connections."""

from __future__ import annotations

import time
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy import text as sql
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


def check(engine: Engine) -> Findings:
    """Yield the findings about the Postgres server, or one error if it does not answer."""
    try:
        with engine.connect() as connection:
            before_s = time.time()
            at = connection.execute(sql("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
            yield clock(PART, float(at), before_s, time.time())
            yield from _server(connection)
            yield _revision(connection)
    except SQLAlchemyError as exc:
        text = postgres_trouble(exc)
        if "FATAL" in text:
            yield PART.error("answers", f"refuses: {text}", "correct DATABASE_URL")
        else:
            yield PART.error("answers", f"does not answer: {text}", "start it, or correct DATABASE_URL")


def has_our_tables(findings: list[Finding]) -> bool:
    """Return whether `findings` show that Postgres answers and has the tables of trainwire."""
    bad = {"answers", "schema"}
    return not any(one.part == PART.name and one.check in bad and one.level == "error" for one in findings)


def _server(connection: Connection) -> Findings:
    found: dict[str, Any] = dict(connection.execute(_SETTINGS).mappings().one())
    version = found["version"]
    if version // 10_000 < OLDEST:
        yield PART.error("version", f"is version {version // 10_000}", f"install {OLDEST} or newer")
    else:
        yield PART.ok("version", f"is version {version // 10_000}.{version % 10_000}")
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        if found[setting] == "off":
            text = f"{setting} is off: a crash can lose messages that were acknowledged"
            yield PART.error("durability", text, f"{setting} = on in its file, and for the database and the role")
    if found["encoding"] != "UTF8":
        text = f"the database's encoding is {found['encoding']}"
        yield PART.error("encoding", text, "create the database anew with ENCODING 'UTF8'")
    if found["in_recovery"]:
        text = "is read-only: it is a standby, which takes no writes"
        remedy = "point DATABASE_URL to the primary, or name both servers and target_session_attrs=read-write"
        yield PART.error("role", text, remedy)
    elif found["read_only"] == "on":
        text = "is read-only: default_transaction_read_only is on, for the server, the database or the role"
        yield PART.error("role", text, "set it to off where it is on: workers recover without a restart")
    text = f"{found['used']} of {found['most']} connections are in use"
    if found["used"] > BUSY * found["most"]:
        yield PART.warning("connections", text, "raise max_connections, or put PgBouncer in front")
    else:
        yield PART.ok("connections", text)


def _revision(connection: Connection) -> Finding:
    try:
        check_revision(connection)
    except WrongSchemaRevision as exc:
        return PART.error("schema", str(exc), "trainwire migrate")
    current = current_revision(connection)
    if is_newer(current):
        text = f"is at schema revision {current!r}, newer than {head_revision()!r}, that of this trainwire"
        return PART.warning("schema", text, "install the newer trainwire here")
    return PART.ok("schema", "has the tables of this version")


_SETTINGS: Final = sql(
    "SELECT CAST(current_setting('server_version_num') AS integer) AS version, current_setting('fsync') AS fsync, "
    "(SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous_commit, "
    "current_setting('full_page_writes') AS full_page_writes, current_setting('server_encoding') AS encoding, "
    "pg_is_in_recovery() AS in_recovery, current_setting('transaction_read_only') AS read_only, "
    "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = "
    "'client backend') AS used, CAST(current_setting('max_connections') AS integer) AS most"
)
