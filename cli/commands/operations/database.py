"""`trainwire migrate` and `trainwire env`: upgrade the tables, and print the addresses of the stack."""

from __future__ import annotations

import os
import shlex
import sys

from trainwire.cli.commands.options import DataDir, servers
from trainwire.cli.terminal import say
from trainwire.schemas.migrations import head_revision
from trainwire.stack.database import migrate as migrate_database


def migrate(data_dir: DataDir = None) -> None:
    """Upgrade the tables in Postgres to the newest schema revision."""
    migrate_database(servers(data_dir))
    say(f"the database is at schema revision {head_revision()}")


def env(data_dir: DataDir = None) -> None:
    """Print the addresses of the servers as shell exports, for eval "$(trainwire env)"."""
    address = servers(data_dir)
    exports = {name.upper(): url for name, url in address.urls.items()} | {
        "LOKI_URL": os.environ.get("LOKI_URL"),
        "TRAINWIRE_DATA_DIR": None if address.data_dir is None else str(address.data_dir),
    }
    for name, value in exports.items():
        if value:
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
