"""Alembic migrations of the tables, run by `trainwire migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, inspect, text

from trainwire.schemas.tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

_FOLDER: Final = Path(__file__).parent


class WrongSchemaRevision(RuntimeError):  # noqa: N818 - its text is shown to operators
    """The database is at a schema revision that this version of trainwire cannot use."""


def head_revision() -> str:
    """Return the newest schema revision of this version of trainwire.

    Raises `WrongSchemaRevision` if the installed package contains no migrations.
    """
    revisions = _revisions()
    if not revisions:
        raise WrongSchemaRevision("the package has lost its migrations; install trainwire again")
    return max(revisions)


def _revisions() -> set[str]:
    """Return the revisions of all migrations in the package: the text before the first `_` of each file name."""
    return {path.name.partition("_")[0] for path in _FOLDER.glob("versions/[0-9]*_*.py")}


def current_revision(connection: Connection) -> str | None:
    """Return the database's schema revision; None if it was never migrated and thus has no trainwire tables."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def upgrade(connection: Connection) -> None:
    """Upgrade an empty or older database to the newest revision, in one transaction.

    Raises `WrongSchemaRevision` if this version does not know the database's revision, as after a migration by a
    newer trainwire.
    """
    from alembic import command  # noqa: PLC0415 - takes a tenth of a second, and most commands do not upgrade

    current = current_revision(connection)
    if current is not None and current not in _revisions():
        raise WrongSchemaRevision(
            f"the database is at schema revision {current!r}, which this trainwire does not know "
            f"(its newest is {head_revision()!r}): install the newer trainwire"
        )
    command.upgrade(_config(connection), "head")


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - as in `upgrade`

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    config.attributes["connection"] = connection
    return config


def check_revision(connection: Connection) -> None:
    """Raise `WrongSchemaRevision`, with the command to run, if this version of trainwire cannot use the database.

    This version can use the newest revision of its own migrations, and a newer one that still has all of its
    columns and whose other columns accept NULL or have a default. Migrations only add such columns
    (docs/deploy.md), so old processes continue to work while newer ones are started.
    """
    current, head = current_revision(connection), head_revision()
    if current == head:
        return
    found = "has no trainwire tables" if current is None else f"is at schema revision {current!r}"
    remedy = "run `trainwire migrate` (or install the trainwire version that fits the database)"
    if is_newer(current):
        faults = _faults(connection)
        if not faults:
            return
        found, remedy = f"{found}, in which {', '.join(faults)}", "install the newer trainwire"
    raise WrongSchemaRevision(f"the database {found}, this trainwire needs {head!r}: {remedy}")


def is_newer(revision: str | None) -> bool:
    """Return whether `revision` is newer than the newest migration of this version of trainwire."""
    return revision is not None and revision.isdecimal() and int(revision) > int(head_revision())


def _faults(connection: Connection) -> list[str]:
    """Return the reasons against the use of a newer database; an empty list if it can be used.

    They are missing columns, and new NOT NULL columns without a default.
    """
    found = {
        name: {column["name"]: column for column in columns}
        for (_, name), columns in inspect(connection).get_multi_columns().items()
    }
    faults = []
    for table in metadata.sorted_tables:
        columns = found.get(table.name, {})
        faults += [f"{table.name}.{name} is missing" for name in table.columns.keys() - columns.keys()]
        faults += [
            f"{table.name}.{name} has no default"
            for name in columns.keys() - table.columns.keys()
            if not columns[name]["nullable"] and columns[name]["default"] is None
        ]
    return sorted(faults)
