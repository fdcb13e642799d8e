"""Finds the servers for a command: those of a chosen data folder, of the environment, or of the running stack."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from trainwire.ingest.settings.running_stacks import StackFolders, is_held
from trainwire.ingest.settings.server_addresses import streams_url_of
from trainwire.stack.errors import Problem, as_problem
from trainwire.stack.folders import chosen_data_dir, default_data_dir, published, running_data_dirs
from trainwire.stack.persisted_config import is_embedded_url

NOT_RUNNING = (
    "no trainwire is running: start `trainwire up` in another terminal, or set DATABASE_URL and REDIS_URL"
)

SERVERS: Final = ("database", "redis", "flower", "gateway", "metrics")


@dataclass(frozen=True)
class Address:
    """URLs of the servers (they may contain passwords), each None if unknown."""

    database_url: str | None = None
    redis_url: str | None = None
    flower_url: str | None = None
    data_dir: Path | None = None
    gateway_url: str | None = None
    metrics_url: str | None = None
    settings: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    """Environment variables recorded by the running stack, None for those that were not set.

    Empty if the servers are not those of a stack.
    """

    @property
    def urls(self) -> dict[str, str | None]:
        """The URLs of all servers by the names of their fields, such as `database_url`."""
        return {f"{name}_url": getattr(self, f"{name}_url") for name in SERVERS}

    def need_database_url(self) -> str:
        """Return the URL of Postgres; raise `Problem` if it is unknown."""
        if self.database_url is None:
            raise Problem("DATABASE_URL is not set, though REDIS_URL is: set both, or start `trainwire up`")
        return self.database_url

    def need_redis_url(self) -> str:
        """Return the URL of Redis; raise `Problem` if it is unknown."""
        if self.redis_url is None:
            raise Problem("REDIS_URL is not set, though DATABASE_URL is: set both, or start `trainwire up`")
        return self.redis_url


def locate(data_dir: Path | None, environ: Mapping[str, str]) -> Address:
    """Return the URLs of the servers: of the stack in `data_dir` if given, else those set in the environment.

    URLs of Postgres and Redis that the environment lacks are taken from the running stack. If `trainwire env` of a
    running stack exported them, the current ones of that stack are returned. Raises `Problem` if the stack in
    `data_dir` is not running, or if the environment has none of the two URLs and no stack can be chosen
    (`running_stack`).
    """
    if data_dir is not None:
        return running_stack(data_dir, environ)
    database_url = environ.get("DATABASE_URL") or None
    redis_url = environ.get("REDIS_URL") or None
    if database_url and redis_url:
        return _exported_by(database_url, redis_url, environ) or _named(environ)
    try:
        found = running_stack(data_dir, environ)
    except Problem:
        if database_url or redis_url:
            return _named(environ)
        raise
    return replace(found, database_url=database_url or found.database_url, redis_url=redis_url or found.redis_url)


def _exported_by(database_url: str, redis_url: str, environ: Mapping[str, str]) -> Address | None:
    """Return the current addresses of the stack whose `trainwire env` exported these URLs.

    The ports may have changed since then. Returns None if the URLs do not belong to a stack, or if that stack is
    not running.
    """
    folder = StackFolders.from_env(environ).owner_of(redis_url)
    if folder is None or not is_embedded_url(folder, "postgres", database_url) or published(folder) is None:
        return None
    return _stack_in(folder)


def adopt(settings: Mapping[str, str | None], environ: MutableMapping[str, str]) -> None:
    """Set the variables in `environ` to the settings that a stack has recorded.

    A variable that the stack recorded as not set is removed.
    """
    for name, value in settings.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value


def streams_url(redis_url: str, environ: Mapping[str, str]) -> str:
    """Return STREAMS_URL, or `redis_url` if it is not set; raise `Problem` if it is invalid."""
    with as_problem(ValueError):
        return streams_url_of(environ) or redis_url


def _named(environ: Mapping[str, str]) -> Address:
    urls: dict[str, Any] = {f"{name}_url": environ.get(f"{name}_URL".upper()) or None for name in SERVERS}
    return Address(**urls)


def running_stack(data_dir: Path | None, environ: Mapping[str, str]) -> Address:
    """Return the addresses of the stack in the chosen data folder, else of the default one, else of the only one.

    Trainers choose in the same way (`StackFolders.find`). Raises `Problem` if it is not running, or if no folder
    is chosen, and several stacks are running of which none has the default folder.
    """
    chosen = chosen_data_dir(data_dir, environ)
    if chosen is not None:
        return _stack_in(chosen)
    running = running_data_dirs(environ)
    if not running:
        raise Problem(NOT_RUNNING)
    default = default_data_dir(environ)
    if default in running:
        return _stack_in(default)
    if len(running) > 1:
        listed = ", ".join(str(folder) for folder in running)
        raise Problem(f"more than one trainwire is running: choose one with --data-dir ({listed})")
    return _stack_in(running[0])


def _stack_in(data_dir: Path) -> Address:
    stack = published(data_dir)
    if stack is None and is_held(data_dir):
        raise Problem(
            f"the trainwire in {data_dir} is starting or stopping, or was killed: try again in a moment, or start "
            "`trainwire up` again"
        )
    if stack is None:
        raise Problem(f"no trainwire is running in {data_dir}: start `trainwire up --data-dir {data_dir}`")
    settings = stack.get("settings")
    urls: dict[str, Any] = {f"{name}_url": _text(stack, f"{name}_url") for name in SERVERS}
    return Address(data_dir=data_dir, settings=settings if isinstance(settings, dict) else {}, **urls)


def _text(stack: Mapping[str, Any], name: str) -> str | None:
    value = stack.get(name)
    return value if isinstance(value, str) else None
