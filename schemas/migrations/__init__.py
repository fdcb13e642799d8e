"""Alembic migrations of the tables, run by `trainwire migrate`."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


class WrongSchemaRevision(RuntimeError):  # noqa: N818 - said to operators as it stands
    """The database is at another schema revision than this version of trainwire was made for."""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """Return the revision this version of trainwire was made for."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise WrongSchemaRevision("the package has lost its migrations; install trainwire again")
    return head


def current_revision(connection: Connection) -> str | None:
    """Return the database's revision, None for a database without our tables."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection) -> None:
    """Bring the database to the newest revision, from an empty one or any older one, in one transaction.

    Raises `WrongSchemaRevision` when the database was migrated by a newer trainwire.
    """
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    current = current_revision(connection)
    if current is not None and current not in known:
        raise WrongSchemaRevision(
            f"the database is at schema revision {current!r}, which this trainwire does not know "
            f"(its newest is {head_revision()!r}): install the newer trainwire"
        )
    command.upgrade(_config(connection), "head")


def check_revision(connection: Connection) -> None:
    """Raise `WrongSchemaRevision`, with the command to run, unless the database is at our revision."""
    current, head = current_revision(connection), head_revision()
    if current == head:
        return
    found = "has no trainwire tables" if current is None else f"is at schema revision {current!r}"
    raise WrongSchemaRevision(
        f"the database {found}, this trainwire needs {head!r}: run `trainwire migrate` "
        "(or install the trainwire version that fits the database)"
    )
