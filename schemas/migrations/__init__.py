"""Alembic migrations of the tables, run by `trainwire migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, inspect, text

from trainwire.schemas.tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config


class WrongSchemaRevision(RuntimeError):  # noqa: N818 - its text is shown to operators
    """The database is at a schema revision that this version of trainwire cannot use."""


_REVISIONS: Final = Path(__file__).parent / "versions"
"""The folder of the migrations; their file names begin with the revision, a decimal number."""


def _config(connection: Connection | None = None) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - see `head_revision`

    config = Config()
    config.set_main_option("script_location", str(_REVISIONS.parent))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """Return the newest schema revision of this version of trainwire.

    It is that of the file names, because every process of the workers needs it at its start, and Alembic takes a
    third of a second of CPU time to import itself and all migrations.
    """
    revisions = [path.name.partition("_")[0] for path in _REVISIONS.glob("*_*.py")]
    found = max((revision for revision in revisions if revision.isdecimal()), key=int, default=None)
    if found is None:
        raise WrongSchemaRevision("the package has lost its migrations; install trainwire again")
    return found


def current_revision(connection: Connection) -> str | None:
    """Return the database's schema revision; None if it has no trainwire tables."""
    # Alembic's table of revisions.
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    revision: str | None = connection.execute(text("SELECT max(version_num) FROM alembic_version")).scalar_one()
    return revision


def upgrade(connection: Connection) -> None:
    """Upgrade an empty or older database to the newest revision, in one transaction.

    Raises `WrongSchemaRevision` if the database was migrated by a newer trainwire.
    """
    from alembic import command  # noqa: PLC0415 - see `head_revision`
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = _config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = current_revision(connection)
    if current is not None and current not in known:
        raise WrongSchemaRevision(
            f"the database is at schema revision {current!r}, which this trainwire does not know "
            f"(its newest is {head_revision()!r}): install the newer trainwire"
        )
    command.upgrade(config, "head")


def check_revision(connection: Connection) -> None:
    """Raise `WrongSchemaRevision`, with the command to run, if this version of trainwire cannot use the database.

    It can use the revision of its own migrations, and newer ones that still have all of its columns. Migrations
    only add columns (docs/deploy.md), so old processes continue to work while newer ones are started.
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
    """Return why a newer database cannot be used: missing columns, or new NOT NULL columns without a default."""
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
