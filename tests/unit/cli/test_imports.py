"""Commands import only the packages that they need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache

import pytest

from trainwire.cli.application import COMMANDS

LISTED = """
import gc, json, os, sys
gc.disable()  # this, and no regular exit, take half of the CPU time away
from trainwire.cli.application import build
build(sys.argv[1:])
print(json.dumps(sorted(sys.modules)), flush=True)
os._exit(0)
"""
ENDS = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > len(gc.get_objects())))
from {module} import main
main()
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


@pytest.mark.parametrize(
    ("module", "argument"),
    [
        ("trainwire.__main__", "--version"),
        ("trainwire.workers.__main__", "beat"),
        ("trainwire.gateway.__main__", ""),
    ],
)
def test_no_process_searches_its_objects_for_cycles_at_its_exit(module: str, argument: str) -> None:
    """At the exit of a process its objects are exempt from garbage collection, a third of a second of CPU time."""
    command = [sys.executable, "-c", ENDS.format(module=module), argument]
    env = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.stdout.splitlines()[-1] == "True", done.stderr
