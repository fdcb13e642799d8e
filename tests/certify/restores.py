"""Backs up and restores the stores of a lane, as docs/backup.md describes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from sqlalchemy import URL, make_url

from trainwire.stack.postgres import binary

if TYPE_CHECKING:
    from tests.certify.world import World

PROGRAM_S = 120


def back_up_postgres(world: World) -> Path:
    """Dump the database, and return the file."""
    dump = world.folder / "trainwire.dump"
    _program("pg_dump", "--format=custom", "--file", str(dump), world.database_url)
    return dump


def restore_postgres(world: World, dump: Path) -> None:
    """Restore the dump into a new database, then swap it for the present one, which ends all sessions."""
    url = make_url(world.database_url)
    name = url.database
    with psycopg.connect(_text(url.set(database="postgres")), autocommit=True) as server:
        server.execute(f"DROP DATABASE IF EXISTS {name}_restored WITH (FORCE)")
        server.execute(f"CREATE DATABASE {name}_restored TEMPLATE template0")
        restored = _text(url.set(database=f"{name}_restored"))
        _program("pg_restore", "--exit-on-error", "--dbname", restored, str(dump))
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        server.execute(f"ALTER DATABASE {name} RENAME TO {name}_broken")
        server.execute(f"ALTER DATABASE {name}_restored RENAME TO {name}")
        server.execute(f"DROP DATABASE {name}_broken WITH (FORCE)")
    world.engine.dispose()
    world.is_restored = True


def back_up_redis(world: World) -> Path:
    """Stop Redis, copy its append-only file, and start it again; return the copy."""
    copy = world.folder / "redis-copy"
    world.valkey.stop()
    shutil.copytree(_files(world), copy)
    world.valkey.start()
    return copy


def restore_redis(world: World, copy: Path) -> None:
    """Replace the files of Redis by the copied ones."""
    world.valkey.kill()
    shutil.rmtree(_files(world))
    shutil.copytree(copy, _files(world))
    world.valkey.start()


def _files(world: World) -> Path:
    return world.root / "valkey"


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def _program(name: str, *arguments: str) -> None:
    subprocess.run([str(binary(name)), *arguments], check=True, capture_output=True, timeout=PROGRAM_S)
