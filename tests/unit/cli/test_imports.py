"""Commands import only the packages that they need."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest

from trainwire.cli.application import COMMANDS

LISTED = """
import json, sys
from trainwire.cli.application import build
build(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
"""
MOST_MODULES = 1100
"""About 0.6 s of CPU time: of this number 600 belong to SQLAlchemy, psycopg, pydantic, typer and redis-py."""
NOT_AT_START = {"alembic", "boto3", "celery", "mlflow"}
"""Packages that a command imports only where it uses them."""
READS_POSTGRES = ("jobs", "logs", "metrics", "status", "rename")


@cache
def modules_of(command: str) -> frozenset[str]:
    """Return the modules that `trainwire COMMAND` has imported before its work."""
    done = subprocess.run([sys.executable, "-c", LISTED, command], capture_output=True, text=True, check=True)
    return frozenset(json.loads(done.stdout))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_with_few_modules(command: str) -> None:
    """No command imports a slow package before it needs it, nor more than a bounded number of modules."""
    modules = modules_of(command)
    assert not NOT_AT_START & modules
    assert len(modules) <= MOST_MODULES


@pytest.mark.parametrize("command", READS_POSTGRES)
def test_commands_that_read_postgres_import_neither_redis_nor_the_workers(command: str) -> None:
    """The most used commands do without redis-py and structlog, a third of a second of imports."""
    assert not {"redis", "structlog", "trainwire.workers.drain"} & modules_of(command)


def test_the_version_needs_no_database() -> None:
    """`trainwire --version` imports neither drivers nor settings."""
    assert not {"redis", "sqlalchemy", "psycopg", "pydantic"} & modules_of("--version")
